"""Differences in stretches: which elements of one changed and by how much, as briefly as that can be said.

Differences are naturals; zero stands for no change. A stretch is what is likely alike. The layout is in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from mreg.registry.store import kernels
from mreg.registry.store.layouts import Unsigned
from mreg.registry.store.packing import BadFrame, Reader, Writer
from mreg.registry.store.scratch import scratch

Flags = npt.NDArray[np.bool_]

_SAME, _ALL, _BITMAP, _GAPS = range(4)
"""What is said: nothing changed; every difference; which ones changed, by bits or by distances, and those."""

_STRETCH = 4096
"""Exponents with fewer elements share a stretch with the next."""
_BITS_PAY = 1 / 24
"""From this share of changed elements on, a bit for each element takes less than distances."""
_ALL_PAY = 0.6
"""From this share on, differences of zero take less than bits."""


def write_stretches(writer: Writer, differences: Unsigned, ends: Sequence[int]) -> None:
    """Write all differences, in stretches between these ends; short ones together with the next."""
    count = len(differences)
    # Room that the compiled loops work in.
    marks, plane, values = (
        scratch("marks", count),
        scratch("plane", count),
        scratch("values", count + 1, differences.dtype),
    )
    for start, stop in _long_ones(ends):
        stretch = differences[start:stop]
        changed = int(np.count_nonzero(stretch))
        form = _form(changed, len(stretch))
        if kernels.compiled is None:
            _write_stretch(writer, form, stretch, changed)
            continue
        writer.add(
            kernels.compiled.write_stretch(
                stretch.itemsize, form, stretch, changed, writer.compress, marks, values, plane
            )
        )


def _long_ones(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for end in ends:
        if end - start >= _STRETCH or (end == ends[-1] and end > start):
            yield start, end
            start = end


def _form(changed: int, count: int) -> int:
    """The one that fits the share of elements that changed."""
    if not changed:
        return _SAME
    if changed < _BITS_PAY * count:
        return _GAPS
    return _BITMAP if changed < _ALL_PAY * count else _ALL


def _write_stretch(writer: Writer, form: int, differences: Unsigned, changed: int) -> None:
    writer.byte(form)
    writer.number(len(differences))
    if form == _ALL:
        writer.elements(differences)
    elif form == _BITMAP:
        bits, values = kernels.squeeze(differences)
        writer.plane(bits)
        writer.elements(values)
    elif form == _GAPS:
        gaps, values = kernels.gaps(differences)
        writer.number(changed)
        writer.number(len(gaps))
        writer.plane(gaps)
        writer.elements(values)


def read_stretches(reader: Reader, out: Unsigned) -> Unsigned:
    """Fill `out`, all of it, with the differences of stretches. Raises BadFrame."""
    if kernels.compiled is not None:
        values = scratch("values", len(out) + 1, out.dtype)
        reader.compiled(
            lambda frame, at, decompress: kernels.compiled.read_stretches(
                out.itemsize, frame, at, decompress, values, out
            )
        )
        return out
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
    if form == _BITMAP:
        kernels.spread(reader.plane(-(-len(out) // 8)), reader.elements, out)
        return
    if form == _GAPS:
        changed = reader.number(len(out))
        gaps = reader.plane(reader.number(changed + len(out) // kernels.LONGEST_GAP))
        values = scratch("values", changed, out.dtype)
        reader.elements(values)
        if not kernels.leap(gaps, values, out):
            raise BadFrame("it changes elements that are not there")
        return
    if form != _SAME:
        raise BadFrame(f"a stretch is stored in the unknown way {form}")
    out[:] = 0


def read_flags(reader: Reader, count: int) -> Flags:
    """A flag for each element, from a plane of bits."""
    return np.unpackbits(reader.plane(-(-count // 8)), count=count).view(np.bool_)
