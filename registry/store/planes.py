"""A chunk of a tensor stored on its own: its elements cut into planes of bytes, each packed for itself.

Trained weights hardly compress as they are, since their signs and mantissas are noise. Their exponents are not: with
the sign rotated behind the mantissa, the exponent of most floats is one byte of its own, and the plane of these bytes
packs to a third.
"""

from __future__ import annotations

import numpy as np
from mreg.registry.digests import Buffer
from mreg.registry.models.weights import same_bytes
from mreg.registry.store.layouts import Layout, Unsigned, layout_of
from mreg.registry.store.packing import PIECE, Reader, Writer, scratch
from mreg.registry.store.packing import BadFrame as BadFrame

_STORED, _PLANES = range(2)


def encode(content: Buffer, dtype: str) -> bytes:
    """A frame of at most one byte more than the content. Law: `decode(encode(c, d), len(c), d) == c`, bit for bit."""
    layout = layout_of(dtype)
    writer = Writer(may_repeat=True)
    writer.byte(_PLANES)
    writer.elements(_rotated(layout.elements(content), layout))
    frame = writer.frame()
    return frame if len(frame) <= len(content) else b"".join((bytes([_STORED]), content))


def encode_proved(content: Buffer, dtype: str) -> bytes:
    """The same frame, after it gave the content back."""
    frame = encode(content, dtype)
    assert same_bytes(decode(frame, len(content), dtype), memoryview(content)), "planes gave back other bytes"
    return frame


def decode(frame: Buffer, size: int, dtype: str) -> memoryview:
    """The `size` bytes that were encoded. Raises BadFrame; allocates a few times `size`, whatever the frame says."""
    layout = layout_of(dtype)
    assert size % layout.width == 0, f"{size} bytes are no whole elements of {layout.width} bytes"
    reader = Reader(frame)
    method = reader.byte()
    if method == _STORED:
        content = reader.rest()
        if len(content) != size:
            raise BadFrame(f"it holds {len(content)} bytes instead of {size}")
        return content
    if method != _PLANES:
        raise BadFrame(f"it is encoded in the unknown way {method}")
    elements = np.empty(size // layout.width, layout.unsigned)
    reader.elements(elements)
    reader.end()
    return layout.content(_unrotated(elements, layout))


def _rotated(elements: Unsigned, layout: Layout) -> Unsigned:
    """Floats of several bytes with the sign behind the mantissa; others as they are."""
    if layout.mantissa is None or layout.width == 1:
        return elements
    out = scratch("rotated", len(elements), layout.unsigned)
    for start in range(0, len(elements), PIECE):
        piece, to = elements[start : start + PIECE], out[start : start + PIECE]
        np.left_shift(piece, 1, out=to)
        to |= piece >> (layout.bits - 1)
    return out


def _unrotated(elements: Unsigned, layout: Layout) -> Unsigned:
    """The inverse of `_rotated`; works in place."""
    if layout.mantissa is None or layout.width == 1:
        return elements
    for start in range(0, len(elements), PIECE):
        piece = elements[start : start + PIECE]
        sign = piece << (layout.bits - 1)
        piece >>= 1
        piece |= sign
    return elements
