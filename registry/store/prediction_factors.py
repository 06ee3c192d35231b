"""Operations that fold something small into a matrix: factors, magnitudes of rows, a vector.

Factors are multiplied as outer products that are added one by one: what a library for matrices gives depends on how it
cuts them.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction_rounding import BLOCK, COMMON, KINDS, NARROW, narrow, pieces, settle, widen
from mreg.registry.store.prediction_terms import Asked, Given

_BAND = 64
"""Rows at most that a product of factors is worked out for at once."""


def low_rank(asked: Asked) -> Array:
    """`W + scale · (0 + b₁·a₁ + b₂·a₂ + …)`, where b are the columns of B and a the rows of A.

    In 16 bits, what is added is rounded to these before.
    """
    arithmetic = asked.params.choice("arithmetic", "F32", *NARROW)
    left, right, scale = _factors(asked, 3)
    return _with_factors(asked, left, right, scale, arithmetic)


def _factors(asked: Asked, inputs: int) -> tuple[Array, Array, np.float32]:
    """The rows of B that the range touches, A, and the scale, of an operation with so many inputs."""
    rows, columns = asked.matrix()
    scale = np.float32(asked.params.number("scale"))
    asked.params.end()
    asked.expect(inputs)
    rank = asked.inputs[1].shape[-1] if asked.inputs[1].shape else 0
    for place, shape in enumerate(((rows, columns), (rows, rank), (rank, columns))):
        asked.expect_shape(place, shape)
    for dtype in (asked.dtype, *(one.dtype for one in asked.inputs)):
        asked.expect_dtype(dtype, COMMON)
    first, last = _rows(asked, columns)
    left, right = np.empty((last - first) * rank, np.float32), np.empty(rank * columns, np.float32)
    widen(asked.inputs[1].read(first * rank, last * rank), left)
    widen(asked.inputs[2].read(0, rank * columns), right)
    return left.reshape(-1, rank), right.reshape(rank, columns), scale


def factors(asked: Asked) -> Array:
    """`W + (0 + u₁·v₁ᵀ + u₂·v₂ᵀ + …)`, the vectors being params: little-endian float32 in base64, one after another."""
    rows, columns = asked.matrix()
    asked.params.choice("arithmetic", "F32")
    rank = asked.params.whole("rank", least=1)
    left, right = _floats(asked.params, "left", rank * rows), _floats(asked.params, "right", rank * columns)
    asked.params.end()
    asked.expect(1)
    first, last = _rows(asked, columns)
    return _with_factors(asked, left.reshape(rank, rows).T[first:last], right.reshape(rank, columns), None, "F32")


def _floats(params: Given, key: str, count: int) -> Array:
    try:
        raw = base64.b64decode(params.text(key), validate=True)
    except (binascii.Error, ValueError) as error:
        raise params.refusal(f"{key} is no base64") from error
    if len(raw) != 4 * count:
        raise params.refusal(f"{key} holds {len(raw)} bytes instead of {4 * count}")
    return np.frombuffer(raw, "<f4")


def _rows(asked: Asked, columns: int) -> tuple[int, int]:
    """The rows that the range touches."""
    return (asked.start // columns, -(-asked.stop // columns)) if columns else (0, 0)


def _with_factors(asked: Asked, left: Array, right: Array, scale: np.float32 | None, arithmetic: str) -> Array:
    """The range of the first input with `left @ right` added. `left` has the rows that the range touches."""
    asked.expect_shape(0, asked.shape)
    for dtype in (asked.dtype, asked.inputs[0].dtype):
        asked.expect_dtype(dtype, COMMON)
    given = asked.inputs[0].read(asked.start, asked.stop)
    result = np.empty(asked.stop - asked.start, KINDS[asked.dtype])
    columns = right.shape[1]
    offset = asked.start % columns if columns else 0
    band = max(1, min(_BAND, BLOCK // max(columns, 1)))
    sums, products = np.empty((band, columns), np.float32), np.empty((band, columns), np.float32)
    weights = np.empty(band * columns, np.float32)
    for start in range(0, len(left), band):
        total = sums[: min(band, len(left) - start)]
        _multiply(left[start : start + band], right, scale, total, products[: len(total)])
        if arithmetic in NARROW:
            settle(total, arithmetic)
        # The first row and the last may be touched in part.
        begin, end = max(start * columns - offset, 0), min((start + len(total)) * columns - offset, len(result))
        added = total.reshape(-1)[begin + offset - start * columns : end + offset - start * columns]
        weight = weights[: end - begin]
        widen(given[begin:end], weight)
        np.add(weight, added, out=weight)
        narrow(weight, result[begin:end], asked.dtype)
    return result


def _multiply(left: Array, right: Array, scale: np.float32 | None, total: Array, product: Array) -> None:
    """`left @ right`, the outer products added one by one, and scaled, into `total`."""
    factor = np.ascontiguousarray(left.T)
    total.fill(0)
    for k in range(len(factor)):
        np.multiply(factor[k][:, None], right[k], out=product)
        np.add(total, product, out=total)
    if scale is not None:
        np.multiply(total, scale, out=total)


def dora(asked: Asked) -> Array:
    """`m / ‖V‖ · V` for each row of `V = W + scale · B·A`, which is as in `low-rank`; m are magnitudes."""
    rows, columns = asked.matrix()
    asked.params.choice("arithmetic", "F32")
    left, right, scale = _factors(asked, 4)
    asked.expect_shape(3, (rows,))
    first, last = _rows(asked, columns)
    magnitudes = np.empty(last - first, np.float32)
    widen(asked.inputs[3].read(first, last), magnitudes)
    # A length needs the whole of a row.
    given = asked.inputs[0].read(first * columns, last * columns)
    result = np.empty(len(given), KINDS[asked.dtype])
    band = max(1, min(_BAND, BLOCK // max(columns, 1)))
    for start in range(0, last - first, band):
        some = slice(start, min(last - first, start + band))
        part = slice(some.start * columns, some.stop * columns)
        weight, added = np.empty((2, some.stop - some.start, columns), np.float32)
        widen(given[part], weight.reshape(-1))
        _multiply(left[some], right, scale, added, np.empty_like(added))
        np.add(weight, added, out=weight)
        lengths = np.sqrt(_paired(np.square(weight.astype(np.float64)).T)).astype(np.float32)
        np.multiply(weight, (magnitudes[some] / lengths)[:, None], out=weight)
        narrow(weight.reshape(-1), result[part], asked.dtype)
    return result[asked.start - first * columns : asked.stop - first * columns]


def _paired(values: Array) -> Array:
    """The sum along the first axis: the first half is added to the second, an odd one left over joins the result."""
    while len(values) > 1:
        half = len(values) // 2
        values = np.concatenate((values[:half] + values[half : 2 * half], values[2 * half :]))
    result: Array = values.sum(axis=0)
    return result


def scaled(asked: Asked) -> Array:
    """`W · v`: each row of a matrix, or each column, times its element of a vector."""
    rows, columns = asked.matrix()
    asked.params.choice("arithmetic", "F32")
    axis = asked.params.choice("axis", "rows", "columns")
    asked.params.end()
    asked.expect(2)
    asked.expect_shape(0, asked.shape)
    for dtype in (asked.dtype, *(one.dtype for one in asked.inputs)):
        asked.expect_dtype(dtype, COMMON)
    length = rows if axis == "rows" else columns
    if np.prod(asked.inputs[1].shape, dtype=np.int64) != length or max(asked.inputs[1].shape, default=0) != length:
        raise asked.params.refusal(f"input 1 is no vector of {length}")
    first, last = _rows(asked, columns)
    bounds = (first, last) if axis == "rows" else (0, columns)
    vector = np.empty(bounds[1] - bounds[0], np.float32)
    widen(asked.inputs[1].read(*bounds), vector)
    offset = asked.start - first * columns
    spread = np.repeat(vector, columns) if axis == "rows" else np.tile(vector, last - first)
    spread = spread[offset : offset + asked.stop - asked.start]
    given = asked.inputs[0].read(asked.start, asked.stop)
    result = np.empty(len(given), KINDS[asked.dtype])
    wide = np.empty(min(BLOCK, len(result)), np.float32)
    for part in pieces(len(result)):
        values = wide[: part.stop - part.start]
        widen(given[part], values)
        np.multiply(values, spread[part], out=values)
        narrow(values, result[part], asked.dtype)
    return result
