"""Quantized matrices as they are stored: integers or 8-bit floats, and the scales that say what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor, spacing
from mreg.registry.proof import evidence
from mreg.registry.proof.evidence import Floats

FLOATS8 = ("F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Grid:
    """A quantized matrix: what is stored, and the points it stands for. `scale` fits the matrix by broadcasting.

    `stored` are integers, or 8-bit floats, which have no `low` and `high` but their own steps.
    """

    name: str
    stored: Floats
    scale: Floats
    zero: Floats | float
    bits: int
    dtype: str
    groups: int = 1

    @property
    def restored(self) -> Floats:
        """The weights that come back."""
        return (self.stored - self.zero) * self.scale

    @property
    def steps(self) -> Floats:
        """How far each weight is from the next point."""
        apart = spacing(self.stored, evidence.DTYPES[self.dtype]) if self.dtype in FLOATS8 else 1.0
        return apart * np.abs(self.scale)

    def off(self, weight: Tensor) -> float:
        """The fraction of weights that did not go to the nearest point, or that lie beyond all of them.

        A weight half-way between two points, as far as float32 can tell, may go to either.
        """
        place = evidence.numbers(weight) / np.where(self.scale == 0, 1.0, self.scale) + self.zero
        if self.dtype in FLOATS8:
            kind = evidence.DTYPES[self.dtype]
            highest = float(evidence.largest(kind))
            apart = np.maximum(spacing(self.stored, kind), spacing(np.clip(place, -highest, highest), kind))
            far = np.abs(np.clip(place, -highest, highest) - self.stored) > apart * (0.5 + 2e-3)
            return float(np.mean(far | (np.abs(place) > highest * (1 + 2.0**-4))))
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        far = np.abs(np.clip(place, low, high) - self.stored) > 0.5 + 2e-3
        beyond = (place < low - 1 - abs(low) * 2.0**-7) | (place > high + 1 + high * 2.0**-7)
        return float(np.mean(far | beyond))

    def misfit(self, weight: Tensor) -> float:
        """How unevenly the largest weights of the groups fill the range of their scales; 0 where they are its own."""
        exact = evidence.numbers(weight)
        if self.scale.size == 1 or exact.shape[1] % self.groups:
            return 0.0
        grouped = exact.reshape(exact.shape[0], self.groups, -1)
        if isinstance(self.zero, float):
            largest = np.abs(grouped).max(axis=2)
        else:
            largest = grouped.max(axis=2).clip(0) - grouped.min(axis=2).clip(None, 0)
        scale = np.abs(np.broadcast_to(self.scale, exact.shape)).reshape(grouped.shape)[:, :, 0]
        filled = largest / np.where(scale == 0, 1.0, scale)
        return float(np.std(filled) / max(float(np.mean(filled)), 1e-300))


def quantized(source: TensorSource, output: TensorSource) -> list[str]:
    """The weights that `output` holds as integers or 8-bit floats with scales, by the names they have in `source`."""
    held = set(output.names())
    packed = {name.removesuffix("_packed") for name in held if name.endswith(".weight_packed")}
    whole = {
        name
        for name in held & set(source.names())
        if output.layout(name)[0] in ("I8", *FLOATS8)
        and source.layout(name)[0] not in ("I8", *FLOATS8)
        and _scale_of(held, name) is not None
    }
    return sorted(packed | whole)


def grid_of(output: TensorSource, name: str, weight: Tensor | None, bits: int | None = None) -> Grid | str:
    """A quantized matrix as it is stored, or why it cannot be that of `weight`."""
    held = set(output.names())
    scaling = _scale_of(held, name)
    if weight is None or len(weight.shape) != 2:
        return f"the source has no matrix {name}"
    if scaling is None:
        return f"{name} has no scales"
    rows, columns = weight.shape
    scale = evidence.numbers(output.tensor(scaling))
    if scaling.endswith(".SCB"):
        scale = scale / 127
    groups = _groups(scale, rows, columns)
    if groups is None:
        return f"{scaling} does not fit {rows}x{columns}"
    scale = np.repeat(groups, columns // groups.shape[1], axis=1) if groups.size > 1 else groups
    if f"{name}_packed" not in held:
        stored = output.tensor(name)
        if stored.shape != weight.shape:
            return f"{name} has another shape"
        return Grid(
            name,
            evidence.numbers(stored),
            scale,
            _plain_zero(output, name, rows, columns),
            8,
            stored.dtype,
            groups.shape[1],
        )
    words = output.tensor(f"{name}_packed")
    bits = bits or 32 * words.shape[1] // columns
    if bits not in (2, 4, 8) or words.shape != (rows, -(-columns * bits // 32)):
        return f"{name}_packed does not hold {rows}x{columns} numbers"
    integers = evidence.unpacked(words, bits, columns).astype(np.float64)
    zero = _packed_zero(output, name, bits, rows, columns)
    return Grid(name, integers, scale, zero, bits, "I8", groups.shape[1])


def _scale_of(held: set[str], name: str) -> str | None:
    module = name.removesuffix("weight")
    return next((one for one in (f"{name}_scale", f"{module}scale", f"{module}SCB") if one in held), None)


def _groups(scale: Floats, rows: int, columns: int) -> Floats | None:
    """Scales as (rows, groups), or as one number for all."""
    if scale.size == 1:
        return scale.reshape(1, 1)
    if scale.size % rows or columns % (scale.size // rows):
        return None
    return scale.reshape(rows, -1)


def _plain_zero(output: TensorSource, name: str, rows: int, columns: int) -> Floats | float:
    if f"{name}_zero_point" not in set(output.names()):
        return 0.0
    groups = _groups(evidence.numbers(output.tensor(f"{name}_zero_point")), rows, columns)
    if groups is None:
        return 0.0
    return np.repeat(groups, columns // groups.shape[1], axis=1) if groups.size > 1 else groups


def _packed_zero(output: TensorSource, name: str, bits: int, rows: int, columns: int) -> Any:
    if f"{name}_zero_point" not in set(output.names()):
        return 0.0
    # Packed along the rows, unlike the weights.
    turned = evidence.turned(output.tensor(f"{name}_zero_point"))
    zero = evidence.unpacked(turned, bits, rows).T.astype(np.float64)
    return np.repeat(zero, columns // zero.shape[1], axis=1)
