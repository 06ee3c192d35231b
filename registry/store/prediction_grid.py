"""Operations of quantization: integers and scales, as compressed-tensors computes, packs and names them.

A group is `group` neighbours in a row, which share a scale. Integers of 4 or 8 bits are packed into int32, the first in
the lowest bits, each with half its range added; the last int32 of a row is filled up with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction_rounding import BLOCK, COMMON, KINDS, narrow, widen
from mreg.registry.store.prediction_terms import Asked

_READ = 1 << 19
"""Weights that are read at once, where one element comes of many."""

_MADE = {"packed": "I32", "int8": "I8", "float8": "F8_E4M3"}
_TINY = {"F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}
_EPSILON = np.float32(2.0**-23)
_ZERO = np.float32(0)


@dataclass(frozen=True, slots=True)
class _Grid:
    """How a matrix of so many rows and columns is quantized. `scale` is stored, or found as round-to-nearest does."""

    kind: str
    bits: int
    scale: str
    rows: int
    columns: int
    group: int

    @classmethod
    def of(cls, asked: Asked, *scales: str) -> _Grid:
        params = asked.params
        params.choice("arithmetic", "F32")
        kind, bits = params.choice("kind", *_MADE), params.whole("bits")
        scale, group = params.choice("scale", *scales), params.whole("group", least=1)
        params.end()
        if bits != 8 and not (bits == 4 and kind == "packed"):
            raise params.refusal(f"it has no {bits} bits for {kind}")
        if scale == "asymmetric" and kind != "packed":
            raise params.refusal(f"it has no zero points for {kind}")
        asked.expect_dtype(asked.inputs[0].dtype if asked.inputs else "nothing", COMMON)
        shape = tuple(asked.inputs[0].shape)
        if len(shape) != 2 or shape[1] % group:
            raise params.refusal(f"groups of {group} do not fit the shape {list(shape)}")
        return cls(kind, bits, scale, shape[0], shape[1], group)

    @property
    def groups(self) -> int:
        """How many a row has."""
        return self.columns // self.group

    @property
    def per(self) -> int:
        """Weights in one element."""
        return 32 // self.bits if self.kind == "packed" else 1

    @property
    def half(self) -> int:
        """Half the points of the grid."""
        return 1 << (self.bits - 1)

    @property
    def ends(self) -> tuple[np.float32, np.float32]:
        """The lowest point of the grid and the highest."""
        return (
            (np.float32(-448), np.float32(448))
            if self.kind == "float8"
            else (np.float32(-self.half), np.float32(self.half - 1))
        )

    @property
    def steps(self) -> np.float32:
        """What a range, or the larger half of it if it is symmetric, is divided by."""
        low, high = self.ends
        return high - low if self.scale == "asymmetric" else (high - low) / np.float32(2)

    def nearest(self, weights: Array) -> tuple[Array, Array]:
        """The scale of each group before it is rounded, and if it has a zero point the smallest weight or zero."""
        if not len(weights):
            return weights, weights
        starts = np.arange(0, len(weights), self.group)
        if self.scale == "symmetric":
            # Without the sign, the order of the bits is that of the numbers; as integers they are compared faster.
            largest = np.maximum.reduceat(weights.view(np.uint32) & np.uint32(0x7FFFFFFF), starts).view(np.float32)
            return largest / self.steps, largest
        low = np.minimum(np.minimum.reduceat(weights, starts), _ZERO)
        high = np.maximum(np.maximum.reduceat(weights, starts), _ZERO)
        return (high - low) / self.steps, low

    def points(self, scales: Array, lows: Array) -> Array:
        """The zero points of groups; where there is no scale, zero."""
        low, high = self.ends
        found = low - lows / scales
        found[np.isnan(found)] = 0
        result: Array = np.rint(np.minimum(np.maximum(found, low), high))
        return result


def _stored(scales: Array, dtype: str) -> Array:
    """Scales as they stand in a file: one of 0 is 2⁻²³, one that rounds to 0 the smallest normal number."""
    result = np.empty(len(scales), KINDS[dtype])
    narrow(np.where(scales == 0, _EPSILON, scales), result, dtype)
    result[result == 0] = _TINY[dtype]
    return result


def grid(asked: Asked) -> Array:
    """`round(clamp(W / scale + zero point))`: the nearest point of a grid, ties to even; a NaN is the lowest."""
    how = _Grid.of(asked, "stored", "symmetric", "asymmetric")
    if how.scale != "stored":
        asked.expect(1)
    elif not (len(asked.inputs) == 3 and how.kind == "packed"):
        asked.expect(2)
    for one in asked.inputs[1:2]:
        asked.expect_shape(1, (how.rows, how.groups))
        asked.expect_dtype(one.dtype, COMMON)
    words = -(-how.columns // how.per)
    _expect(asked, (how.rows, words), _MADE[how.kind])
    if how.columns % how.per == 0:
        first = asked.start
        codes = _codes(asked, how, asked.start * how.per, asked.stop * how.per)
    else:
        top, end = asked.start // words, -(-asked.stop // words)
        first = top * words
        codes = np.zeros((end - top, words * how.per), np.uint8)
        codes[:, : how.columns] = _codes(asked, how, top * how.columns, end * how.columns).reshape(-1, how.columns)
    result = _packed(codes.reshape(-1), how.bits) if how.kind == "packed" else codes.view(KINDS[asked.dtype])
    return result[asked.start - first : asked.stop - first]


def _codes(asked: Asked, how: _Grid, start: int, stop: int) -> Array:
    """The points of the weights `start` to before `stop`, flat, a byte each."""
    group = how.group
    first, last = start // group, -(-stop // group)
    given = asked.inputs[0].read(first * group, last * group)
    scales, shifts = _read_scales(asked, how, first, last) if how.scale == "stored" else (None, None)
    codes = np.empty((last - first) * group, np.uint8)
    step = max(1, BLOCK // group)
    wide = np.empty(min(step, last - first) * group, np.float32)
    # Comparing with an array is faster than with a number.
    lowest, highest = (np.full(len(wide), end) for end in how.ends)
    for at in range(0, last - first, step):
        some = slice(at, min(at + step, last - first))
        part = slice(some.start * group, some.stop * group)
        values = wide[: part.stop - part.start]
        widen(given[part], values)
        if scales is None:
            exact, lows = how.nearest(values)
            scale = _stored(exact, asked.inputs[0].dtype).astype(np.float32)
            shift = how.points(exact, lows) if how.scale == "asymmetric" else None
        else:
            scale, shift = scales[some], None if shifts is None else shifts[some]
        np.divide(values, np.repeat(scale, group), out=values)
        if shift is not None:
            np.add(values, np.repeat(shift, group), out=values)
        _round(values, how, lowest[: len(values)], highest[: len(values)], codes[part])
    return codes[start - first * group : stop - first * group]


def _round(values: Array, how: _Grid, low: Array, high: Array, codes: Array) -> None:
    if how.kind == "float8":
        np.minimum(np.maximum(values, low, out=values), high, out=values)
        narrow(values, codes, "F8_E4M3")
        return
    np.rint(np.fmin(np.fmax(values, low, out=values), high, out=values), out=values)
    if how.kind == "int8":
        np.copyto(codes.view(np.int8), values, casting="unsafe")
    else:
        np.copyto(codes, np.add(values, np.float32(how.half), out=values), casting="unsafe")


def _read_scales(asked: Asked, how: _Grid, first: int, last: int) -> tuple[Array, Array | None]:
    """The stored scales of groups and their zero points, which are packed along the rows of the matrix."""
    scales = np.empty(last - first, np.float32)
    widen(asked.inputs[1].read(first, last), scales)
    if len(asked.inputs) == 2:
        return scales, None
    if asked.inputs[2].dtype != "I32" or tuple(asked.inputs[2].shape) != (-(-how.rows // how.per), how.groups):
        raise asked.params.refusal(f"zero points have the shape {list(asked.inputs[2].shape)}")
    bottom = -(-last // how.groups)
    top, end = first // how.groups // how.per, -(-bottom // how.per)
    packed = asked.inputs[2].read(top * how.groups, end * how.groups).view(np.uint32).reshape(-1, 1, how.groups)
    codes = ((packed >> _shifts(how)) & np.uint32(2 * how.half - 1)).reshape(-1).astype(np.float32)
    at = top * how.per * how.groups
    return scales, (codes - np.float32(how.half))[first - at : last - at]


def _shifts(how: _Grid) -> Array:
    """Where the integers of one int32 begin, along the middle axis."""
    result: Array = np.arange(0, 32, how.bits, dtype=np.uint32)[None, :, None]
    return result


def _packed(codes: Array, bits: int) -> Array:
    if bits == 4:
        pairs = codes.view("<u2")
        codes = (pairs | (pairs >> 4)).astype(np.uint8)
    return codes.view("<i4")


def grid_scale(asked: Asked) -> Array:
    """The scale of each group, as round-to-nearest finds it: its largest magnitude, or its range, over the steps."""
    how = _Grid.of(asked, "symmetric", "asymmetric")
    asked.expect(1)
    asked.expect_dtype(asked.dtype, COMMON)
    _expect(asked, (how.rows, how.groups), asked.dtype)
    result = np.empty(asked.stop - asked.start, KINDS[asked.dtype])
    step = max(1, _READ // how.group)
    for start in range(asked.start, asked.stop, step):
        stop = min(asked.stop, start + step)
        scales, _ = how.nearest(_read(asked, how, start, stop))
        result[start - asked.start : stop - asked.start] = _stored(scales, asked.dtype)
    return result


def grid_zero_point(asked: Asked) -> Array:
    """The zero point of each group, packed along the rows: `round(clamp(-half - low / scale))`."""
    how = _Grid.of(asked, "asymmetric")
    asked.expect(1)
    groups, per = how.groups, how.per
    _expect(asked, (-(-how.rows // per), groups), "I32")
    first, last = asked.start // max(groups, 1), -(-asked.stop // max(groups, 1))
    result = np.zeros((last - first, groups), np.uint32)
    step = max(1, _READ // max(how.columns * per, 1))
    for word in range(first, last, step):
        end = min(last, word + step)
        top, bottom = word * per, min(how.rows, end * per)
        points = how.points(*how.nearest(_read(asked, how, top * groups, bottom * groups)))
        codes = np.zeros(((end - word) * per, groups), np.uint32)
        codes[: bottom - top] = (points + np.float32(how.half)).astype(np.uint32).reshape(-1, groups)
        result[word - first : end - first] = np.bitwise_or.reduce(
            codes.reshape(-1, per, groups) << _shifts(how), axis=1
        )
    return result.reshape(-1).view(np.int32)[asked.start - first * groups : asked.stop - first * groups]


def _read(asked: Asked, how: _Grid, start: int, stop: int) -> Array:
    wide = np.empty((stop - start) * how.group, np.float32)
    widen(asked.inputs[0].read(start * how.group, stop * how.group), wide)
    return wide


def _expect(asked: Asked, shape: tuple[int, int], dtype: str) -> None:
    if asked.shape != shape:
        raise asked.params.refusal(f"it gives {list(shape)}, not {list(asked.shape)}")
    asked.expect_dtype(asked.dtype, (dtype,))
