"""Differences in stretches: which elements of one changed and by how much, as briefly as that can be said.

Differences are naturals; zero stands for no change. A stretch is what is likely alike. The layout is in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from mreg.registry.store.layouts import Unsigned
from mreg.registry.store.packing import BadFrame, Plane, Reader, Writer

Flags = npt.NDArray[np.bool_]

_SAME, _ALL, _BITMAP, _GAPS = range(4)
"""What is said: nothing changed; every difference; which ones changed, by bits or by distances, and those."""

_STRETCH = 4096
"""Exponents with fewer elements share a stretch with the next."""
_BITS_PAY = 1 / 24
"""From this share of changed elements on, a bit for each element takes less than distances."""
_ALL_PAY = 0.6
"""From this share on, differences of zero take less than bits."""
_LONGEST_GAP = 255


def stretches(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What lies between the ends, short ones together with the next."""
    start = 0
    for end in ends:
        if end - start >= _STRETCH or (end == ends[-1] and end > start):
            yield start, end
            start = end


def write_stretch(writer: Writer, differences: Unsigned) -> None:
    """Write one stretch, in the form that fits the share of elements that changed."""
    count, changed = len(differences), int(np.count_nonzero(differences))
    if not changed:
        form = _SAME
    elif changed < _BITS_PAY * count:
        form = _GAPS
    else:
        form = _BITMAP if changed < _ALL_PAY * count else _ALL
    writer.byte(form)
    writer.number(count)
    if form == _ALL:
        writer.elements(differences)
    elif form != _SAME:
        flags = differences != 0
        places = np.flatnonzero(flags)
        if form == _BITMAP:
            writer.plane(np.packbits(flags))
        else:
            gaps = _gaps(places)
            writer.number(changed)
            writer.number(len(gaps))
            writer.plane(gaps)
        values = differences.take(places)
        values -= 1
        writer.elements(values)


def read_stretches(reader: Reader, out: Unsigned) -> Unsigned:
    """Fill `out`, all of it, with the differences of stretches. Raises BadFrame."""
    at = 0
    while at < len(out):
        form, count = reader.byte(), reader.number(len(out) - at)
        if count == 0:
            raise BadFrame("a stretch has no elements")
        _read_stretch(reader, form, out[at : at + count])
        at += count
    return out


def _read_stretch(reader: Reader, form: int, out: Unsigned) -> None:
    if form == _ALL:
        reader.elements(out)
        return
    out[:] = 0
    if form == _BITMAP:
        places = np.flatnonzero(read_flags(reader, len(out)))
    elif form == _GAPS:
        places = _places(reader, len(out))
    elif form == _SAME:
        return
    else:
        raise BadFrame(f"a stretch is stored in the unknown way {form}")
    values = np.empty(len(places), out.dtype)
    reader.elements(values)
    values += 1
    out[places] = values


def read_flags(reader: Reader, count: int) -> Flags:
    """A flag for each element, from a plane of bits."""
    return np.unpackbits(reader.plane(-(-count // 8)), count=count).view(np.bool_)


def _gaps(places: npt.NDArray[np.intp]) -> Plane:
    """How many elements lie between places, a byte each; 255 stands for as many and goes on."""
    distances = np.diff(places, prepend=-1) - 1
    longest = distances // _LONGEST_GAP
    if not longest.any():
        return distances.astype(np.uint8)
    ends = np.cumsum(longest + 1) - 1
    gaps = np.full(int(ends[-1]) + 1, _LONGEST_GAP, np.uint8)
    gaps[ends] = distances % _LONGEST_GAP
    return gaps


def _places(reader: Reader, count: int) -> npt.NDArray[np.intp]:
    changed = reader.number(count)
    gaps = reader.plane(reader.number(changed + count // _LONGEST_GAP))
    is_place = gaps != _LONGEST_GAP
    places = np.compress(is_place, np.cumsum(gaps + is_place.astype(np.intp)) - 1)
    if len(places) != changed or (changed and places[-1] >= count):
        raise BadFrame("it changes elements that are not there")
    return places
