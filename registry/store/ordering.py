"""The stable order of elements by a key of one byte, there and back.

numpy sorts bytes by counting, but its indices take eight times the room of what they sort: it is quick only for pieces
that fit into the cache. So pieces are sorted, and what they have of each key is joined. The order is that of the whole,
however it was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from mreg.registry.store.packing import Plane, scratch

Array = npt.NDArray[Any]
LONGEST = 1 << 16
"""The elements that a piece may have."""
_KEYS = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Order:
    """Where the elements of some pieces come from: their places in their piece, and how many of each key a piece has.

    It is the thread's to use until it orders others.
    """

    places: npt.NDArray[np.uint16]
    counts: Sequence[npt.NDArray[np.intp]]

    def pieces(self) -> Iterator[tuple[slice, npt.NDArray[np.intp]]]:
        """Where each piece lies, and the places in it by their keys."""
        start = 0
        for counts in self.counts:
            piece = slice(start, start := start + int(counts.sum()))
            yield piece, self.places[piece].astype(np.intp)

    def ends(self) -> list[int]:
        """Where the elements of each key that there is end."""
        ends = np.cumsum(np.sum(self.counts, axis=0))
        found: list[int] = np.unique(ends[ends > 0]).tolist()
        return found


def order_of(pieces: Iterable[Plane], count: int) -> Order:
    """The order of elements by the keys of each piece, `count` in all."""
    places = scratch("places", count, np.uint16)
    counts = []
    at = 0
    for keys in pieces:
        assert len(keys) <= LONGEST, f"a piece has {len(keys)} elements"
        index = np.argsort(keys, kind="stable")
        counts.append(_counts(keys, index))
        places[at : at + len(keys)] = index
        at += len(keys)
    assert at == count, f"{at} elements are not {count}"
    return Order(places, counts)


def sort(order: Order, pieces: Iterable[Sequence[Array]]) -> list[Array]:
    """The columns of pieces in that order. What is given is the thread's to read until it sorts again."""
    sorted_pieces: list[Array] = []
    for (piece, index), columns in zip(order.pieces(), pieces, strict=True):
        if not sorted_pieces:
            sorted_pieces = _scratches("pieces", len(order.places), columns)
        for column, to in zip(columns, sorted_pieces, strict=True):
            # Every index is there; to clip spares numpy the copy that it makes in case one is not.
            column.take(index, out=to[piece], mode="clip")
    joined = _scratches("joined", len(order.places), sorted_pieces)
    for here, there in _joints(order.counts):
        for column, to in zip(sorted_pieces, joined, strict=True):
            to[there] = column[here]
    return joined


def unsort(order: Order, columns: Sequence[Array]) -> Iterator[list[Array]]:
    """The columns as they were before `sort`, piece by piece."""
    sorted_pieces = _scratches("pieces", len(order.places), columns)
    for here, there in _joints(order.counts):
        for column, to in zip(columns, sorted_pieces, strict=True):
            to[here] = column[there]
    for piece, index in order.pieces():
        yield [_scattered(column[piece], index) for column in sorted_pieces]


def _scratches(name: str, count: int, like: Sequence[Array]) -> list[Array]:
    return [scratch(f"{name} {place}", count, column.dtype) for place, column in enumerate(like)]


def _scattered(values: Array, index: npt.NDArray[np.intp]) -> Array:
    out = np.empty_like(values)
    out[index] = values
    return out


def _counts(keys: Plane, index: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """How often each key is there."""
    stops = np.searchsorted(keys, _KEYS, side="right", sorter=index)
    stops[1:] -= stops[:-1].copy()
    return stops


def _joints(counts: Sequence[npt.NDArray[np.intp]]) -> Iterator[tuple[slice, slice]]:
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
