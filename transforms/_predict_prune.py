"""Pruning as predictions: below which magnitude weights went, or which rows and columns stayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from mreg.registry.models.weights import same_bytes
from mreg.transforms._predicting import FLOATS, prediction, shared

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import TensorSource
    from mreg.registry.models.weights import Array
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction
    from mreg.transforms.prune import PruneParams

_CHUNK = 1 << 18


def predictions(params: PruneParams, made: Made) -> Iterator[tuple[str, Prediction]]:
    """What each matrix is of the source's."""
    source = made.inputs["source"][0]
    if params.method == "structured":
        yield from _cut(source, made.output)
    if params.method != "magnitude":
        return
    for name in shared(made.output, [source], known=(*FLOATS, "F64")):
        (dtype, shape), (now, _) = source.layout(name), made.output.layout(name)
        if dtype != now or len(shape) != 2:
            continue
        before, after = source.tensor(name), made.output.tensor(name)
        if same_bytes(before.data, after.data):
            continue
        if params.pattern is not None:
            pattern = params.n_of_m
            yield name, prediction("n-of-m", [(source, name)], {"keep": pattern.keep, "of": pattern.group})
        elif params.scope == "per-row":
            keep = shape[1] - round(params.fraction * shape[1])
            yield name, prediction("n-of-m", [(source, name)], {"keep": keep, "of": shape[1]})
        elif (found := cutoff(before.array().reshape(-1), after.array().reshape(-1))) is not None:
            size, until = found
            yield name, prediction("threshold", [(source, name)], {"size": size, "until": until})


def cutoff(before: Array, after: Array) -> tuple[float, int] | None:
    """The largest magnitude that became zero, and behind the last place where it did; None if nothing went.

    Found in what came out, so that it does not matter how it was chosen: for each tensor, for all, by another tool.
    """
    unsigned = f"u{before.dtype.itemsize}"
    sign = np.array(1 << (before.dtype.itemsize * 8 - 1), unsigned)
    largest, until = -1, 0
    for start in range(0, len(before), _CHUNK):
        sizes = before[start : start + _CHUNK].view(unsigned) & ~sign
        sizes = np.where(after[start : start + _CHUNK].view(unsigned) == 0, sizes, 0)
        most = int(sizes.max(initial=0))
        if most and most >= largest:
            largest, until = most, start + int(np.flatnonzero(sizes == most)[-1]) + 1
    size = float(np.array([max(largest, 0)], unsigned).view(before.dtype)[0])
    return (size, until) if largest >= 0 and np.isfinite(size) else None


def _cut(source: TensorSource, output: TensorSource) -> Iterator[tuple[str, Prediction]]:
    """Tensors of which rows or columns are left, each as it was."""
    held = set(source.names())
    for name in output.names():
        if name not in held:
            continue
        (dtype, shape), (now, short) = source.layout(name), output.layout(name)
        shorter = [place for place, (was, left) in enumerate(zip(shape, short, strict=False)) if was != left]
        if dtype != now or len(shape) != len(short) or len(shorter) != 1 or shorter[0] > 1:
            continue
        before, after = source.tensor(name).array(), output.tensor(name).array()
        stayed = _stayed(before.swapaxes(0, shorter[0]), after.swapaxes(0, shorter[0]))
        if stayed is not None:
            axis = "rows" if shorter[0] == 0 else "columns"
            yield name, prediction("take", [(source, name)], {"axis": axis, "runs": stayed})


def _stayed(before: Array, after: Array) -> list[list[int]] | None:
    """The rows of one that are the rows of the other, as runs of [first, count]; None where a row is not found."""
    runs: list[list[int]] = []
    at = 0
    for row in after:
        wanted = row.tobytes()
        while at < len(before) and before[at].tobytes() != wanted:
            at += 1
        if at == len(before):
            return None
        if runs and sum(runs[-1]) == at:
            runs[-1][1] += 1
        else:
            runs.append([at, 1])
        at += 1
    return runs
