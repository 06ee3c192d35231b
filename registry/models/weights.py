"""Two tensors held against each other as numbers: how far, how much of it, in how many directions.

numpy and ml_dtypes do it over memory-mapped bytes, a chunk at a time, so that `mreg diff` needs no torch and no memory
to speak of. Where the bytes come from is in weight_sources.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

RANK_LIMIT = 4096
"""The rank is computed up to this smaller dimension: beyond it the eigenvalues cost minutes."""

SKETCHED_FROM = 1024
"""From this smaller dimension on, a few random vectors are tried before all eigenvalues are computed."""

_CHUNK = 1 << 18
_finfo: Any = ml_dtypes.finfo
_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
_INTEGERS: dict[str, Any] = {
    "BOOL": np.uint8,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it is stored: `data` are its raw bytes, little-endian and row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> Array:
        """The elements, in `shape`, without a copy.

        C64 gets a last dimension of 2. Packed dtypes (F4, F6) are given flat, as their bytes.
        """
        if self.dtype == "C64":
            return np.frombuffer(self.data, np.float32).reshape(*self.shape, 2)
        kind = _FLOATS.get(self.dtype) or _INTEGERS.get(self.dtype)
        return (
            np.frombuffer(self.data, np.uint8) if kind is None else np.frombuffer(self.data, kind).reshape(self.shape)
        )


@dataclass(frozen=True, slots=True)
class TensorChange:
    """How a tensor differs. What has no meaning is None: numbers of other shapes, a rank of a vector, an overflow.

    `max_abs`, `mean_abs`, `max_rel` and `rel_l2` = ‖a-b‖ / ‖a‖ are over the elements that are finite on both sides;
    `non_finite` counts those where only one side is finite, or two different infinities meet. Two NaNs are equal.
    `max_rel` is the largest |a-b| / max(|a|, |b|) of an element, so that it is 2 at most.
    `changed_fraction` counts elements whose bits differ (whose value differs, when the dtypes do). `max_ulps` counts
    the representable numbers between the two. `rank` is explained at `delta_rank`.
    """

    name: str
    dtype: tuple[str, str]
    shape: tuple[tuple[int, ...], tuple[int, ...]]
    max_abs: float | None = None
    mean_abs: float | None = None
    rel_l2: float | None = None
    changed_fraction: float | None = None
    non_finite: int = 0
    max_ulps: int | None = None
    max_rel: float | None = None
    rank: int | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether the numbers could be held against each other at all."""
        return self.changed_fraction is not None


def compare_tensors(name: str, a: Tensor, b: Tensor, *, rank: bool = True) -> TensorChange | None:
    """How `b` differs from `a`; None when they are the same in dtype, shape and every bit.

    Tensors of other shapes, and integers against floats, are only told apart, not measured.
    """
    if (a.dtype, a.shape) == (b.dtype, b.shape) and same_bytes(a.data, b.data):
        return None
    change = TensorChange(name, (a.dtype, b.dtype), (a.shape, b.shape))
    x, y = a.array(), b.array()
    if x.shape != y.shape or (a.dtype != b.dtype and not {a.dtype, b.dtype} <= _FLOATS.keys()):
        return change
    is_matrix = x.ndim == 2 and {a.dtype, b.dtype} <= _FLOATS.keys()
    # Infinities and NaNs are counted, and sums beyond float64 left out below; numpy need not warn of them too.
    with np.errstate(invalid="ignore", over="ignore"):
        measured = _measure(x.reshape(-1), y.reshape(-1), a.dtype == b.dtype)
        return replace(change, **measured, rank=delta_rank(x, y) if rank and is_matrix else None)


def delta_rank(a: Array, b: Array) -> int | None:
    """In how many directions `b - a` goes, beyond what rounding explains; None when too large or not finite.

    Counted are the singular values of the difference above a noise floor. Whoever added a low-rank delta had to round
    the sum to the dtype: that adds noise of up to half an ulp an element, and a matrix of independent noise of standard
    deviation s has a largest singular value of about s·(√m + √n). With s² = mean(ulp²)/12, the floor is twice that: 4
    means that four directions are stronger than rounding alone would make any. Directions weaker than that are lost,
    which in bf16 can be all of a gentle fine-tune. The floor is never below 1e-7 of the largest singular value, since
    they are found as roots of the eigenvalues of the smaller Gram matrix in float64; of a large one a sketch is tried
    first, which finds a few directions many times as quickly, and is not believed where it could be wrong.
    """
    rows, columns = a.shape
    if not 0 < min(rows, columns) <= RANK_LIMIT:
        return None
    if rows < columns:
        a, b = a.T, b.T
    tall, wide = a.shape
    squared_ulps = 0.0
    for x, y in _bands(a, b):
        if not np.isfinite(y - x).all():
            return None
        ulps = np.maximum(spacing(y, b.dtype), spacing(x, a.dtype) if a.dtype != b.dtype else 0)
        squared_ulps += float(np.sum(ulps**2))
    noise = math.sqrt(squared_ulps / (tall * wide) / 12) * (math.sqrt(tall) + math.sqrt(wide))

    def floor(largest: float) -> float:
        return max(2 * noise, 1e-7 * largest)

    if wide >= SKETCHED_FROM:
        from mreg.registry.proof import range_finder

        found = range_finder.count_above(lambda: (y - x for x, y in _bands(a, b)), wide, floor)
        if found is not None:
            return found
    gram = np.zeros((wide, wide))
    for x, y in _bands(a, b):
        delta = y - x
        # One matrix with itself: numpy then computes but half of the product.
        gram += delta.T @ delta
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    return int(np.sum(values > floor(float(values[-1]))))


