"""A chunk of a tensor stored as its difference from a predicted one of the same dtype and size.

Elements are subtracted as the integers that their bits are: for floats of one sign that counts the representable
numbers between them. Small differences of both signs become small naturals (zigzag). How large they get depends on the
exponent: where a number is small, a step of training moves it over more representable ones. So differences are stored
in the order of the predicted exponents, which costs nothing to say, and stretches of them are packed for themselves.
Numbers that were set to zero, as pruning does, are no differences but one bit each. The layout is in docs/format.md.
"""

from __future__ import annotations

import numpy as np
from mreg.registry.digests import Buffer
from mreg.registry.store import kernels, planes
from mreg.registry.store.kernels import Plane
from mreg.registry.store.layouts import Layout, Unsigned, layout_of
from mreg.registry.store.ordering import Array, Order, order_of
from mreg.registry.store.packing import BadFrame as BadFrame
from mreg.registry.store.packing import Reader, Writer
from mreg.registry.store.scratch import scratch
from mreg.registry.store.stretches import Flags, read_flags, read_stretches, write_stretches

_SOLO, _DELTA = range(2)
_ORDERED, _ZERO, _SIGNED_ZERO = 1, 2, 4
"""Bits of the second byte: the order is that of exponents; some became +0; some became a zero and kept their sign."""
_FLAGS = (0, _ORDERED, _ZERO, _ORDERED | _ZERO, _SIGNED_ZERO, _ORDERED | _SIGNED_ZERO)

_FEW = 1 / 128
"""Where fewer elements changed, sorting them all would not pay."""
_MANY_ZEROS = 1 / 64
"""From this share of elements that became zero on, they are told apart."""
_SAMPLED = 32
"""Of this many elements one is looked at, to see whether there are zeros at all."""
_UNRELATED = 5 / 8
"""A delta of this share of the content might be larger than the content on its own."""


def encode(content: Buffer, predicted: Buffer, dtype: str) -> bytes:
    """A frame of at most two bytes more than the content, empty when the two are equal bit for bit.

    Law: `decode(encode(c, p, d), p, d) == c`, bit for bit.
    """
    return _encode(content, predicted, dtype)[0]


def encode_proved(content: Buffer, predicted: Buffer, dtype: str) -> bytes:
    """The same frame, after it gave the content back. Quicker than to do both: the order is found once."""
    frame, order = _encode(content, predicted, dtype)
    proof = scratch("proof", len(content))
    assert kernels.same(_decode(frame, predicted, dtype, proof, order), content), "a delta gave back other bytes"
    return frame


def _encode(content: Buffer, predicted: Buffer, dtype: str) -> tuple[bytes, Order | None]:
    """The frame, and the order of the predicted exponents if it was used."""
    assert len(content) == len(predicted), f"{len(content)} bytes are no change of {len(predicted)}"
    layout = layout_of(dtype)
    elements, parents = layout.elements(content), layout.elements(predicted)
    count = len(elements)
    differences = scratch("differences", count, layout.unsigned)
    changed = kernels.difference(elements, parents, differences)
    if not changed:
        return b"", None
    columns: list[Array] = [differences]
    how = _zeros(elements, parents, layout) if changed >= _MANY_ZEROS * count else 0
    if how:
        columns.append(_became_zero(elements, parents, layout, how))
    order, ends = None, [count]
    if layout.mantissa is not None and changed >= _FEW * count:
        how |= _ORDERED
        order = _order(parents, layout)
        columns, ends = order.sort(columns), order.ends()
    differences, zeros = columns[0], columns[1] if len(columns) > 1 else None
    writer = Writer()
    writer.byte(_DELTA)
    writer.byte(how)
    if zeros is not None:
        writer.plane(np.packbits(zeros))
        kept = ~zeros
        ends = _counts_until(kept, ends)
        differences = np.compress(kept, differences)
    write_stretches(writer, differences, ends)
    frame = writer.frame()
    if len(frame) > _UNRELATED * len(content):
        solo = planes.encode(content, dtype)
        if len(solo) < len(frame):
            return bytes([_SOLO]) + solo, None
    return frame, order


