"""Operations that add models up: casts, weighted sums, task vectors. Each operation is rounded by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction_rounding import (
    BLOCK,
    COMMON,
    FLOATS,
    KINDS,
    NARROW,
    WIDE,
    leave,
    narrow,
    pieces,
    settle,
    widen,
)
from mreg.registry.store.prediction_terms import Asked, Given

_EIGHTS = ("F8_E4M3", "F8_E5M2")


def cast(asked: Asked) -> Array:
    """Each element rounded to the dtype. float64 goes to what is narrower than float32 by way of float32."""
    asked.params.end()
    asked.expect(1)
    asked.expect_dtype(asked.dtype, (*FLOATS, *_EIGHTS))
    (given,) = asked.alike((*FLOATS, *_EIGHTS))
    result = _empty(asked)
    wide = _buffer("F64" if "F64" in (asked.inputs[0].dtype, asked.dtype) else "F32", len(result))
    for part in pieces(len(result)):
        values = wide[: part.stop - part.start]
        widen(given[part], values)
        narrow(values, result[part], asked.dtype)
    return result


def linear(asked: Asked) -> Array:
    """`0 + w₁·t₁ + w₂·t₂ + …`, from the left; in 16 bits each product and sum is that of float32, rounded once more."""
    arithmetic = asked.params.choice("arithmetic", *WIDE, *NARROW)
    wide = arithmetic if arithmetic in WIDE else "F32"
    factors = [KINDS[wide](one) for one in asked.params.numbers("weights", len(asked.inputs))]
    asked.params.end()
    asked.expect_dtype(asked.dtype, FLOATS)
    given = asked.alike(FLOATS)
    result = _empty(asked)
    sums, products = _buffer(wide, len(result)), _buffer(wide, len(result))
    for part in pieces(len(result)):
        total, product = sums[: part.stop - part.start], products[: part.stop - part.start]
        total.fill(0)
        for array, factor in zip(given, factors, strict=True):
            widen(array[part], product)
            np.multiply(product, factor, out=product)
            if arithmetic in NARROW:
                settle(product, arithmetic)
            np.add(total, product, out=total)
            if arithmetic in NARROW:
                settle(total, arithmetic)
        narrow(total, result[part], asked.dtype)
    return result


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays of a task vector: all, what is large, or what a stream of random numbers says."""

    above: np.float32 | None = None
    until: int = 0
    density: float = 1.0
    stream: bytes = b""

    @classmethod
    def parse(cls, params: Given) -> _Kept:
        by = params.choice("by", "all", "size", "chance")
        if by == "size":
            size = params.number("above")
            kept = cls(above=np.float32(size), until=params.whole("until"))
            if size < 0 or float(np.float32(size)) != size:
                raise params.refusal("above is no size in float32")
        elif by == "chance":
            kept = cls(density=params.number("density"), stream=params.text("stream").encode())
            if not 0 < kept.density < 1 or not kept.stream:
                raise params.refusal("density is not between 0 and 1, or the stream has no name")
        else:
            kept = cls()
        params.end()
        return kept

    def apply(self, vector: Array, start: int) -> None:
        """Leave nothing else of the elements from `start` on."""
        if self.above is not None:
            sizes = np.abs(vector)
            first = min(max(self.until - start, 0), len(vector))
            leave(vector[:first], sizes[:first] >= self.above)
            leave(vector[first:], sizes[first:] > self.above)
        elif self.stream:
            drawn = blake3(self.stream).digest(length=4 * len(vector), seek=4 * start)
            np.divide(vector, np.float32(self.density), out=vector)
            # Whole numbers are below a limit exactly if they are not above the whole number before it.
            leave(vector, np.frombuffer(drawn, "<u4") <= np.uint32(math.ceil(self.density * 2**32) - 1))


def task_vectors(asked: Asked) -> Array:
    """`base + scale · Σ w·kept(t - base)` (task arithmetic); with `elect` only what has the sign of its sum counts."""
    params, count = asked.params, len(asked.inputs) - 1
    if count < 1:
        raise params.refusal("it takes a base and a model or more")
    params.choice("arithmetic", "F32")
    weights = params.numbers("weights", count)
    factors = [np.float32(one) for one in weights]
    scale, normalize, elect = np.float32(params.number("scale")), params.flag("normalize"), params.flag("elect")
    kept = [_Kept.parse(params.within("kept", one)) for one in params.items("kept", count)]
    params.end()
    asked.expect_dtype(asked.dtype, FLOATS)
    base, *models = asked.alike(COMMON)
    result = _empty(asked)
    bases, vectors = _buffer("F32", len(result)), [_buffer("F32", len(result)) for _ in models]
    for part in pieces(len(result)):
        size = part.stop - part.start
        origin, weighted = bases[:size], [vector[:size] for vector in vectors]
        widen(base[part], origin)
        for array, vector, keep, factor in zip(models, weighted, kept, factors, strict=True):
            widen(array[part], vector)
            np.subtract(vector, origin, out=vector)
            keep.apply(vector, asked.start + part.start)
            np.multiply(vector, factor, out=vector)
        total = _elected(weighted, factors, normalize=normalize) if elect else _added(weighted, weights, normalize)
        np.multiply(total, scale, out=total)
        np.add(origin, total, out=total)
        narrow(total, result[part], asked.dtype)
    return result


def _added(weighted: list[Array], weights: list[float], normalize: bool) -> Array:
    total = weighted[0]
    for vector in weighted[1:]:
        np.add(total, vector, out=total)
    if normalize:
        divisor = 0.0
        # Not `sum`, which Python has begun to compute more exactly.
        for weight in weights:
            divisor += weight
        np.divide(total, np.float32(divisor), out=total)
    return total


def _elected(weighted: list[Array], factors: list[np.float32], *, normalize: bool) -> Array:
    total = weighted[0].copy()
    for vector in weighted[1:]:
        np.add(total, vector, out=total)
    up = total >= 0
    down = ~up
    total.fill(0)
    divisor, share = np.zeros_like(total), np.empty_like(total)
    for vector, factor in zip(weighted, factors, strict=True):
        # What is zero has no sign and agrees with nobody.
        agrees = (up & (vector > 0)) | (down & (vector < 0))
        leave(vector, agrees)
        np.add(total, vector, out=total)
        np.copyto(share, agrees)
        np.add(divisor, np.multiply(share, factor, out=share), out=divisor)
    if normalize:
        np.copyto(share, divisor == 0)
        np.divide(total, np.add(divisor, share, out=divisor), out=total)
    return total


def _empty(asked: Asked) -> Array:
    return np.empty(asked.stop - asked.start, KINDS[asked.dtype])


def _buffer(dtype: str, count: int) -> Array:
    return np.empty(min(BLOCK, count), KINDS[dtype])
