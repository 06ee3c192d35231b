"""The vocabulary of predictions: the right bits, the same for every cut, for ever; and nothing else is understood."""

from __future__ import annotations

import ast
import base64
import bisect
import contextlib
import itertools
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from mreg.registry.models.weights import Array
from mreg.registry.store.prediction import UnknownOperation, predict
from mreg.registry.store.prediction_operations import OPERATIONS
from mreg.registry.store.prediction_rounding import KINDS, narrow, widen

ROOT = Path(__file__).parents[2]
F32 = np.float32
DTYPES = ("BF16", "F16", "F32")
NAN = {"F64": 0x7FF8 << 48, "F32": 0x7FC0 << 16, "F16": 0x7E00, "BF16": 0x7FC0}


class Held:
    """A tensor in memory, as one that is stored."""

    def __init__(self, dtype: str, shape: tuple[int, ...], elements: Array) -> None:
        self.dtype, self.shape, self.elements = dtype, shape, elements
        assert elements.dtype == KINDS[dtype]
        assert elements.shape == (math.prod(shape),)

    def read(self, start: int, stop: int) -> Array:
        assert 0 <= start <= stop <= len(self.elements)
        return self.elements[start:stop]


@dataclass(frozen=True)
class Case:
    operation: str
    params: dict[str, Any]
    inputs: tuple[Held, ...]
    dtype: str
    shape: tuple[int, ...]

    def elements(self, start: int = 0, stop: int | None = None) -> Array:
        stop = math.prod(self.shape) if stop is None else stop
        return predict(self.operation, self.params, self.inputs, self.dtype, self.shape, start, stop)


def held(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Held:
    """Numbers such as weights are."""
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)).astype(F32) * F32(0.05)
    return Held(dtype, shape, values.astype(KINDS[dtype]))


def any_bits(dtype: str, shape: tuple[int, ...], name: str) -> Held:
    """Bits of all kinds, NaNs and infinities among them, the same for ever."""
    stream = blake3(name.encode()).digest(length=math.prod(shape) * np.dtype(KINDS[dtype]).itemsize)
    return Held(dtype, shape, np.frombuffer(stream, KINDS[dtype]))


