"""Numbers against numbers: what a difference of tensors is said to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.models.folder import look
from mreg.registry.models.intake import store_folder
from mreg.registry.models.weight_sources import FolderTensors, StoredTensors, WeightsChange, compare
from mreg.registry.models.weights import Tensor, TensorChange, compare_tensors
from mreg.registry.store.objects import ObjectStore

from tests.strategies import MadeTensor, made_tensors, safetensors, write_folder

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I8": np.int8,
    "U8": np.uint8,
}


def tensor(dtype: str, values: Any) -> Tensor:
    array = np.asarray(values).astype(DTYPES[dtype])
    return Tensor(dtype, array.shape, memoryview(array.tobytes()))


def change(dtype: str, a: Any, b: Any) -> TensorChange:
    found = compare_tensors("w", tensor(dtype, a), tensor(dtype, b))
    assert found is not None
    return found


@given(made_tensors(st.just("w")))
def test_a_tensor_does_not_differ_from_itself(made: MadeTensor):
    both = Tensor(made.dtype, made.shape, memoryview(made.data))

    assert compare_tensors("w", both, both) is None


@given(made_tensors(st.just("w")), st.data())
def test_any_other_bytes_are_a_change(made: MadeTensor, data: st.DataObject):
    other = data.draw(st.binary(min_size=len(made.data), max_size=len(made.data)))

    found = compare_tensors(
        "w", Tensor(made.dtype, made.shape, memoryview(made.data)), Tensor(made.dtype, made.shape, memoryview(other))
    )

    assert (made.data == other) == (found is None)
    assert found is None or (found.changed_fraction or 0) > 0


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - {"I8", "U8", "I64"}))
def test_floats_are_measured(dtype: str):
    found = change(dtype, [[3.0, 4.0, 0.0, 0.0]], [[3.0, 4.0, 2.0, 0.0]])

    assert (2.0, 0.5, 0.4, 0.25, 0) == (
        found.max_abs,
        found.mean_abs,
        found.rel_l2,
        found.changed_fraction,
        found.non_finite,
    )


@pytest.mark.parametrize("dtype", ["I8", "U8", "I64"])
def test_integers_are_measured(dtype: str):
    found = change(dtype, [3, 4, 0, 0], [3, 4, 2, 0])

    assert (2.0, 0.4, 0.25, 2, None) == (
        found.max_abs,
        found.rel_l2,
        found.changed_fraction,
        found.max_ulps,
        found.rank,
    )


@pytest.mark.parametrize(
    ("dtype", "a", "b", "expected"),
    [
        ("F32", [4.0, 100.0], [5.0, 101.0], 0.2),
        ("F32", [0.0], [1e-30], 1.0),
        ("F32", [-1.0], [1.0], 2.0),
        ("BF16", [0.0, 1.0], [-0.0, 1.0], 0.0),
        ("F32", [np.nan, 1.0], [1.0, 2.0], 0.5),
        ("I8", [-100, 0], [100, 0], 2.0),
    ],
)
def test_the_largest_relative_distance_is_to_the_larger_of_the_two(
    dtype: str, a: list[float], b: list[float], expected: float
):
    assert expected == change(dtype, a, b).max_rel


def test_the_farthest_integers_do_not_overflow():
    ends = np.iinfo(np.int64)

    assert 2**64 - 1 == change("I64", [ends.min], [ends.max]).max_ulps


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
def test_neighbouring_floats_are_one_ulp_apart(dtype: str):
    one = DTYPES[dtype](1)

    assert 1 == change(dtype, [one], [np.nextafter(one, DTYPES[dtype](2))]).max_ulps


def test_the_smallest_floats_of_both_signs_are_two_ulps_apart():
    smallest = np.finfo(np.float32).smallest_subnormal

    assert 2 == change("F32", [-smallest], [smallest]).max_ulps


def test_minus_zero_is_a_change_of_bits_and_not_of_value():
    found = change("BF16", [0.0, 1.0], [-0.0, 1.0])

    assert (0.0, 0.0, 0.5, 0) == (found.max_abs, found.rel_l2, found.changed_fraction, found.max_ulps)


def test_two_nans_are_equal_and_one_is_not_finite():
    nan, inf = np.nan, np.inf

    found = change("F32", [nan, nan, inf, inf, 1.0], [nan, 1.0, inf, -inf, 2.0])

    assert (1.0, 2, 0.6) == (found.max_abs, found.non_finite, found.changed_fraction)


def test_sums_beyond_a_float_are_left_out():
    found = change("F64", [1e308, 1e308], [-1e308, 1e308])

    assert (None, None, None, 0.5) == (found.max_abs, found.mean_abs, found.rel_l2, found.changed_fraction)


def test_a_change_from_nothing_has_no_relative_size():
    assert change("F32", [0.0], [1.0]).rel_l2 is None


def test_other_shapes_are_told_apart_and_not_measured():
    found = compare_tensors("w", tensor("F32", [1.0, 2.0]), tensor("F32", [[1.0, 2.0]]))

    assert TensorChange("w", ("F32", "F32"), ((2,), (1, 2))) == found
    assert not found.is_comparable


def test_floats_of_other_dtypes_are_measured_by_value():
    found = compare_tensors("w", tensor("F32", [1.0, 1.001]), tensor("BF16", [1.0, 1.0]))

    assert found is not None
    assert (0.5, None) == (found.changed_fraction, found.max_ulps)
    assert pytest.approx(0.001, rel=1e-3) == found.max_abs


def test_floats_and_integers_are_not_measured_against_each_other():
    found = compare_tensors("w", tensor("F32", [1.0]), tensor("I8", [1]))

    assert TensorChange("w", ("F32", "I8"), ((1,), (1,))) == found


def low_rank(rank: int, rows: int, columns: int, scale: float) -> tuple[Any, Any]:
    numbers = np.random.default_rng(rank)
    weights = numbers.normal(0, 0.02, (rows, columns)).astype(np.float32)
    delta = numbers.normal(0, scale, (rows, rank)) @ numbers.normal(0, 1, (rank, columns))
    return weights, delta


@pytest.mark.parametrize("shape", [(160, 96), (96, 160)])
@pytest.mark.parametrize(("dtype", "scale"), [("F32", 1e-4), ("BF16", 5e-3), ("F16", 5e-4)])
def test_a_low_rank_delta_has_its_rank_despite_rounding(dtype: str, scale: float, shape: tuple[int, int]):
    weights, delta = low_rank(4, *shape, scale)
    before = tensor(dtype, weights)
    after = tensor(dtype, before.array().astype(np.float64) + delta)

    found = compare_tensors("w", before, after)

    assert found is not None
    assert 4 == found.rank


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_rounding_alone_has_no_rank(dtype: str):
    numbers = np.random.default_rng(0)
    exact = numbers.normal(0, 0.02, (96, 64))
    before = tensor("F64", exact)
    after = tensor(dtype, exact)

    found = compare_tensors("w", before, after)

    assert found is not None
    assert 0 == found.rank


def test_a_full_rank_delta_has_full_rank():
    numbers = np.random.default_rng(0)

    found = change("F32", numbers.normal(size=(40, 30)), numbers.normal(size=(40, 30)))

    assert 30 == found.rank


def test_a_delta_in_one_row_has_rank_one():
    weights, _ = low_rank(1, 64, 64, 0)
    edited = weights.copy()
    edited[7] += 0.5

    assert 1 == change("BF16", weights, edited).rank


def test_the_rank_is_left_out_when_not_asked_for():
    found = compare_tensors("w", tensor("F32", [[1.0]]), tensor("F32", [[2.0]]), rank=False)

    assert found is not None
    assert found.rank is None


def test_a_stored_version_and_a_folder_are_compared_alike(tmp_path: Path):
    files = {
        "old/model.safetensors": made_model({"a": 1.0, "b": 1.0, "c": 1.0}),
        "new/model.safetensors": made_model({"b": 1.0, "c": 2.0, "d": 1.0}),
    }
    write_folder(tmp_path, files)
    store = ObjectStore(tmp_path / "objects")
    with store.batch() as batch:
        old, new = (StoredTensors(store_folder(look(tmp_path / side), batch), store) for side in ("old", "new"))

    from_store = compare(old, new)

    assert (("d",), ("a",), 1) == (from_store.added, from_store.removed, from_store.identical)
    assert ["c"] == [found.name for found in from_store.changed]
    assert from_store == compare(FolderTensors(tmp_path / "old"), FolderTensors(tmp_path / "new"))


def test_names_used_twice_are_told_apart_by_their_files(tmp_path: Path):
    write_folder(tmp_path, {"text/m.safetensors": made_model({"w": 1.0}), "unet/m.safetensors": made_model({"w": 2.0})})

    names = sorted(FolderTensors(tmp_path).names())

    assert ["text/m.safetensors:w", "unet/m.safetensors:w"] == names


def test_nothing_differs_between_a_folder_and_itself(tmp_path: Path):
    write_folder(tmp_path, {"m.safetensors": made_model({"w": 1.0, "empty": 1.0})})

    source = FolderTensors(tmp_path)

    assert WeightsChange((), (), (), 2) == compare(source, source)


def made_model(values: dict[str, float]) -> bytes:
    return safetensors(
        [MadeTensor(name, "F32", (2,), np.full(2, value, np.float32).tobytes()) for name, value in values.items()]
    )
