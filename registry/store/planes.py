"""A chunk of a tensor stored on its own: its elements cut into planes of bytes, each packed for itself.

Trained weights hardly compress as they are, since their signs and mantissas are noise. Their exponents are not: with
the sign rotated behind the mantissa, the exponent of most floats is one byte of its own, and the plane of these bytes
packs to a third.
"""

from __future__ import annotations

import numpy as np
from mreg.registry.digests import Buffer
from mreg.registry.store import kernels
from mreg.registry.store.kernels import Plane
from mreg.registry.store.layouts import layout_of
from mreg.registry.store.packing import BadFrame as BadFrame
from mreg.registry.store.packing import Reader, Writer
from mreg.registry.store.scratch import scratch

_STORED, _PLANES = range(2)


def encode(content: Buffer, dtype: str) -> bytes:
    """A frame of at most one byte more than the content. Law: `decode(encode(c, d), len(c), d) == c`, bit for bit."""
    layout = layout_of(dtype)
    writer = Writer(may_repeat=True)
    writer.byte(_PLANES)
    writer.elements(layout.elements(content), rotate=layout.rotates)
    frame = writer.frame()
    return frame if len(frame) <= len(content) else b"".join((bytes([_STORED]), content))


def encode_proved(content: Buffer, dtype: str) -> bytes:
    """The same frame, after it gave the content back."""
    frame = encode(content, dtype)
    proof = scratch("proof", len(content))
    assert kernels.same(decode(frame, len(content), dtype, proof), content), "planes gave back other bytes"
    return frame


def decode(frame: Buffer, size: int, dtype: str, into: Plane | None = None) -> memoryview:
    """The `size` bytes that were encoded, written `into` memory of that size or longer, if they have to be anywhere.

    Raises BadFrame; allocates a few times `size`, whatever the frame says.
    """
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
    out = np.empty(size, np.uint8) if into is None else into[:size]
    elements = out.view(layout.unsigned)
    reader.elements(elements, rotate=layout.rotates)
    reader.end()
    return layout.content(elements)
