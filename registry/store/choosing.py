"""Which encoding an object gets: the smallest on a few pieces of it, where that pays for what reading then costs."""

from __future__ import annotations

from collections.abc import Sequence

from mreg.registry.store.contents import Predicted, bounds
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.framed import frame_count
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import CHUNK, Data

DEEPEST = 2
"""A residual's inputs may be residuals, but theirs may not: more would make reading slow and losses wide."""

SMALLEST = 4096
"""Content of fewer bytes stays as it is."""

_PIECE = 1 << 15
_PIECES = 3
_SOLO_PAYS = 0.95
"""What planes must leave of the bytes at most."""
_PAYS_ANYWAY = 0.25
"""A residual that leaves so little is taken without a look at what else there is."""
_RESIDUAL_PAYS = 0.9
"""What a residual must leave of what the content takes otherwise, since it cannot be read without its inputs."""


def choose(envelope: Envelope, data: Data, candidates: Sequence[tuple[Prediction, Predicted]]) -> Envelope:
    """The envelope under which to store `data`. Candidates come best guess first; one that is exact ends the search."""
    from mreg.registry.store import deltas, planes

    if envelope.size < SMALLEST:
        return envelope
    pieces = _pieces(envelope.size)
    sample = b"".join(data.read(start, stop) for _, start, stop in pieces)
    best, smallest = None, len(sample) + 1
    for prediction, predicted in candidates:
        guess = b"".join(
            memoryview(predicted.chunk(number))[start - number * CHUNK : stop - number * CHUNK]
            for number, start, stop in pieces
        )
        left = len(deltas.encode(sample, guess, envelope.dtype))
        if left < smallest:
            best, smallest = prediction, left
        if left == 0:
            break
    if best is not None and smallest <= _PAYS_ANYWAY * len(sample):
        return envelope.encoded("residual", best)
    solo = len(planes.encode(sample, envelope.dtype or "U8"))
    otherwise = solo if solo <= _SOLO_PAYS * len(sample) else len(sample)
    if best is not None and smallest <= _RESIDUAL_PAYS * otherwise:
        return envelope.encoded("residual", best)
    return envelope.encoded("solo") if otherwise == solo else envelope


def _pieces(size: int) -> list[tuple[int, int, int]]:
    """The chunks to look into, and from where to where: the middle of the first, the middle and the last one."""
    count = frame_count(size)
    found = []
    for number in sorted({count * place // _PIECES for place in range(_PIECES)}):
        start, stop = bounds(size, number)
        # Whole elements, whatever they are.
        first = start + max(0, stop - start - _PIECE) // 2 // 64 * 64
        found.append((number, first, min(stop, first + _PIECE)))
    return found
