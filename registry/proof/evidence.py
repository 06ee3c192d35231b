"""What two or more tensors say about how one was made of the others: numbers only, in numpy. Pure.

Every function works over the whole of one tensor and never over a model, so that memory stays at one tensor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from mreg.registry.models.weights import Array, Tensor, same_bytes, spacing

ROUNDS = 4
"""Of least squares, when rows and columns are scaled in turn."""

POWERS = 6
"""Times that a matrix is applied to a few vectors to find its largest singular value."""

Floats = npt.NDArray[np.float64]

_finfo: Any = ml_dtypes.finfo

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


def largest(dtype: Any) -> float:
    """The largest finite number of a dtype."""
    return float(_finfo(dtype).max)


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


def turned(matrix: Tensor) -> Tensor:
    """The same matrix with rows and columns changed over."""
    array = np.ascontiguousarray(matrix.array().T)
    return Tensor(matrix.dtype, array.shape, memoryview(array.tobytes()))


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


def rounding_error(weight: Tensor, restored: Floats) -> float:
    """`‖restored - weight‖ / ‖weight‖`."""
    return distance(numbers(weight), restored)


def distance(exact: Floats, other: Floats) -> float:
    """`‖other - exact‖ / ‖exact‖`."""
    return length(other - exact) / max(length(exact), 1e-300)


def length(numbers: Floats) -> float:
    """The L2 norm."""
    return float(np.sqrt(np.sum(np.square(numbers))))


@dataclass(frozen=True)
class Captured:
    """How `B·A` lies in a difference D, relatively.

    `size` is ‖D‖². `beside` is how far B·A is from the part of D that lies in the columns of B, and `larger_left` the
    largest singular value of D - B·A over the smallest of B·A: up to 1 where those of the largest values were taken.
    """

    size: float
    beside: float
    larger_left: float


def captured(delta: Floats, b: Floats, a: Floats) -> Captured:
    """What of a difference is held by factors. Power iterations tell the largest singular value of the rest, from
    below."""
    size = float(np.linalg.norm(delta))
    kept = np.abs(b).max(axis=0, initial=0.0) > 0
    left, right = b[:, kept], a[kept]
    if not left.size or not size:
        return Captured(size**2, 0.0 if not size and not left.size else 1.0, 0.0)
    basis, triangle = np.linalg.qr(left)
    product = left @ right
    beside = float(np.linalg.norm(product - basis @ (basis.T @ delta))) / size
    smallest = float(np.linalg.svd(triangle @ right, compute_uv=False)[left.shape[1] - 1])
    rest = delta - product
    vector = np.random.default_rng(0).normal(size=(rest.shape[1], 4))
    for _ in range(POWERS):
        vector, _ = np.linalg.qr(rest.T @ (rest @ vector))
    largest_left = float(np.linalg.norm(rest @ vector, axis=0).max(initial=0.0))
    return Captured(size**2, beside, largest_left / max(smallest, 1e-300))


def step_error(step: Floats, restored: Floats) -> float:
    """The relative error that rounding to the nearest of points `step` apart makes on average: `step / √12` each."""
    size = max(float(np.linalg.norm(restored)), 1e-300)
    return float(np.sqrt(np.sum(np.broadcast_to(step, restored.shape) ** 2) / 12)) / size


def rescaled(weight: Tensor, restored: Floats) -> tuple[float, Floats]:
    """How far `restored` is from the weight with each row and each column scaled as fits best, relatively to itself;
    and those scales of the columns.

    Least squares for the columns and for the rows in turn, which settle within a few rounds.
    """
    exact = numbers(weight)
    rows, columns = np.ones((exact.shape[0], 1)), np.ones((1, exact.shape[1]))
    for _ in range(ROUNDS):
        given = exact * rows
        columns = _ratio(np.sum(restored * given, axis=0, keepdims=True), np.sum(given**2, axis=0, keepdims=True))
        given = exact * columns
        rows = _ratio(np.sum(restored * given, axis=1, keepdims=True), np.sum(given**2, axis=1, keepdims=True))
    return distance(restored, exact * rows * columns), columns.reshape(-1)


def _ratio(above: Floats, below: Floats) -> Floats:
    result: Floats = np.divide(above, below, out=np.ones_like(above), where=below > 0)
    return result
