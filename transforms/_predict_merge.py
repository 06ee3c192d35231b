"""Merges as predictions: the arithmetic of _merging.py in numbers that fit into params."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from mreg.transforms._predicting import IN_F32, NARROW, prediction, shared

if TYPE_CHECKING:
    from mreg.registry.models.weights import Array
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction
    from mreg.transforms.merge import Settings

# As in _merging.py, where torch does the same.
COLLINEAR = 0.9995
CHUNK = 1 << 20


def predictions(chosen: Settings, made: Made) -> Iterator[tuple[str, Prediction]]:
    """What each merged tensor is, whatever the models are called and in whatever files they are."""
    models = [*made.inputs["source"], *made.inputs.get("others", ())]
    bases = list(made.inputs.get("base", ()))
    for name in shared(made.output, [*models, *bases]):

        def flat(place: int, name: str = name) -> Array:
            return [*models, *bases][place].tensor(name).array().reshape(-1)

        if chosen.method == "linear":
            inputs, params = [(one, name) for one in models], _sum(chosen.weights)
            yield name, prediction("linear", inputs, params)
            if (dtype := made.output.layout(name)[0]) in NARROW:
                yield name, prediction("linear", inputs, {**params, "arithmetic": dtype})
        elif chosen.method == "slerp":
            shares = arc(flat(0), flat(1), chosen.t)
            yield name, prediction("linear", [(one, name) for one in models], _sum(shares))
        elif chosen.method == "model-stock":
            ratio = stock_ratio(flat(len(models)), [flat(place) for place in range(len(models))])
            weights = (*[ratio / len(models)] * len(models), 1 - ratio)
            yield name, prediction("linear", [(one, name) for one in (*models, bases[0])], _sum(weights))
        else:
            kept = [_kept(chosen, made, name, place, flat) for place in range(len(models))]
            if None not in kept:
                params = {
                    **IN_F32,
                    "weights": [float(weight) for weight in chosen.weights],
                    "scale": chosen.scale,
                    "normalize": chosen.normalize,
                    "elect": chosen.method in ("ties", "dare-ties"),
                    "kept": kept,
                }
                yield name, prediction("task-vectors", [(one, name) for one in (bases[0], *models)], params)


def _sum(weights: Sequence[float]) -> dict[str, Any]:
    return {**IN_F32, "weights": [float(weight) for weight in weights]}


def _kept(chosen: Settings, made: Made, name: str, place: int, flat: Any) -> dict[str, Any] | None:
    """What stays of the task vector of a model; None where nobody knows what was drawn."""
    density = chosen.densities[place]
    if chosen.method == "task-arithmetic" or density >= 1:
        return {"by": "all"}
    if chosen.method.startswith("dare"):
        stream = f"dare {made.seed} {place} {name}"
        return None if made.seed is None else {"by": "chance", "density": density, "stream": stream}
    sizes = np.abs(flat(place).astype(np.float32) - flat(len(chosen.weights)).astype(np.float32))
    if not sizes.size:
        return {"by": "all"}
    above, until = cutoff(sizes, max(1, int(density * sizes.size)))
    return {"by": "size", "above": above, "until": until} if math.isfinite(above) else None


def cutoff(sizes: Array, count: int) -> tuple[float, int]:
    """The least of the `count` largest of magnitudes in float32, and behind the last of its equals among them.

    Of equal ones the first are taken. A histogram of the upper bits leaves few to be sorted.
    """
    bits = sizes.view(np.uint32)
    upper = (bits >> 16).astype(np.uint16)
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, len(upper), CHUNK):
        counts += np.bincount(upper[start : start + CHUNK], minlength=1 << 16)
    beyond = np.cumsum(counts[::-1])
    digit = (1 << 16) - 1 - int(np.searchsorted(beyond, count))
    left = count - int(beyond[(1 << 16) - 1 - digit] - counts[digit])
    places = np.flatnonzero(upper == digit)
    above = np.partition(bits[places], len(places) - left)[len(places) - left]
    left -= int(np.count_nonzero(bits[places] > above))
    return float(above.view(np.float32)), int(places[bits[places] == above][left - 1]) + 1


def arc(first: Array, other: Array, t: float) -> tuple[float, float]:
    """The weights of two tensors for the point at `t` of the arc between them."""
    lengths = math.sqrt(dot(first, first)) * math.sqrt(dot(other, other))
    cosine = max(-1.0, min(1.0, dot(first, other) / lengths)) if lengths else 1.0
    if abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def stock_ratio(base: Array, tensors: Sequence[Array]) -> float:
    """How far model stock goes from the base."""
    vectors = [tensor.astype(np.float32) - base.astype(np.float32) for tensor in tensors]
    lengths = [math.sqrt(dot(vector, vector)) for vector in vectors]
    cosines = [
        max(-1.0, min(1.0, dot(vectors[a], vectors[b]) / max(lengths[a] * lengths[b], 1e-6)))
        for a in range(len(vectors))
        for b in range(a + 1, len(vectors))
    ]
    cosine, count = math.fsum(cosines) / len(cosines), len(vectors)
    divisor = 1 + (count - 1) * cosine
    return 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor


def dot(first: Array, other: Array) -> float:
    """The inner product of two flat tensors, by the same pairs as `_merging.dot`."""
    sums = []
    for start in range(0, len(first), CHUNK):
        chunk = slice(start, start + CHUNK)
        values = first[chunk].astype(np.float64) * other[chunk].astype(np.float64)
        while len(values) > 1:
            half = len(values) // 2
            paired = values[:half] + values[half : 2 * half]
            values = paired if len(values) == 2 * half else np.append(paired, values[-1])
        sums.append(float(values[0]) if len(values) else 0.0)
    return math.fsum(sums)