def decode(frame: Buffer, predicted: Buffer, dtype: str, into: Plane | None = None) -> memoryview:
    """The content that was encoded, written `into` memory of its size or longer, if it has to be anywhere.

    Raises BadFrame; allocates some times its size, whatever the frame says.
    """
    return _decode(frame, predicted, dtype, into, None)


def _decode(frame: Buffer, predicted: Buffer, dtype: str, into: Plane | None, order: Order | None) -> memoryview:
    """The content; `order` is that of the predicted exponents, where it is known."""
    if not frame:
        out = _room(into, len(predicted))
        out[:] = np.frombuffer(predicted, np.uint8)
        return out.data
    reader = Reader(frame)
    method = reader.byte()
    if method == _SOLO:
        return planes.decode(reader.rest(), len(predicted), dtype, into)
    if method != _DELTA:
        raise BadFrame(f"it is encoded in the unknown way {method}")
    layout = layout_of(dtype)
    parents = layout.elements(predicted)
    how = reader.byte()
    if how not in (_FLAGS if layout.mantissa is not None else (0,)):
        raise BadFrame(f"it has flags {how} that mean nothing for {dtype}")
    differences, zeros = _read(reader, how, len(parents), layout)
    reader.end()
    columns = [column for column in (differences, zeros) if column is not None]
    if how & _ORDERED:
        columns = (order or _order(parents, layout)).unsort(columns)
    out = _room(into, len(predicted)).view(layout.unsigned)
    if differences is None:
        out[:] = parents
    else:
        kernels.add(columns[0].view(layout.unsigned), parents, out)
    if zeros is not None:
        zero = parents & _sign_bit(layout) if how & _SIGNED_ZERO else 0
        np.copyto(out, zero, where=columns[-1])
    return layout.content(out)


def _room(into: Plane | None, size: int) -> Plane:
    return np.empty(size, np.uint8) if into is None else into[:size]


def _order(parents: Unsigned, layout: Layout) -> Order:
    assert layout.mantissa is not None, "integers have no exponent"
    return order_of(parents, layout.mantissa, layout.key_mask)


def _read(reader: Reader, how: int, count: int, layout: Layout) -> tuple[Unsigned | None, Flags | None]:
    """The differences if there are any, and which elements became zero if so, in the order of the frame."""
    differences = scratch("read", count, layout.unsigned)
    if not how & (_ZERO | _SIGNED_ZERO):
        return read_stretches(reader, differences), None
    zeros = read_flags(reader, count)
    places = np.flatnonzero(~zeros)
    kept = read_stretches(reader, scratch("kept", len(places), layout.unsigned))
    if not kept.any():
        return None, zeros
    differences[:] = 0
    differences[places] = kept
    return differences, zeros


def _sign_bit(layout: Layout) -> Unsigned:
    return np.array(1 << (layout.bits - 1), layout.unsigned)


def _zeros(elements: Unsigned, parents: Unsigned, layout: Layout) -> int:
    """Which kind of zero many numbers became, if they did."""
    some = elements[::_SAMPLED]
    if layout.mantissa is None or len(some) - np.count_nonzero(some << 1) < _MANY_ZEROS * len(some) / 2:
        return 0
    found = {how: np.count_nonzero(_became_zero(elements, parents, layout, how)) for how in (_ZERO, _SIGNED_ZERO)}
    how = max(found, key=lambda how: found[how])
    return how if found[how] >= _MANY_ZEROS * len(elements) else 0


def _became_zero(elements: Unsigned, parents: Unsigned, layout: Layout, how: int) -> Flags:
    flags: Flags = elements == (parents & _sign_bit(layout) if how == _SIGNED_ZERO else 0)
    flags &= (parents << 1) != 0
    return flags


def _counts_until(flags: Flags, ends: list[int]) -> list[int]:
    """How many flags are set before each end."""
    total, start, counts = 0, 0, []
    for end in ends:
        total += int(np.count_nonzero(flags[start:end]))
        counts.append(total)
        start = end
    return counts
