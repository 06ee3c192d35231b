"""Between the dtypes of tensors: widened exactly, rounded to the nearest with ties to even. The same bits everywhere.

Predictions use nothing of numpy but what IEEE 754 settles for every single element: sums, differences, products,
quotients, comparisons, rounding to whole numbers, conversions. These are correctly rounded on every machine, in every
SIMD path and in any number of threads. Sums over elements, whose order numpy chooses, and fused multiply-adds are not
used. The payload of a NaN is what IEEE 754 leaves open: one that is computed becomes that of `NANS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction import UnknownOperation

KINDS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "I32": np.int32,
}
"""The dtypes that predictions know, by their names in safetensors."""

WIDE = ("F32", "F64")
NARROW = ("BF16", "F16")
COMMON = ("F32", "F16", "BF16")
FLOATS = ("F64", *COMMON)

NANS: dict[str, int] = {
    "F64": 0x7FF8 << 48,
    "F32": 0x7FC0 << 16,
    "F16": 0x7E00,
    "BF16": 0x7FC0,
    "F8_E4M3": 0x7F,
    "F8_E5M2": 0x7F,
}
"""The bits of the one NaN that comes out."""

BLOCK = 1 << 14
"""Elements that are worked on at once, so that what lies between two operations stays in the cache."""

_BUFFER = 256
_PROBE = (np.array([1.0, 2.0**-126, 1.0 + 2.0**-23], np.float32), np.array([2.0**-24, 0.5, 2.0**-24], np.float32))


@contextmanager
def sound_arithmetic() -> Iterator[None]:
    """Arithmetic as IEEE 754 has it, and quiet. Raises UnknownOperation where this thread has been told to do another.

    A library built with -ffast-math makes the processor drop subnormal numbers, in every thread that loads it.
    """
    with np.errstate(all="ignore"):
        # Copies into numpy's buffers cost more than short inner loops do. Undone with errstate.
        np.setbufsize(_BUFFER)
        one, other = _PROBE
        # To nearest, ties to even; and half of the smallest normal number is none of zero.
        if (one + other).tolist() != [1.0, 0.5, 1.0 + 2.0**-22] or float((one * other)[1]) != 2.0**-127:
            raise UnknownOperation(
                "a prediction cannot be computed here: a library has switched this process to another arithmetic than"
                " IEEE 754 with rounding to nearest and subnormal numbers"
            )
        yield


def pieces(count: int) -> Iterator[slice]:
    """So many elements, a block at a time."""
    return (slice(start, min(count, start + BLOCK)) for start in range(0, count, BLOCK))


def leave(values: Array, stays: Array) -> None:
    """Set the float32 elements to +0 that do not stay, whatever they are. Several times faster than by index."""
    mask = stays.astype(np.int32)
    bits = values.view(np.int32)
    np.bitwise_and(bits, np.negative(mask, out=mask), out=bits)


def widen(array: Array, out: Array) -> None:
    """Every element as it is, in float32 or float64; float64 into float32 is rounded."""
    if array.dtype == np.float16 and out.dtype == np.float32:
        # numpy converts a half at a time on processors that have no instruction for it.
        np.take(_halves(), array.view(np.uint16), out=out, mode="wrap")
    elif array.dtype.itemsize == 1:
        np.take(_bytes(array.dtype), array.view(np.uint8), out=out, mode="wrap")
    else:
        np.copyto(out, array, casting="unsafe")


def narrow(values: Array, out: Array, dtype: str) -> None:
    """float32 or float64 rounded into `out`; float64 goes to what is narrower than float32 by way of float32.

    What is too large becomes infinite, or a NaN in F8_E4M3, which has no infinity.
    """
    if values.dtype == np.float64 and dtype not in WIDE:
        values = values.astype(np.float32)
    if dtype.startswith("F8"):
        out.view(np.uint8)[...] = _to_bytes(values, dtype)
    else:
        np.copyto(out, values, casting="unsafe")
    bad = np.isnan(values)
    if bad.any():
        out.view(f"u{out.dtype.itemsize}")[bad] = NANS[dtype]


def settle(values: Array, dtype: str) -> None:
    """float32 rounded in place to a narrower dtype, as if it had been stored in between."""
    np.copyto(values, values.astype(KINDS[dtype]))


def _to_bytes(values: Array, dtype: str) -> Array:
    """float32 to 8 bits: a sign, 4 or 5 bits of exponent, the rest mantissa."""
    exponent, mantissa = (4, 3) if dtype == "F8_E4M3" else (5, 2)
    bias, dropped = 2 ** (exponent - 1) - 1, 23 - mantissa
    bits = values.view(np.uint32)
    sizes = bits & np.uint32(0x7FFFFFFF)
    normal = (
        sizes + (np.uint32((1 << (dropped - 1)) - 1) + ((sizes >> np.uint32(dropped)) & np.uint32(1)))
    ) >> np.uint32(dropped)
    # A float32 of this size has the smallest subnormal as its last bit: the addition does the rounding.
    shift = np.float32(2.0 ** (1 - bias - mantissa + 23))
    small = (sizes.view(np.float32) + shift).view(np.uint32) - shift.view(np.uint32)
    smallest = np.float32(2.0 ** (1 - bias)).view(np.uint32)
    rounded = np.where(sizes < smallest, small, normal - np.uint32((127 - bias) << mantissa))
    beyond = np.uint32(0x7F if dtype == "F8_E4M3" else 0x7C)
    result: Array = (np.minimum(rounded, beyond) | (bits >> np.uint32(24)) & np.uint32(0x80)).astype(np.uint8)
    return result


@cache
def _halves() -> Array:
    table: Array = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    return table


@cache
def _bytes(kind: Any) -> Array:
    table: Array = np.arange(1 << 8, dtype=np.uint8).view(kind).astype(np.float32)
    return table
