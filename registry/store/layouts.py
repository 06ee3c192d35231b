"""How the bits of one element lie, for each dtype: what the codecs of stored tensors have to know of numbers.

Widths and places are part of the format of stored objects: what a dtype has here never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from mreg.registry.digests import Buffer

Unsigned = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Layout:
    """`width` bytes an element, little-endian. Floats have a sign, an exponent, then `mantissa` bits; integers None."""

    width: int
    mantissa: int | None = None

    @property
    def bits(self) -> int:
        """The bits of one element."""
        return 8 * self.width

    @property
    def key_mask(self) -> int:
        """Of the bits above the mantissa, those that order elements: the exponent's, the lowest eight of the widest."""
        assert self.mantissa is not None, "integers have no exponent"
        return (1 << min(8, self.bits - 1 - self.mantissa)) - 1

    @property
    def rotates(self) -> bool:
        """Whether the sign stands between the exponent and a byte of its own: in floats of several bytes."""
        return self.mantissa is not None and self.width > 1

    @property
    def unsigned(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The unsigned integers that have the same bits."""
        return np.dtype(f"<u{self.width}")

    def elements(self, content: Buffer) -> Unsigned:
        """The elements of a chunk, which holds whole ones, as unsigned integers; copied only if it lies across them."""
        assert len(content) % self.width == 0, f"{len(content)} bytes are no whole elements of {self.width} bytes"
        return np.require(np.frombuffer(content, self.unsigned), requirements="A")

    def content(self, elements: Unsigned) -> memoryview:
        """The bytes of elements, without a copy."""
        return elements.view(np.uint8).data


_LAYOUTS: Mapping[str, Layout] = {
    "F64": Layout(8, 52),
    "F32": Layout(4, 23),
    "C64": Layout(4, 23),
    "F16": Layout(2, 10),
    "BF16": Layout(2, 7),
    "F8_E4M3": Layout(1, 3),
    "F8_E4M3FNUZ": Layout(1, 3),
    "F8_E5M2": Layout(1, 2),
    "F8_E5M2FNUZ": Layout(1, 2),
    "I64": Layout(8),
    "U64": Layout(8),
    "I32": Layout(4),
    "U32": Layout(4),
    "I16": Layout(2),
    "U16": Layout(2),
}

_BYTES = Layout(1)


def layout_of(dtype: str) -> Layout:
    """The layout of a dtype of safetensors. A complex number is two floats; whatever is not known is bytes."""
    return _LAYOUTS.get(dtype, _BYTES)
