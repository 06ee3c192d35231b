"""What two or more tensors say about how one was made of the others: numbers only, in numpy. Pure.

Every function works over the whole of one tensor and never over a model, so that memory stays at one tensor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from mreg.registry.weights import Array, Tensor, same_bytes, spacing

Floats = npt.NDArray[np.float64]

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
"""The dtypes in which weights are held against each other, by their names in safetensors."""

FP32_ROUNDING = 2.0**-23
"""The relative error of one operation in float32, twice over."""


def numbers(tensor: Tensor) -> Floats:
    """The elements in float64, exactly."""
    return tensor.array().astype(np.float64)


def is_float(tensor: Tensor) -> bool:
    """Whether its elements are floating-point numbers that can be compared."""
    return tensor.dtype in DTYPES


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether the two are one tensor."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and same_bytes(a.data, b.data)


def is_cast(source: Tensor, output: Tensor) -> bool:
    """Whether `output` is `source`, each element rounded to the nearest of its dtype."""
    if source.shape != output.shape or not is_float(source) or not is_float(output):
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        expected = source.array().astype(DTYPES[output.dtype])
    return same_bytes(memoryview(expected.tobytes()), output.data)


def worst_excess(output: Tensor, exact: Floats, error: Floats | float = 0.0) -> float:
    """How far `output` is from rounding `exact` once, in steps of its dtype: up to 0.5 is what rounding explains.

    `error` is what the computation itself may have lost, absolutely; it is given to the output's benefit.
    """
    got = numbers(output)
    steps = np.maximum(spacing(got, DTYPES[output.dtype]), spacing(exact, DTYPES[output.dtype]))
    off = np.maximum(np.abs(got - exact) - error, 0.0) / steps
    return float(off.max(initial=0.0))


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> tuple[Floats, Floats]:
    """`Σ w·t` in float64, and what float32 may lose of it."""
    total, size = np.zeros(tensors[0].shape), np.zeros(tensors[0].shape)
    for tensor, weight in zip(tensors, weights, strict=True):
        product = numbers(tensor) * weight
        total += product
        size += np.abs(product)
    return total, size * FP32_ROUNDING * len(tensors)


def with_low_rank(base: Tensor, b: Tensor, a: Tensor, scale: float) -> tuple[Floats, Floats]:
    """`W + scale·B·A` in float64, and what float32 may lose of it."""
    left, right = numbers(b), numbers(a)
    weight = numbers(base)
    lost = np.abs(weight) + abs(scale) * (np.abs(left) @ np.abs(right))
    return weight + scale * (left @ right), lost * FP32_ROUNDING * (1 + right.shape[0])


def survivors_changed(source: Tensor, output: Tensor) -> int:
    """How many elements that are not zero are not what they were, bit for bit."""
    before, after = source.array(), output.array()
    alive = after != 0
    if source.dtype != output.dtype:
        return int(np.sum(before[alive].astype(np.float64) != after[alive].astype(np.float64)))
    bits = f"u{after.dtype.itemsize}"
    return int(np.sum(before.view(bits)[alive] != after.view(bits)[alive]))


def zeros(tensor: Tensor) -> Array:
    """Where the zeros are."""
    found: Array = tensor.array() == 0
    return found


def out_of_order(source: Tensor, output: Tensor, groups: tuple[int, int] | None) -> int:
    """In how many groups a weight was removed that is larger than one that was kept.

    `groups` is the shape in which the weights of a matrix compete, one row a group; None for all of them together.
    """
    sizes = np.abs(numbers(source))
    gone = zeros(output) & (sizes > 0)
    kept = ~zeros(output)
    shape = groups or (1, sizes.size)
    largest_gone = np.where(gone, sizes, -np.inf).reshape(shape).max(axis=1)
    smallest_kept = np.where(kept, sizes, np.inf).reshape(shape).min(axis=1)
    return int(np.sum(largest_gone > smallest_kept))


def unpacked(packed: Tensor, bits: int, columns: int) -> npt.NDArray[np.int32]:
    """The signed integers of compressed-tensors' pack-quantized format: `32 // bits` in an int32, lowest bits first."""
    words = packed.array().view(np.uint32)
    per_word = 32 // bits
    parts = np.stack(
        [(words >> np.uint32(bits * place)) & np.uint32(2**bits - 1) for place in range(per_word)], axis=-1
    )
    integers: npt.NDArray[np.int32] = parts.reshape(words.shape[0], -1)[:, :columns].astype(np.int32)
    return integers - np.int32(2 ** (bits - 1))


def off_grid(weight: Tensor, integers: Array, scale: Tensor, zero_point: Array | None, low: int, high: int) -> float:
    """The fraction of weights that are not stored as the nearest point of the grid that their scale spans.

    A weight half-way between two points, as far as float32 can tell, may go to either.
    """
    exact = numbers(weight)
    rows, columns = exact.shape
    scales = np.repeat(numbers(scale), columns // scale.shape[1], axis=1)
    offset = np.zeros(1) if zero_point is None else np.repeat(zero_point, columns // zero_point.shape[1], axis=1)
    place = np.clip(exact / scales + offset, low, high)
    return float(np.sum(np.abs(place - integers) > 0.5 + 2e-3) / (rows * columns))


def rounding_error(weight: Tensor, restored: Floats) -> float:
    """`‖restored - weight‖ / ‖weight‖`."""
    exact = numbers(weight)
    return float(np.linalg.norm(restored - exact) / max(float(np.linalg.norm(exact)), 1e-300))
