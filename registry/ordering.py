"""The stable order of elements by a key of one byte, there and back.

numpy sorts bytes by counting, but its indices take eight times the room of what they sort: it is quick only for pieces
that fit into the cache. So pieces are sorted, and what they have of each key is joined. The order is that of the whole,
however it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from mreg.registry.packing import Plane, scratch

Array = npt.NDArray[Any]
LONGEST = 1 << 16
"""The elements that a piece may have."""
_KEYS = np.arange(256, dtype=np.uint8)


def sort(pieces: Iterable[tuple[Plane, Sequence[Array]]], count: int) -> tuple[list[Array], list[int]]:
    """The columns of pieces in the order of their keys, what has one key as it was; and where each key ends.

    `count` are the elements of all pieces. What is given is the thread's to read until it sorts again.
    """
    sorted_pieces: list[Array] = []
    counts = []
    at = 0
    for keys, columns in pieces:
        index = np.argsort(keys, kind="stable")
        counts.append(_counts(keys, index))
        if not sorted_pieces:
            sorted_pieces = [scratch(f"pieces {place}", count, column.dtype) for place, column in enumerate(columns)]
        for column, to in zip(columns, sorted_pieces, strict=True):
            # Every index is there; to clip spares numpy the copy that it makes in case one is not.
            column.take(index, out=to[at : at + len(keys)], mode="clip")
        at += len(keys)
    joined = [scratch(f"joined {place}", count, column.dtype) for place, column in enumerate(sorted_pieces)]
    for here, there in _joints(counts):
        for column, to in zip(sorted_pieces, joined, strict=True):
            to[there] = column[here]
    ends = np.cumsum(np.sum(counts, axis=0))
    return joined, np.unique(ends[ends > 0]).tolist()


def unsort(keys: Iterable[Plane], columns: Sequence[Array]) -> Iterator[list[Array]]:
    """The columns as they were before `sort`, in pieces as long as those of the keys."""
    count = len(columns[0])
    indices = scratch("indices", count, np.uint16)
    counts, ends = [], [0]
    for piece in keys:
        assert len(piece) <= LONGEST, f"a piece has {len(piece)} elements"
        index = np.argsort(piece, kind="stable")
        counts.append(_counts(piece, index))
        ends.append(ends[-1] + len(piece))
        indices[ends[-2] : ends[-1]] = index
    sorted_pieces = [scratch(f"pieces {place}", count, column.dtype) for place, column in enumerate(columns)]
    for here, there in _joints(counts):
        for column, to in zip(columns, sorted_pieces, strict=True):
            to[here] = column[there]
    for start, stop in pairwise(ends):
        index = indices[start:stop].astype(np.intp)
        yield [_scattered(column[start:stop], index) for column in sorted_pieces]


def _scattered(values: Array, index: npt.NDArray[np.intp]) -> Array:
    out = np.empty_like(values)
    out[index] = values
    return out


def _counts(keys: Plane, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """How often each key is there."""
    stops = np.searchsorted(keys, _KEYS, side="right", sorter=index)
    stops[1:] -= stops[:-1].copy()
    return stops


def _joints(counts: list[npt.NDArray[np.intp]]) -> Iterator[tuple[slice, slice]]:
    """Where each key of each sorted piece lies: piece after piece, and in the whole order."""
    if not counts:
        return
    table = np.array(counts)
    in_pieces = np.cumsum(table).reshape(table.shape)
    in_order = np.cumsum(table.T).reshape(table.T.shape).T
    there_is = table > 0
    for count, here, there in zip(
        table[there_is].tolist(), in_pieces[there_is].tolist(), in_order[there_is].tolist(), strict=True
    ):
        yield slice(here - count, here), slice(there - count, there)
