"""Which encoding an object gets: the smallest on a few pieces of it, where that pays for what reading then costs."""

from __future__ import annotations

from collections.abc import Sequence

from mreg.registry.digests import Buffer
from mreg.registry.store.contents import Predicted, bounds
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.framed import frame_count
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import CHUNK, Data

DEEPEST = 2
"""A residual's inputs may be residuals, but theirs may not: more would make reading slow and losses wide."""

_Piece = tuple[int, int, Buffer]
"""Part of a content: the number of the chunk that it lies in, where it starts, and its bytes."""

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
    from mreg.registry.store import planes

    if envelope.size < SMALLEST:
        return envelope
    pieces = [(number, start, data.read(start, stop)) for number, start, stop in _pieces(envelope.size)]
    sampled = sum(len(piece) for _, _, piece in pieces)
    best, left = _best(envelope, pieces, candidates)
    if best is not None and left <= _PAYS_ANYWAY * sampled:
        return envelope.encoded("residual", best)
    solo = len(planes.encode(b"".join(piece for _, _, piece in pieces), envelope.dtype or "U8"))
    otherwise = solo if solo <= _SOLO_PAYS * sampled else sampled
    if best is not None and left <= _RESIDUAL_PAYS * otherwise:
        return envelope.encoded("residual", best)
    return envelope.encoded("solo") if otherwise == solo else envelope


def _best(
    envelope: Envelope, pieces: Sequence[_Piece], candidates: Sequence[tuple[Prediction, Predicted]]
) -> tuple[Prediction | None, int]:
    """The candidate that leaves least of the first piece, and what it leaves of all of them.

    To ask a candidate for a piece it has to decode a whole chunk, so only one is asked for all.
    """
    best: tuple[Prediction, Predicted] | None = None
    smallest = None
    for prediction, predicted in candidates:
        left = _left(envelope, pieces[:1], predicted) if len(candidates) > 1 else 0
        if smallest is None or left < smallest:
            best, smallest = (prediction, predicted), left
        if left == 0:
            break
    return (None, 0) if best is None else (best[0], _left(envelope, pieces, best[1]))


def _left(envelope: Envelope, pieces: Sequence[_Piece], predicted: Predicted) -> int:
    """The bytes that a prediction leaves of some pieces."""
    from mreg.registry.store import deltas

    guess = b"".join(
        memoryview(predicted.chunk(number))[start - number * CHUNK :][: len(piece)] for number, start, piece in pieces
    )
    return len(deltas.encode(b"".join(piece for _, _, piece in pieces), guess, envelope.dtype))


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
