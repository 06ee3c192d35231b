"""Which encoding an object gets: the smallest on a few pieces of it, where that pays for what reading then costs."""

from __future__ import annotations

from collections.abc import Sequence

from mreg.registry.store.contents import Predicted, bounds
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.framed import frame_count
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import Data

DEEPEST = 2
"""A residual's inputs may be residuals, but theirs may not: more would make reading slow and losses wide."""

SMALLEST = 4096
"""Content of fewer bytes stays as it is."""

_PIECE = 1 << 15
_PIECES = 3
_SOLO_PAYS = 0.95
"""What planes must leave of the bytes at most."""
_RESIDUAL_PAYS = 0.9
"""What a residual must leave of what the content takes otherwise, since it cannot be read without its inputs."""


def choose(envelope: Envelope, data: Data, candidates: Sequence[tuple[Prediction, Predicted]]) -> Envelope:
    """The envelope under which to store `data`. Candidates come best guess first; one that is exact ends the search."""
    from mreg.registry.store import deltas, planes

    if envelope.size < SMALLEST:
        return envelope
    pieces = [(number, start, data.read(start, stop)) for number, start, stop in _pieces(envelope.size)]
    best, smallest = None, float("inf")
    for prediction, predicted in candidates:
        total = 0
        for number, start, piece in pieces:
            at = start - bounds(envelope.size, number)[0]
            guess = memoryview(predicted.chunk(number))[at : at + len(piece)]
            total += len(deltas.encode(piece, guess, envelope.dtype))
        if total < smallest:
            best, smallest = prediction, total
        if total == 0:
            break
    sampled = sum(len(piece) for _, _, piece in pieces)
    if best is not None and smallest == 0:
        return envelope.encoded("residual", best)
    solo = sum(len(planes.encode(piece, envelope.dtype or "U8")) for _, _, piece in pieces)
    otherwise = solo if solo <= _SOLO_PAYS * sampled else sampled
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
