"""Operations that compute nothing: weights that are set to zero, and rows or columns that are left out.

Magnitudes are compared as the bits of floats without their sign, whose order is that of the numbers; NaNs are largest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction_rounding import BLOCK, FLOATS, KINDS, pieces
from mreg.registry.store.prediction_terms import Asked

_FEW = 8
"""Group sizes up to here are ranked by comparing every pair."""


def same(asked: Asked) -> Array:
    """The input."""
    asked.params.end()
    asked.expect(1)
    asked.expect_shape(0, asked.shape)
    asked.expect_dtype(asked.dtype, (asked.inputs[0].dtype,))
    return asked.inputs[0].read(asked.start, asked.stop)


def threshold(asked: Asked) -> Array:
    """`w` where `|w| > size`, or `|w| = size` from the element `until` on; otherwise +0."""
    size, until = asked.params.number("size"), asked.params.whole("until")
    asked.params.end()
    asked.expect(1)
    given = _floats(asked)
    limit = _bits(np.array([size], KINDS[asked.dtype]))
    if size < 0 or float(limit.view(KINDS[asked.dtype])[0]) != size:
        raise asked.params.refusal(f"size is no magnitude in {asked.dtype}")
    bits = _bits(given)
    result = np.empty_like(bits)
    first = min(max(until - asked.start, 0), len(bits))
    for start, stop, beaten in ((0, first, np.greater), (first, len(bits), np.greater_equal)):
        for part in pieces(stop - start):
            values = bits[start:stop][part]
            stays = beaten(_magnitudes(values), limit)
            np.multiply(values, stays, out=result[start:stop][part])
    return result.view(KINDS[asked.dtype])


def n_of_m(asked: Asked) -> Array:
    """Of every `of` neighbours in a row the `keep` largest, the others +0; of equal ones the first go."""
    of = asked.params.whole("of", least=1)
    keep = asked.params.whole("keep")
    asked.params.end()
    asked.expect(1)
    if keep > of or not asked.shape or asked.shape[-1] % of:
        raise asked.params.refusal(f"{keep} of {of} does not fit the shape {list(asked.shape)}")
    first, last = asked.start // of, -(-asked.stop // of)
    bits = _bits(_floats(asked, first * of, last * of)).reshape(-1, of)
    result = np.empty_like(bits)
    step = max(1, BLOCK // of)
    for start in range(0, len(bits), step):
        group = bits[start : start + step]
        goes = _smallest_of_few if of <= _FEW else _smallest
        np.multiply(group, ~goes(_magnitudes(group), of - keep), out=result[start : start + step])
    flat = result.reshape(-1)[asked.start - first * of : asked.stop - first * of]
    return flat.view(KINDS[asked.dtype])


def _smallest_of_few(sizes: Array, count: int) -> Array:
    """Which are the `count` smallest of each row: those that so many do not come before."""
    places = np.ascontiguousarray(sizes.T)
    before = np.zeros(places.shape, np.uint8)
    for later in range(len(places)):
        for earlier in range(later):
            first = places[earlier] <= places[later]
            before[later] += first
            before[earlier] += ~first
    return (before < count).T


def _smallest(sizes: Array, count: int) -> Array:
    if count == 0:
        return np.zeros(sizes.shape, bool)
    limit = np.partition(sizes, count - 1, axis=1)[:, count - 1 : count]
    smaller, equal = sizes < limit, sizes == limit
    left = count - np.count_nonzero(smaller, axis=1)[:, None]
    result: Array = smaller | (equal & (np.cumsum(equal, axis=1, dtype=np.int64) <= left))
    return result


def take(asked: Asked) -> Array:
    """Some rows of a tensor or some columns of a matrix, as runs of `[first, count]`, in that order."""
    axis = asked.params.choice("axis", "rows", "columns")
    runs = [_run(asked, one) for one in asked.params.items("runs")]
    asked.params.end()
    asked.expect(1)
    shape = tuple(asked.inputs[0].shape)
    place = 0 if axis == "rows" else 1
    asked.expect_dtype(asked.dtype, tuple(KINDS))
    asked.expect_dtype(asked.inputs[0].dtype, (asked.dtype,))
    total = sum(count for _, count in runs)
    if len(shape) <= place or (*shape[:place], total, *shape[place + 1 :]) != asked.shape:
        raise asked.params.refusal(f"what it takes of {list(shape)} is not {list(asked.shape)}")
    if any(first + count > shape[place] for first, count in runs):
        raise asked.params.refusal(f"a run goes beyond the {shape[place]} {axis}")
    return _rows_of(asked, shape, runs) if axis == "rows" else _columns_of(asked, shape, runs, total)


def _run(asked: Asked, value: Any) -> tuple[int, int]:
    whole = isinstance(value, (list, tuple)) and len(value) == 2 and all(type(one) is int for one in value)
    if not whole or value[0] < 0 or value[1] < 1:
        raise asked.params.refusal("a run is no [first, count]")
    return value[0], value[1]


def _rows_of(asked: Asked, shape: tuple[int, ...], runs: list[tuple[int, int]]) -> Array:
    row, at = math.prod(shape[1:]), 0
    parts = []
    for first, count in runs:
        start, stop = max(asked.start, at), min(asked.stop, at + count * row)
        if start < stop:
            parts.append(asked.inputs[0].read(first * row + start - at, first * row + stop - at))
        at += count * row
    return np.concatenate(parts) if parts else asked.inputs[0].read(0, 0)


def _columns_of(asked: Asked, shape: tuple[int, ...], runs: list[tuple[int, int]], total: int) -> Array:
    cell = math.prod(shape[2:])
    width, was = total * cell, shape[1] * cell
    first, last = asked.start // max(width, 1), -(-asked.stop // max(width, 1))
    given = asked.inputs[0].read(first * was, last * was).reshape(last - first, was)
    result = np.empty((last - first, width), given.dtype)
    at = 0
    for start, count in runs:
        result[:, at : at + count * cell] = given[:, start * cell : (start + count) * cell]
        at += count * cell
    return result.reshape(-1)[asked.start - first * width : asked.stop - first * width]


def _floats(asked: Asked, start: int | None = None, stop: int | None = None) -> Array:
    asked.expect_shape(0, asked.shape)
    asked.expect_dtype(asked.dtype, FLOATS)
    asked.expect_dtype(asked.inputs[0].dtype, (asked.dtype,))
    return asked.inputs[0].read(asked.start if start is None else start, asked.stop if stop is None else stop)


def _bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def _magnitudes(bits: Array) -> Array:
    result: Array = bits & bits.dtype.type((1 << (bits.dtype.itemsize * 8 - 1)) - 1)
    return result
