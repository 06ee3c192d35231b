"""The vocabulary: every operation by its name in stored objects. Names are added and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mreg.registry.models.weights import Array
from mreg.registry.store import prediction_factors, prediction_grid, prediction_sums, prediction_zeros
from mreg.registry.store.prediction_terms import Asked

OPERATIONS: Mapping[str, Callable[[Asked], Array]] = {
    "same": prediction_zeros.same,
    "cast": prediction_sums.cast,
    "linear": prediction_sums.linear,
    "task-vectors": prediction_sums.task_vectors,
    "low-rank": prediction_factors.low_rank,
    "dora": prediction_factors.dora,
    "factors": prediction_factors.factors,
    "scaled": prediction_factors.scaled,
    "threshold": prediction_zeros.threshold,
    "n-of-m": prediction_zeros.n_of_m,
    "take": prediction_zeros.take,
    "grid": prediction_grid.grid,
    "grid-scale": prediction_grid.grid_scale,
    "grid-zero-point": prediction_grid.grid_zero_point,
}
