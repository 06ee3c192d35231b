"""The inner loops of the codecs of stored tensors, over whole chunks of elements.

They are compiled (`_kernels.c`) where mreg came as a wheel or there was a C compiler at its installation, otherwise in
numpy. Both give the same bytes. Arrays are flat and contiguous, elements unsigned integers. Those of stretches
(`squeeze`, `spread`, `gaps`, `leap`) are in numpy alone here: compiled, a stretch is written in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
from mreg.registry.digests import Buffer
from mreg.registry.models.weights import same_bytes
from mreg.registry.store.layouts import Unsigned

compiled: Any = None
"""The compiled loops, if there are any."""

_REVISION = 2
"""Of `_kernels.c`: what was compiled from an older one and left lying is not used."""

with suppress(ImportError):
    from mreg.registry.store import _kernels

    if getattr(_kernels, "REVISION", None) == _REVISION:
        compiled = _kernels

Plane = npt.NDArray[np.uint8]

LONGEST_GAP = 255
"""The gap that stands for as many zeros and goes on."""

_PIECE = 1 << 16
"""Elements that numpy works on at a time, so that what lies in between stays in the cache."""


def difference(elements: Unsigned, parents: Unsigned, out: Unsigned) -> int:
    """By how much elements differ as integers, modulo their width: 0, -1, 1, -2 … as 0, 1, 2, 3 … Gives how many do."""
    if compiled is not None:
        return int(compiled.difference(elements.itemsize, elements, parents, out))
    bits = 8 * elements.itemsize
    for piece in _pieces(len(elements)):
        to = out[piece]
        np.subtract(elements[piece], parents[piece], out=to)
        sign = to.view(f"<i{elements.itemsize}") >> (bits - 1)
        to <<= 1
        to ^= sign.view(to.dtype)
    return int(np.count_nonzero(out))


def add(differences: Unsigned, parents: Unsigned, out: Unsigned) -> None:
    """The inverse of `difference`."""
    if compiled is not None:
        compiled.add(out.itemsize, differences, parents, out)
        return
    for piece in _pieces(len(out)):
        to = out[piece]
        np.bitwise_and(differences[piece], 1, out=to)
        np.negative(to, out=to)
        to ^= differences[piece] >> 1
        to += parents[piece]


def squeeze(differences: Unsigned) -> tuple[Plane, Unsigned]:
    """A bit for each difference that is not zero, the highest of a byte first, and those differences less one."""
    flags = differences != 0
    found = np.compress(flags, differences)
    found -= 1
    return np.packbits(flags), found


def spread(bits: Plane, read: Callable[[Unsigned], None], out: Unsigned) -> None:
    """The inverse of `squeeze`. `read` is called once, to fill an array with as many values as bits are set."""
    places = np.flatnonzero(np.unpackbits(bits, count=len(out)))
    values = np.empty(len(places), out.dtype)
    read(values)
    values += 1
    out[:] = 0
    out[places] = values


def gaps(differences: Unsigned) -> tuple[Plane, Unsigned]:
    """How many zeros stand before each of the other differences, a byte each, and those differences less one.

    A byte of 255 stands for as many zeros and goes on.
    """
    places = np.flatnonzero(differences)
    values = differences.take(places)
    values -= 1
    distances = np.diff(places, prepend=-1) - 1
    longest = distances // LONGEST_GAP
    if not longest.any():
        return distances.astype(np.uint8), values
    ends = np.cumsum(longest + 1) - 1
    between = np.full(int(ends[-1]) + 1, LONGEST_GAP, np.uint8)
    between[ends] = distances % LONGEST_GAP
    return between, values


def leap(between: Plane, values: Unsigned, out: Unsigned) -> bool:
    """The inverse of `gaps`. False when they lead out of `out` or are another number than the values."""
    is_place = between != LONGEST_GAP
    places = np.compress(is_place, np.cumsum(between + is_place.astype(np.intp)) - 1)
    if len(places) != len(values) or (len(places) and places[-1] >= len(out)):
        return False
    out[:] = 0
    out[places] = values + np.ones(1, out.dtype)
    return True


def used_bytes(elements: Unsigned) -> int:
    """How many bytes of an element, from the lowest, are not zero everywhere; one at least."""
    largest = compiled.set_bits(elements.itemsize, elements) if compiled is not None else elements.max(initial=0)
    return max(1, -(-int(largest).bit_length() // 8))


def cut(elements: Unsigned, place: int, plane: Plane, *, rotate: bool) -> None:
    """Byte number `place` of each element, from the lowest. With `rotate` the top bit counts as the lowest of all."""
    if compiled is not None:
        compiled.cut(elements.itemsize, elements, rotate, place, plane)
        return
    for piece in _pieces(len(elements)):
        some: Any = elements[piece]
        if rotate:
            some = (some << 1) | (some >> (8 * elements.itemsize - 1))
        np.copyto(plane[piece], some >> (8 * place) if place else some, casting="unsafe")


def join(planes: Sequence[Plane], out: Unsigned, *, rotate: bool) -> None:
    """The inverse of `cut`, of all bytes."""
    if compiled is not None:
        compiled.join(out.itemsize, tuple(planes), rotate, out)
        return
    for piece in _pieces(len(out)):
        to = out[piece]
        to[:] = planes[-1][piece]
        for plane in reversed(planes[:-1]):
            to <<= 8
            to |= plane[piece]
        if rotate:
            top = to << (8 * out.itemsize - 1)
            to >>= 1
            to |= top


def same(a: Buffer, b: Buffer) -> bool:
    """Whether two stretches of memory hold the same bytes."""
    if compiled is not None:
        return bool(compiled.same(a, b))
    return same_bytes(memoryview(a), memoryview(b))


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, start + _PIECE) for start in range(0, count, _PIECE))
