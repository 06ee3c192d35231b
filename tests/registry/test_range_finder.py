"""The sketch of a rank: what it answers is what all singular values say, and where it cannot tell it says so."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mreg.registry.models import weights
from mreg.registry.models.weights import SKETCHED_FROM, delta_rank
from mreg.registry.proof import range_finder

DTYPES = {"bf16": ml_dtypes.bfloat16, "fp32": np.float32}


def changed(rank: int | None, dtype: str, shape: tuple[int, int] = (256, 320)) -> Any:
    """A matrix, and the same with a delta of this rank, or of none, added and rounded."""
    chosen = np.random.default_rng(3)
    before = chosen.normal(0, 0.05, shape).astype(DTYPES[dtype])
    if rank is None:
        delta = chosen.normal(0, 0.002, shape)
    else:
        delta = 0.02 * chosen.normal(size=(shape[0], rank)) @ chosen.normal(size=(rank, shape[1]))
    return before, (before.astype(np.float64) + delta).astype(DTYPES[dtype])


def test_a_large_matrix_has_the_rank_that_was_added():
    assert 8 == delta_rank(*changed(8, "bf16", (SKETCHED_FROM, SKETCHED_FROM + 64)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 8, 64, range_finder.WIDTH + 20, None])
def test_a_rank_is_the_same_with_a_sketch_and_without(rank: int | None, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """More directions than a sketch has are counted one by one."""
    pair = changed(rank, dtype)
    exact = delta_rank(*pair)
    monkeypatch.setattr(weights, "SKETCHED_FROM", 128)

    assert exact == delta_rank(*pair)
    assert exact == (rank or exact)


def test_an_answer_is_that_of_all_singular_values_or_there_is_none():
    chosen = np.random.default_rng(4)
    ends = [1.0, 0.5, 0.2, 0.02]
    for last in (0.001, 0.009, 0.0101, 0.5):
        values = np.array([*ends, *([last] * 252)])
        u, v = (np.linalg.qr(chosen.normal(size=(256, 256)))[0] for _ in "uv")
        matrix = (u * values) @ v

        def rows(matrix: Any = matrix) -> Any:
            return iter(np.array_split(matrix, 7))

        found = range_finder.count_above(rows, 256, lambda largest: 0.01)

        assert found in (None, int(np.sum(values > 0.01))), last
        assert (found is not None) == (last == 0.001), last


def test_a_matrix_that_is_not_finite_has_none():
    matrix = np.full((300, 200), np.inf)

    with np.errstate(invalid="ignore"):
        assert range_finder.count_above(lambda: iter([matrix]), 200, lambda largest: 0.1) is None