def _bands(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """The rows of two matrices in float64, a few at a time."""
    step = max(1, _CHUNK // a.shape[1])
    for start in range(0, a.shape[0], step):
        yield a[start : start + step].astype(np.float64), b[start : start + step].astype(np.float64)


def _measure(x: Array, y: Array, same_dtype: bool) -> dict[str, Any]:
    largest = relative = total = squares = reference = 0.0
    changed = non_finite = ulps = finite = 0
    is_float = x.dtype.kind not in "iub"
    for a, b in _pairs(x, y):
        if is_float:
            p, q = a.astype(np.float64), b.astype(np.float64)
            changed += int(np.sum(_bits(a) != _bits(b) if same_dtype else (p != q) & ~(np.isnan(p) & np.isnan(q))))
            both = np.isfinite(p) & np.isfinite(q)
            if not both.all():
                non_finite += int(np.sum(~both & (p != q) & ~(np.isnan(p) & np.isnan(q))))
                a, b, p, q = a[both], b[both], p[both], q[both]
            if same_dtype:
                ulps = max(ulps, _largest_gap(_ordered(a), _ordered(b)))
            difference = np.abs(q - p)
        else:
            changed += int(np.sum(a != b))
            ulps = max(ulps, _largest_gap(a, b))
            p = a.astype(np.float64)
            # The larger less the smaller, as unsigned numbers: exact where a subtraction of int64 would overflow.
            difference = _gap(a, b).astype(np.float64)
            q = b.astype(np.float64)
        finite += p.size
        relative = max(relative, _largest_ratio(difference, np.maximum(np.abs(p), np.abs(q))))
        largest = max(largest, float(difference.max(initial=0.0)))
        total += float(difference.sum())
        squares += float(np.dot(difference, difference))
        reference += float(np.dot(p, p))
    return {
        "max_abs": _finite(largest),
        "mean_abs": _finite(total / max(finite, 1)),
        "rel_l2": _finite(math.sqrt(squares / reference)) if reference else (None if squares else 0.0),
        "changed_fraction": changed / x.size if x.size else 0.0,
        "non_finite": non_finite,
        "max_ulps": ulps if same_dtype else None,
        "max_rel": _finite(relative),
    }


def _largest_ratio(differences: Array, sizes: Array) -> float:
    """The largest quotient where there is a difference; then no size is zero."""
    apart = differences > 0
    return float((differences[apart] / sizes[apart]).max(initial=0.0))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pairs(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
    for start in range(0, x.size, _CHUNK):
        yield x[start : start + _CHUNK], y[start : start + _CHUNK]


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Whether two stretches of memory are equal, without copying them."""
    return len(a) == len(b) and all(
        np.array_equal(x, y) for x, y in _pairs(np.frombuffer(a, np.uint8), np.frombuffer(b, np.uint8))
    )


def _bits(x: Array) -> Array:
    return x.view(f"u{x.dtype.itemsize}")


def _ordered(x: Array) -> Array:
    """The bits as unsigned integers in the order of the numbers: neighbouring numbers differ by one.

    Both zeros come out as the same integer.
    """
    bits = _bits(x)
    if x.dtype == ml_dtypes.float8_e8m0fnu:
        return bits
    sign = bits.dtype.type(1 << (bits.dtype.itemsize * 8 - 1))
    magnitude = bits & (sign - bits.dtype.type(1))
    ordered: Array = np.where(bits & sign, sign - magnitude, sign + magnitude)
    return ordered


def _gap(a: Array, b: Array) -> Array:
    unsigned = f"u{a.dtype.itemsize}"
    high, low = np.maximum(a, b), np.minimum(a, b)
    result: Array = high.view(unsigned) - low.view(unsigned)
    return result


def _largest_gap(a: Array, b: Array) -> int:
    return int(_gap(a, b).max(initial=0))


def spacing(values: npt.NDArray[np.float64], dtype: Any) -> npt.NDArray[np.float64]:
    """The distance from each value to the next in `dtype`."""
    info = _finfo(dtype)
    _, exponent = np.frexp(np.abs(values))
    steps: npt.NDArray[np.float64] = np.ldexp(1.0, np.maximum(exponent - 1, info.minexp) - info.nmant)
    return steps