def text(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()


def cases(dtype: str, rows: int, columns: int, make: Callable[[str, tuple[int, ...], Any], Held]) -> dict[str, Case]:
    """One of every operation, on matrices of this dtype. 16 divides the columns."""
    shape = (rows, columns)
    w, x, y = (make(dtype, shape, name) for name in "wxy")
    f32 = {"arithmetic": "F32"}
    everything, large = {"by": "all"}, {"by": "size", "above": 0.03125, "until": rows * columns // 2}
    drawn = {"by": "chance", "density": 0.3, "stream": "dare 7 0 weight"}
    tasks = {**f32, "weights": [0.7, -0.4], "scale": 1.25}
    grid = {**f32, "kind": "packed", "bits": 4, "group": 8, "scale": "symmetric"}
    points = {**grid, "scale": "asymmetric"}
    scales = make(dtype, (rows, columns // 8), "scales")
    other = "F16" if dtype == "F32" else "F32"
    factors = {"left": text(*np.linspace(-1, 2, 2 * rows)), "right": text(*np.linspace(3, -1, 2 * columns))}
    size = float(np.array(0.05).astype(KINDS[dtype]))
    made = {
        "same": Case("same", {}, (w,), dtype, shape),
        "cast": Case("cast", {}, (w,), other, shape),
        "cast to 8 bits": Case("cast", {}, (w,), "F8_E5M2", shape),
        "linear": Case("linear", {**f32, "weights": [0.3, 0.5, 0.2]}, (w, x, y), dtype, shape),
        "linear in float64": Case("linear", {"arithmetic": "F64", "weights": [1 / 1.37]}, (w,), dtype, shape),
        "linear in 16 bits": Case("linear", {"arithmetic": "BF16", "weights": [0.3, 0.5]}, (w, x), dtype, shape),
        "task arithmetic": Case(
            "task-vectors",
            {**tasks, "normalize": False, "elect": False, "kept": [everything, everything]},
            (w, x, y),
            dtype,
            shape,
        ),
        "ties": Case(
            "task-vectors",
            {**tasks, "normalize": True, "elect": True, "kept": [large, everything]},
            (w, x, y),
            dtype,
            shape,
        ),
        "dare": Case(
            "task-vectors",
            {**tasks, "normalize": True, "elect": False, "kept": [drawn, large]},
            (w, x, y),
            dtype,
            shape,
        ),
        "low-rank": Case(
            "low-rank",
            {**f32, "scale": 2.5},
            (w, make("F32", (rows, 3), "b"), make(dtype, (3, columns), "a")),
            dtype,
            shape,
        ),
        "low-rank in 16 bits": Case(
            "low-rank",
            {"arithmetic": "F16", "scale": 0.7},
            (w, make("F32", (rows, 2), "b"), make("F32", (2, columns), "a")),
            dtype,
            shape,
        ),
        "dora": Case(
            "dora",
            {**f32, "scale": 2.5},
            (w, make("F32", (rows, 3), "b"), make(dtype, (3, columns), "a"), make("F32", (rows,), "m")),
            dtype,
            shape,
        ),
        "factors": Case("factors", {**f32, "rank": 2, **factors}, (w,), dtype, shape),
        "scaled rows": Case("scaled", {**f32, "axis": "rows"}, (w, make("F32", (rows, 1), "v")), dtype, shape),
        "scaled columns": Case("scaled", {**f32, "axis": "columns"}, (w, make("F32", (columns,), "v")), dtype, shape),
        "threshold": Case("threshold", {"size": size, "until": 3 * columns + 1}, (w,), dtype, shape),
        "2:4": Case("n-of-m", {"keep": 2, "of": 4}, (w,), dtype, shape),
        "5:16": Case("n-of-m", {"keep": 5, "of": 16}, (w,), dtype, shape),
        "rows taken": Case("take", {"axis": "rows", "runs": [[1, 2], [4, rows - 4]]}, (w,), dtype, (rows - 2, columns)),
        "columns taken": Case("take", {"axis": "columns", "runs": [[9, 3], [0, 4]]}, (w,), dtype, (rows, 7)),
        "int4": Case("grid", grid, (w,), "I32", (rows, columns // 8)),
        "int4 with zero points": Case("grid", points, (w,), "I32", (rows, columns // 8)),
        "int8 by stored scales": Case(
            "grid", {**grid, "bits": 8, "scale": "stored"}, (w, scales), "I32", (rows, columns // 4)
        ),
        "int8 by stored zero points": Case(
            "grid",
            {**grid, "bits": 8, "scale": "stored"},
            (w, scales, make("I32", (-(-rows // 4), columns // 8), "points")),
            "I32",
            (rows, columns // 4),
        ),
        "int8 a byte each": Case("grid", {**grid, "kind": "int8", "bits": 8}, (w,), "I8", shape),
        "fp8": Case("grid", {**grid, "kind": "float8", "bits": 8, "group": columns}, (w,), "F8_E4M3", shape),
        "scales": Case("grid-scale", grid, (w,), dtype, (rows, columns // 8)),
        "scales of ranges": Case("grid-scale", points, (w,), dtype, (rows, columns // 8)),
        "zero points": Case("grid-zero-point", points, (w,), "I32", (-(-rows // 8), columns // 8)),
    }
    assert {case.operation for case in made.values()} == OPERATIONS.keys()
    return made


NAMES = list(cases("F32", 5, 16, lambda dtype, shape, _: held(dtype, shape)))


def seeded(dtype: str, shape: tuple[int, ...], name: str) -> Held:
    made = held("F32", shape, seed=sum(name.encode()))
    if name == "scales":
        return Held(dtype, shape, np.abs(made.elements).astype(KINDS[dtype]))
    return any_bits(dtype, shape, name) if dtype == "I32" else Held(dtype, shape, made.elements.astype(KINDS[dtype]))


def bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def wide(one: Held) -> Array:
    return one.elements.astype(F32).reshape(one.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12)
@given(data=st.data())
def test_any_range_has_the_bits_of_the_whole(name: str, dtype: str, data: st.DataObject):
    rows = data.draw(st.integers(5, 21))
    case = cases(dtype, rows, 16 * data.draw(st.integers(1, 3)), seeded)[name]
    count = math.prod(case.shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))

    part = case.elements(start, stop)

    assert bits(case.elements())[start:stop].tolist() == bits(part).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_range_across_blocks_has_the_bits_of_the_whole(name: str):
    case = cases("BF16", 301, 128, seeded)[name]
    count = math.prod(case.shape)
    cuts = sorted(
        {0, 1, 127, 129, 1000, 16384 + 5, 2 * 16384 - 1, count // 2, count - 3, count} & set(range(count + 1))
    )

    parts = [case.elements(start, stop) for start, stop in itertools.pairwise(cuts)]

    assert np.array_equal(bits(case.elements()), bits(np.concatenate(parts)))


# What a stored object was predicted with is predicted again when it is read: these never change.
GOLDEN = {
    "same": ("3bd26384a211", "3bd26384a211", "51b3b85332b0"),
    "cast": ("8295c92ee4c1", "9b5d41ed5429", "ab0f6a8b4da2"),
    "cast to 8 bits": ("91dbc85f91d6", "c6323d552b0b", "4833305922de"),
    "linear": ("578c7b4ef2b4", "190301c07d74", "2639129a9648"),
    "linear in float64": ("ab852e90ac36", "0d5eba57a652", "5ee2012478ea"),
    "linear in 16 bits": ("5128adaf9445", "58b7e172fffb", "496dacbe86b2"),
    "task arithmetic": ("7e10bbf478d5", "ae5abc407baa", "ea606514bb61"),
    "ties": ("627e216cc166", "fcb2ccf8d86b", "0a034dbf7394"),
    "dare": ("1f907c54d910", "70f607da1609", "d58f13f42a98"),
    "low-rank": ("1499d78b5214", "5613adc8d6c6", "f41d951f0943"),
    "low-rank in 16 bits": ("0fe1eeaa2ace", "0524cbce3a60", "8d8b35c0cd96"),
    "dora": ("309065abfa21", "b38ed3424043", "550b34b5521b"),
    "factors": ("711c26282c87", "850e3ed969b6", "52290140abf5"),
    "scaled rows": ("36c9ad3c81ac", "770c0d128691", "bcb8721fae1d"),
    "scaled columns": ("7baf8463e99c", "c04a45db20eb", "8a31e0dfce52"),
    "threshold": ("d8bfc6d7f3da", "6ff83ccbc45b", "da3fa732efc2"),
    "2:4": ("e6aaa1b0deef", "e6aaa1b0deef", "163abcbe01a6"),
    "5:16": ("3d4870a42d9f", "3d4870a42d9f", "269b7e24cde5"),
    "rows taken": ("d19b012528b3", "d19b012528b3", "e855f95ccaed"),
    "columns taken": ("b0b8f849c1ac", "b0b8f849c1ac", "986b413006b0"),
    "int4": ("fc20feee9568", "af70d542c690", "51d24517bfc9"),
    "int4 with zero points": ("6b877c84c62e", "1ef63cbcb156", "0a69d02769cc"),
    "int8 by stored scales": ("17292f377b79", "b36f2a63d9f2", "ebcc7f8477dd"),
    "int8 by stored zero points": ("fd33e5e1ae42", "f468d9eab5de", "23ea7b1fd202"),
    "int8 a byte each": ("613fbf29ae62", "2bacaa6d16b5", "b1248f311b15"),
    "fp8": ("cd1f8dd97dfd", "836e2d240f7c", "e8782cfbaf92"),
    "scales": ("e4dd181b8cdd", "90c4169db01a", "ca36b99dd276"),
    "scales of ranges": ("9d374ae55d7d", "9ccedba293d5", "d34e30578d5d"),
    "zero points": ("a19d6de3b4d3", "5db249ffd261", "52605a43c9f3"),
}
"""By case the beginnings of three digests, one for each of DTYPES."""


def digests_of(name: str) -> tuple[str, ...]:
    """What GOLDEN has, computed."""
    made = [cases(dtype, 37, 48, any_bits)[name].elements() for dtype in DTYPES]
    return tuple(blake3(one.tobytes()).hexdigest()[:12] for one in made)


@pytest.mark.parametrize("name", NAMES)
def test_bits_never_change(name: str):
    found = digests_of(name)

    assert GOLDEN[name] == found


def test_bits_do_not_depend_on_what_the_processor_can_do():
    found = np._core._multiarray_umath
    there = [name for name in found.__cpu_dispatch__ if found.__cpu_features__[name]]
    program = "from tests.registry.test_prediction import *; print({name: digests_of(name) for name in NAMES})"
    plain = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(there)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert there, "this numpy uses nothing beyond its baseline, so nothing was tried"
    assert GOLDEN == ast.literal_eval(done.stdout)


def test_the_calling_thread_computes_as_before():
    before = (np.geterr(), np.getbufsize())
    case = cases("F16", 5, 16, any_bits)["linear"]

    case.elements()
    with pytest.raises(UnknownOperation):
        replace(case, params={}).elements()

    assert before == (np.geterr(), np.getbufsize())


def test_a_thread_that_drops_subnormal_numbers_predicts_nothing():
    import torch

    case = cases("BF16", 5, 16, seeded)["linear"]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor always keeps subnormal numbers")
    try:
        with pytest.raises(UnknownOperation, match="IEEE 754"):
            case.elements()
    finally:
        torch.set_flush_denormal(False)

    assert len(case.elements()) == 80


# The same again in another way: numbers of Python, of which each operation is rounded to float32 by itself. Sums,
# products and quotients of two float32 are right in float64 up to one more rounding, which does no harm
# (Figueroa 1995).


def to32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0] if abs(value) < 3.4e38 else math.copysign(math.inf, value)


def nearest(values: list[float], dtype: str) -> list[int]:
    """The bits of the nearest number of a dtype, of two the even one, by looking at all there are."""
    if dtype in ("F32", "F64"):
        return bits(np.array(values, KINDS[dtype])).tolist()
    width = 8 * np.dtype(KINDS[dtype]).itemsize
    table = np.arange(1 << (width - 1), dtype=f"u{width // 8}").view(KINDS[dtype])
    with np.errstate(invalid="ignore"):
        table = table[np.isfinite(table)].astype(np.float64).tolist()
    infinite = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C, "F16": 0x7C00, "BF16": 0x7F80}[dtype]
    found = []
    for value in values:
        size = abs(value)
        above = bisect.bisect_left(table, size)
        if above == len(table):
            step = table[-1] - table[-2]
            place = (
                infinite
                if size > table[-1] + step / 2 or (size == table[-1] + step / 2 and above % 2 == 0)
                else above - 1
            )
        elif table[above] == size:
            place = above
        else:
            down, up = size - table[above - 1], table[above] - size
            place = above - 1 if down < up or (down == up and above % 2) else above
        found.append(place | (1 << (width - 1)) * (math.copysign(1, value) < 0))
    return found


def listed(one: Held) -> list[float]:
    return one.elements.astype(np.float64).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_sum_is_added_from_the_left_in_float32(dtype: str):
    case = cases(dtype, 6, 32, seeded)["linear"]
    totals = [0.0] * 192
    for one, weight in zip(case.inputs, case.params["weights"], strict=True):
        totals = [to32(total + to32(value * to32(weight))) for total, value in zip(totals, listed(one), strict=True)]

    assert nearest(totals, dtype) == bits(case.elements()).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_in_float64_goes_through_float32(dtype: str):
    case = cases(dtype, 6, 32, seeded)["linear in float64"]
    (weight,) = case.params["weights"]
    totals = [to32(0.0 + value * weight) for value in listed(case.inputs[0])]

    assert nearest(totals, dtype) == bits(case.elements()).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["task arithmetic", "ties", "dare"])
def test_task_vectors_are_trimmed_weighed_elected_and_added(name: str, dtype: str):
    case = cases(dtype, 6, 32, seeded)[name]
    base, *models = map(listed, case.inputs)
    drawn = np.frombuffer(blake3(b"dare 7 0 weight").digest(length=4 * 192), "<u4").tolist()
    expected = []
    for place, origin in enumerate(base):
        parts = []
        for model, weight, kept in zip(models, case.params["weights"], case.params["kept"], strict=True):
            vector = to32(model[place] - origin)
            if kept["by"] == "chance":
                vector = to32(vector / to32(kept["density"])) if drawn[place] < kept["density"] * 2**32 else 0.0
            elif kept["by"] == "size":
                small = abs(vector) < kept["above"] or (abs(vector) == kept["above"] and place >= kept["until"])
                vector = 0.0 if small else vector
            parts.append(to32(vector * to32(weight)))
        total, divisor = to32(parts[0] + parts[1]), to32(sum(case.params["weights"]))
        if case.params["elect"]:
            sign = 1 if total >= 0 else -1
            agreeing = [k for k, part in enumerate(parts) if part * sign > 0]
            total = divisor = 0.0
            for k in agreeing:
                total = to32(total + parts[k])
                divisor = to32(divisor + to32(case.params["weights"][k]))
        if case.params["normalize"]:
            total = to32(total / (divisor or 1.0))
        expected.append(to32(origin + to32(total * case.params["scale"])))

    assert nearest(expected, dtype) == bits(case.elements()).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["low-rank", "factors"])
def test_outer_products_are_added_one_by_one(name: str, dtype: str):
    case = cases(dtype, 6, 32, seeded)[name]
    if name == "low-rank":
        b, a = wide(case.inputs[1]).T.tolist(), wide(case.inputs[2]).tolist()
    else:
        b, a = (
            np.frombuffer(base64.b64decode(case.params[side]), "<f4").reshape(2, -1).tolist()
            for side in ("left", "right")
        )
    expected = []
    for place, weight in enumerate(listed(case.inputs[0])):
        row, column = divmod(place, 32)
        product = 0.0
        for left, right in zip(b, a, strict=True):
            product = to32(product + to32(left[row] * right[column]))
        expected.append(to32(weight + to32(product * case.params.get("scale", 1))))

    assert nearest(expected, dtype) == bits(case.elements()).tolist()


def settled(values: list[float], dtype: str) -> list[float]:
    return np.array(nearest(values, dtype), np.uint16).view(KINDS[dtype]).astype(np.float64).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_16_bits_all_that_other_tools_would_store_is_rounded(dtype: str):
    made = cases(dtype, 6, 32, seeded)
    one, other = map(listed, made["linear in 16 bits"].inputs)
    products = [settled([to32(value * to32(by)) for value in of], "BF16") for of, by in ((one, 0.3), (other, 0.5))]
    sums = settled([to32(first + second) for first, second in zip(*products, strict=True)], "BF16")
    w, b, a = (wide(each).astype(np.float64) for each in made["low-rank in 16 bits"].inputs)
    added = [[to32(to32(to32(r[0] * c[0]) + to32(r[1] * c[1])) * to32(0.7)) for c in a.T.tolist()] for r in b.tolist()]
    rows = [
        [to32(x + y) for x, y in zip(u, settled(v, "F16"), strict=True)] for u, v in zip(w.tolist(), added, strict=True)
    ]

    assert nearest(sums, dtype) == bits(made["linear in 16 bits"].elements()).tolist()
    assert (
        nearest([value for row in rows for value in row], dtype)
        == bits(made["low-rank in 16 bits"].elements()).tolist()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_gets_its_magnitude(dtype: str):
    case = cases(dtype, 6, 40, seeded)["dora"]
    sums = replace(case, operation="low-rank", inputs=case.inputs[:3], dtype="F32").elements().reshape(6, 40).tolist()
    expected = []
    for row, magnitude in zip(sums, listed(case.inputs[3]), strict=True):
        squares = [value * value for value in row]
        while len(squares) > 1:
            half = len(squares) // 2
            pairs = [one + other for one, other in zip(squares[:half], squares[half:], strict=False)]
            squares = [*pairs, *squares[2 * half :]]
        factor = to32(magnitude / to32(math.sqrt(squares[0])))
        expected += [to32(value * factor) for value in row]

    assert nearest(expected, dtype) == bits(case.elements()).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_columns_are_scaled(dtype: str):
    made = cases(dtype, 6, 32, seeded)
    for name, of in (("scaled rows", lambda place: place // 32), ("scaled columns", lambda place: place % 32)):
        w, v = map(listed, made[name].inputs)
        expected = [to32(value * v[of(place)]) for place, value in enumerate(w)]

        assert nearest(expected, dtype) == bits(made[name].elements()).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_below_a_size_is_zero_and_of_its_equals_the_first(dtype: str):
    w = Held(dtype, (8,), np.array([-0.5, 0.25, 0.5, 0.0, -0.0, 0.75, -0.5, math.nan], KINDS[dtype]))

    found = Case("threshold", {"size": 0.5, "until": 3}, (w,), dtype, (8,)).elements()

    stays = [False, False, False, False, False, True, True, True]
    assert [bit if stay else 0 for bit, stay in zip(bits(w.elements).tolist(), stays, strict=True)] == bits(
        found
    ).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (5, 16), (0, 2), (3, 3), (9, 32)])
def test_the_largest_of_every_group_stay(keep: int, of: int, dtype: str):
    # Few different numbers, so that there are many equal ones.
    numbers = np.random.default_rng(keep * of).integers(-4, 5, of * 12)
    w = Held(dtype, (12, of), numbers.astype(KINDS[dtype]))
    expected = bits(w.elements).copy()
    for start in range(0, len(numbers), of):
        ranked = sorted(range(start, start + of), key=lambda place: (abs(numbers[place]), place))
        expected[ranked[: of - keep]] = 0

    found = Case("n-of-m", {"keep": keep, "of": of}, (w,), dtype, w.shape).elements()

    assert expected.tolist() == bits(found).tolist()


def test_rows_and_columns_are_taken_in_the_order_of_the_runs():
    made = cases("BF16", 6, 32, seeded)
    w = made["rows taken"].inputs[0].elements.reshape(6, 32)

    rows, columns = made["rows taken"].elements(), made["columns taken"].elements()

    assert w[[1, 2, 4, 5]].tobytes() == rows.tobytes()
    assert np.concatenate([w[:, 9:12], w[:, :4]], axis=1).tobytes() == columns.tobytes()


def unpacked(elements: Array, width: int, count: int) -> list[list[int]]:
    """The integers of rows of int32, as unsigned numbers."""
    words = elements.view(np.uint32).reshape(-1, elements.size // count if count else 1).tolist()
    return [[word >> shift & (1 << width) - 1 for word in row for shift in range(0, 32, width)] for row in words]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("scale", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("columns", "group"), [(32, 8), (20, 20), (7, 7)])
def test_integers_are_the_nearest_on_the_grid_of_their_group(
    columns: int, group: int, scale: str, width: int, dtype: str
):
    w = held(dtype, (11, columns), seed=width)
    w.elements[3 * columns : 4 * columns] = 0
    params = {"arithmetic": "F32", "kind": "packed", "bits": width, "group": group, "scale": scale}
    half, groups = 1 << width - 1, columns // group
    codes, scales, points = [], [], []
    for start in range(0, 11 * columns, group):
        values = listed(w)[start : start + group]
        low, high = min(0.0, *values), max(0.0, *values)
        steps = half - 0.5 if scale == "symmetric" else 2 * half - 1
        exact = to32((max(-low, high) if scale == "symmetric" else to32(high - low)) / steps)
        point = 0
        if scale == "asymmetric":
            point = round(max(-half, min(half - 1, to32(-half - to32(low / exact))))) if exact else 0
        stored = float(np.array(nearest([exact or 2.0**-23], dtype), f"u{w.elements.itemsize}").view(KINDS[dtype])[0])
        scales.append(stored)
        points.append(point)
        for value in values:
            codes.append(round(max(-half, min(half - 1, to32(to32(value / stored) + point)))) + half)
    per = 32 // width
    words, rows = -(-columns // per), -(-11 // per)

    packed = Case("grid", params, (w,), "I32", (11, words))
    found = Case("grid-scale", params, (w,), dtype, (11, groups))

    assert nearest(scales, dtype) == bits(found.elements()).tolist()
    got = [row[:columns] for row in unpacked(packed.elements(), width, 11)]
    assert codes == [code for row in got for code in row]
    inputs = [w, Held(dtype, (11, groups), found.elements())]
    if scale == "asymmetric":
        zeros = Case("grid-zero-point", params, (w,), "I32", (rows, groups))
        inputs.append(Held("I32", (rows, groups), zeros.elements()))
        shifted = (
            zeros.elements().view(np.uint32).reshape(rows, 1, groups)
            >> np.arange(0, 32, width, dtype=np.uint32)[:, None]
        )
        assert [point + half for point in points] == (shifted & 2 * half - 1).reshape(-1, groups)[:11].reshape(
            -1
        ).tolist()
    again = Case("grid", {**params, "scale": "stored"}, tuple(inputs), "I32", (11, words))
    assert packed.elements().tolist() == again.elements().tolist()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F16", "BF16"])
def test_rounding_goes_to_the_nearest_and_of_two_to_the_even(dtype: str):
    kind = KINDS[dtype]
    near = np.arange(256, dtype=np.uint8).view(kind) if dtype.startswith("F8") else held(dtype, (99,)).elements
    exact = near.astype(F32)
    exact = exact[np.isfinite(exact)]
    between = (exact[1:] / 2 + exact[:-1] / 2)[:-1]
    values = np.concatenate([exact, between, np.nextafter(between, F32(9)), np.nextafter(between, F32(-9))]).astype(F32)
    values = np.concatenate([values, F32([1e-30, -1e-30, 0.0, -0.0, 3e38, -3e38])])
    out = np.empty(len(values), kind)

    with np.errstate(over="ignore"):
        narrow(values, out, dtype)

    assert nearest(values.astype(np.float64).tolist(), dtype) == bits(out).tolist()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F16", "BF16"])
def test_widening_and_rounding_give_every_number_back(dtype: str):
    width = np.dtype(KINDS[dtype]).itemsize
    numbers = np.arange(1 << (8 * width), dtype=f"u{width}").view(KINDS[dtype])
    out, back = np.empty(len(numbers), F32), np.empty_like(numbers)

    with np.errstate(invalid="ignore"):
        widen(numbers, out)
        narrow(out, back, dtype)

    is_nan = np.isnan(out)
    assert np.array_equal(numbers.astype(F32)[~is_nan], out[~is_nan])
    assert np.array_equal(bits(numbers)[~is_nan], bits(back)[~is_nan])
    assert len(set(bits(back)[is_nan].tolist())) == 1


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_there_is_one_nan(dtype: str):
    w = Held("F32", (3,), np.array([math.nan, -math.nan, math.inf], F32))

    found = Case("linear", {"arithmetic": "F32", "weights": [1, -1]}, (w, w), dtype, (3,)).elements()

    assert [NAN[dtype]] * 3 == bits(found).tolist()


JUNK = [
    None,
    True,
    -1,
    1.5,
    10**400,
    math.nan,
    math.inf,
    "F99",
    "",
    "\ud800",
    [],
    [1, 2, 3, 4],
    [[0, 0]],
    [["a", 1]],
    {},
    {"by": 1},
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_exactly_understood_is_refused(name: str):
    case = cases("BF16", 5, 16, seeded)[name]
    wrong = [
        replace(case, operation=case.operation + "-2"),
        replace(case, params={**case.params, "more": 1}),
        *(replace(case, params={k: v for k, v in case.params.items() if k != key}) for key in case.params),
        replace(case, inputs=()),
        replace(case, inputs=(*case.inputs, case.inputs[0])),
        replace(case, inputs=(any_bits("I32", (5, 16), "i"), *case.inputs[1:])),
        replace(case, inputs=(seeded("BF16", (4, 32), "w"), *case.inputs[1:])),
        replace(case, shape=(*case.shape, 1)),
        replace(case, shape=()),
        replace(case, dtype="U8"),
        replace(case, dtype="F4"),
    ]

    for one in wrong:
        with pytest.raises(UnknownOperation):
            predict(one.operation, one.params, one.inputs, one.dtype, one.shape, 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_params_that_make_no_sense_are_refused_and_do_no_harm(name: str):
    case = cases("BF16", 5, 16, seeded)[name]
    for key in case.params:
        for junk in JUNK:
            with contextlib.suppress(UnknownOperation):
                assert len(replace(case, params={**case.params, key: junk}).elements()) == math.prod(case.shape)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 81), (81, 81)])
def test_elements_that_are_not_there_are_refused(start: int, stop: int):
    case = cases("BF16", 5, 16, seeded)["linear"]

    with pytest.raises(UnknownOperation, match="no elements"):
        case.elements(start, stop)
