"""The stable order of elements by a key of one byte that lies within other elements, there and back.

Compiled, keys are counted, and each element is put where its key has got to; no index is made. numpy sorts bytes by
counting too, but its indices take eight times the room of what they sort: it is quick only for pieces that fit into the
cache. So pieces are sorted, and what they have of each key is joined. The order is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from mreg.registry.store import kernels
from mreg.registry.store.layouts import Unsigned
from mreg.registry.store.scratch import scratch

Array = npt.NDArray[Any]

PIECE = 1 << 16
"""The elements that numpy sorts at a time."""

_KEYS = np.arange(256, dtype=np.uint8)
_LANES = 4
"""Parts of the elements that are put in order beside each other; as in _kernels.c."""


class Order(Protocol):
    """An order of elements. What it gives is the thread's to use until it orders others.

    Columns have the width of the elements that hold the keys, or of one byte.
    """

    def ends(self) -> list[int]:
        """Where the elements of each key that there is end."""

    def sort(self, columns: Sequence[Array]) -> list[Array]:
        """The columns in this order."""

    def unsort(self, columns: Sequence[Array]) -> list[Array]:
        """The inverse of `sort`."""


def order_of(elements: Unsigned, shift: int, mask: int) -> Order:
    """The order of what lies beside these elements by `(element >> shift) & mask`; the mask has eight bits at most.

    The elements must stay as they are while the order is used.
    """
    if kernels.compiled is None:
        return _indexed(elements, shift, mask)
    counts = np.empty((_LANES, 256), np.intp)
    kernels.compiled.count(elements.itemsize, elements, shift, mask, counts)
    return _Counted(elements, shift, mask, counts)


@dataclass(frozen=True, slots=True)
class _Counted:
    """How often each key is there, in each lane."""

    elements: Unsigned
    shift: int
    mask: int
    counts: npt.NDArray[np.intp]

    def ends(self) -> list[int]:
        """See `Order`."""
        return _ends(self.counts)

    def sort(self, columns: Sequence[Array]) -> list[Array]:
        """See `Order`."""
        return self._put("sorted", kernels.compiled.sort, columns)

    def unsort(self, columns: Sequence[Array]) -> list[Array]:
        """See `Order`."""
        return self._put("unsorted", kernels.compiled.unsort, columns)

    def _put(self, name: str, work: Any, columns: Sequence[Array]) -> list[Array]:
        outs = _scratches(name, columns)
        for column, out in zip(columns, outs, strict=True):
            work(
                self.elements.itemsize, self.elements, self.shift, self.mask, self.counts, column.itemsize, column, out
            )
        return outs


@dataclass(frozen=True, slots=True)
class _Indexed:
    """Where the elements of each piece come from: their places in it, and how many of each key a piece has."""

    places: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.intp]

    def ends(self) -> list[int]:
        """See `Order`."""
        return _ends(self.counts)

    def sort(self, columns: Sequence[Array]) -> list[Array]:
        """See `Order`."""
        pieces, joined = _scratches("pieces", columns), _scratches("sorted", columns)
        for piece, index in self._pieces():
            for column, to in zip(columns, pieces, strict=True):
                # Every index is there; to clip spares numpy the copy that it makes in case one is not.
                column[piece].take(index, out=to[piece], mode="clip")
        for here, there in self._joints():
            for column, to in zip(pieces, joined, strict=True):
                to[there] = column[here]
        return joined

    def unsort(self, columns: Sequence[Array]) -> list[Array]:
        """See `Order`."""
        pieces, outs = _scratches("pieces", columns), _scratches("unsorted", columns)
        for here, there in self._joints():
            for column, to in zip(columns, pieces, strict=True):
                to[here] = column[there]
        for piece, index in self._pieces():
            for column, to in zip(pieces, outs, strict=True):
                to[piece][index] = column[piece]
        return outs

    def _pieces(self) -> Iterator[tuple[slice, npt.NDArray[np.intp]]]:
        """Where each piece lies, and the places in it by their keys."""
        for start in range(0, len(self.places), PIECE):
            piece = slice(start, start + PIECE)
            yield piece, self.places[piece].astype(np.intp)

    def _joints(self) -> Iterator[tuple[slice, slice]]:
        """Where each key of each sorted piece lies: piece after piece, and in the whole order."""
        table = self.counts
        in_pieces = np.cumsum(table).reshape(table.shape)
        in_order = np.cumsum(table.T).reshape(table.T.shape).T
        there_is = table > 0
        for count, here, there in zip(
            table[there_is].tolist(), in_pieces[there_is].tolist(), in_order[there_is].tolist(), strict=True
        ):
            yield slice(here - count, here), slice(there - count, there)


def _indexed(elements: Unsigned, shift: int, mask: int) -> _Indexed:
    places = scratch("places", len(elements), np.uint16)
    counts = np.zeros((-(-len(elements) // PIECE), 256), np.intp)
    for number, start in enumerate(range(0, len(elements), PIECE)):
        piece = slice(start, start + PIECE)
        keys = (elements[piece] >> shift).astype(np.uint8)
        keys &= np.uint8(mask)
        index = np.argsort(keys, kind="stable")
        places[piece] = index
        stops = np.searchsorted(keys, _KEYS, side="right", sorter=index)
        counts[number] = np.diff(stops, prepend=0)
    return _Indexed(places, counts)


def _ends(counts: npt.NDArray[np.intp]) -> list[int]:
    totals = counts.sum(axis=0)
    ends: list[int] = totals.cumsum()[totals > 0].tolist()
    return ends


def _scratches(name: str, like: Sequence[Array]) -> list[Array]:
    return [scratch(f"{name} {place}", len(column), column.dtype) for place, column in enumerate(like)]
