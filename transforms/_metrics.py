"""Metrics and their intervals, from what was observed row by row: pure numpy, every interval a 95 % one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Found = dict[str, Any]
"""The fields of a score that measuring tells: metric, value, unit, n, unit_of_n, low, high, interval, details."""

Z = 1.959963984540054
RESAMPLES = 2000


def score(
    metric: str,
    value: float,
    n: int,
    unit_of_n: str,
    *,
    unit: str = "",
    bounds: tuple[float, float] | None = None,
    interval: str = "",
    details: Mapping[str, Any] | None = None,
) -> Found:
    """A score as it is recorded; what is not finite becomes None."""
    low, high = bounds or (math.nan, math.nan)
    return {
        "metric": metric,
        "value": _finite(value),
        "unit": unit,
        "n": n,
        "unit_of_n": unit_of_n,
        "low": _finite(low),
        "high": _finite(high),
        "interval": interval if bounds is not None and _finite(low) is not None else "",
        "details": dict(details or {}),
    }


def ratio(totals: Array, counts: Array) -> tuple[float, tuple[float, float] | None]:
    """Σ totals / Σ counts over rows, and its normal interval with rows as the independent units.

    Tokens of one row hang together, so the variance is that of a ratio estimator: n/(n-1) · Σ(tᵢ - r·cᵢ)² / (Σcᵢ)²
    (Cochran 1977, chapter 6). One row has no interval.
    """
    whole = float(counts.sum())
    value = float(totals.sum()) / whole
    rows = int((counts > 0).sum())
    if rows < 2 or not math.isfinite(value):
        return value, None
    residuals = (totals - value * counts)[counts > 0]
    error = math.sqrt(rows / (rows - 1) * float(np.square(residuals).sum())) / whole
    return value, (value - Z * error, value + Z * error)


def wilson(right: int, n: int) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927)."""
    share, square = right / n, Z * Z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(statistic: Callable[[Array], Array], rows: int, seed: int) -> tuple[float, float] | None:
    """The percentile bootstrap over rows (Efron 1979): `statistic` maps weights [resamples, rows] to as many values."""
    if rows < 2:
        return None
    chance = np.random.default_rng(seed)
    # A few at a time: the weights of many rows would not fit into memory.
    block = max(1, min(RESAMPLES, 4_000_000 // rows))
    values: list[Array] = []
    for start in range(0, RESAMPLES, block):
        weights = chance.multinomial(rows, np.full(rows, 1 / rows), size=min(block, RESAMPLES - start))
        values.append(statistic(weights.astype(np.float64)))
    everything = np.concatenate(values)
    if not np.isfinite(everything).any():
        return None
    low, high = np.nanpercentile(everything, [2.5, 97.5])
    return float(low), float(high)


def exponential(value: float) -> float:
    """exp, which is infinite where a float ends."""
    return math.exp(value) if value < 709 else math.inf


class Calibration:
    """How often the most probable answer is right, by bins of equal width of its probability (Guo et al. 2017)."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._rows: list[Array] = []

    def add(self, confidence: Array, right: Array) -> None:
        """One row: the probabilities [n] of the most probable answers, and whether each was right."""
        places = np.clip(np.ceil(np.nan_to_num(confidence) * self.bins).astype(int) - 1, 0, self.bins - 1)
        counted = [np.bincount(places, weights, self.bins) for weights in (np.ones_like(confidence), confidence, right)]
        self._rows.append(np.stack(counted).astype(np.float64))

    def score(self, unit_of_n: str, seed: int) -> Found:
        """ECE = Σ nᵦ/n · |accᵦ - confᵦ|, with the bins as details."""
        rows = np.stack(self._rows)  # [rows, 3, bins]

        def error(weights: Array) -> Array:
            counts, confidence, right = np.moveaxis(np.tensordot(weights, rows, axes=1), 1, 0)
            gaps: Array = np.abs(right - confidence).sum(axis=1) / counts.sum(axis=1)
            return gaps

        value = float(error(np.ones((1, len(rows))))[0])
        counts, confidence, right = rows.sum(axis=0)
        held = np.maximum(counts, 1)
        bins = [
            {"n": int(n), "confidence": _finite(round(float(c), 6)), "accuracy": _finite(round(float(a), 6))}
            for n, c, a in zip(counts, confidence / held, right / held, strict=True)
        ]
        bounds = bootstrap(error, len(rows), seed)
        return score(
            "ece",
            value,
            int(counts.sum()),
            unit_of_n,
            bounds=bounds,
            interval="bootstrap over rows",
            details={"bins": bins},
        )


def classification(
    probabilities: Array,
    labels: npt.NDArray[np.int64],
    names: list[str],
    bins: int,
    seed: int,
    *,
    of: npt.NDArray[np.int64] | None = None,
    unit: str = "rows",
) -> dict[str, Found]:
    """Every score of a classifier, from probabilities [n, classes] and labels [n] as numbers of classes.

    `of` has the row of each of the n, for words of which several stand in one: rows are the independent units.
    """
    n, classes = probabilities.shape
    answers = probabilities.argmax(axis=1)
    right = answers == labels
    losses = -np.log(np.maximum(probabilities[np.arange(n), labels], np.finfo(np.float64).tiny))
    truth = np.eye(classes)[labels]
    squares = np.square(probabilities - truth).sum(axis=1)
    given = np.eye(classes)[answers]
    seen = (truth.sum(axis=0) + given.sum(axis=0)) > 0
    places = np.arange(n) if of is None else np.unique(of, return_inverse=True)[1]
    counts = _by_row(np.ones(n), places)
    rows = len(counts)
    hit, said_of, there_of = (_by_row(each, places) for each in (truth * given, given, truth))

    def per_class(weights: Array) -> Array:
        hits, said, there = weights @ hit, weights @ said_of, weights @ there_of
        shares: Array = 2 * hits / np.maximum(said + there, 1e-12)
        return shares

    def macro(weights: Array) -> Array:
        mean: Array = per_class(weights)[:, seen].mean(axis=1)
        return mean

    ones = np.ones((1, rows))
    each = per_class(ones)[0]
    calibration = Calibration(bins)
    confidence = probabilities.max(axis=1)
    ends = np.cumsum(counts).astype(int)[:-1]
    order = np.argsort(places, kind="stable")
    for held in np.split(order, ends):
        calibration.add(confidence[held], right[held].astype(np.float64))
    nll, nll_bounds = ratio(_by_row(losses, places), counts)
    brier, brier_bounds = ratio(_by_row(squares, places), counts)
    normal = "normal over rows"
    by_class = {names[k]: round(float(each[k]), 6) for k in range(classes) if seen[k]}
    return {
        "accuracy": _share("accuracy", right, places, unit),
        "f1": score("f1", float(macro(ones)[0]), n, unit, bounds=bootstrap(macro, rows, seed),
                    interval="bootstrap over rows", details={"by_class": by_class}),
        "nll": score("nll", nll, n, unit, unit="nats", bounds=nll_bounds, interval=normal),
        "brier": score("brier", brier, n, unit, bounds=brier_bounds, interval=normal),
        "ece": calibration.score(unit, seed),
    }  # fmt: skip


def difference(apart: Array, agreed: npt.NDArray[np.bool_], of: npt.NDArray[np.int64], unit: str) -> dict[str, Found]:
    """How far two classifiers are apart: from the KL [n] of each label, whether both chose alike, and its row."""
    places = np.unique(of, return_inverse=True)[1]
    value, bounds = ratio(_by_row(apart, places), _by_row(np.ones(len(apart)), places))
    kl = score("kl", value, len(apart), unit, unit="nats", bounds=bounds, interval="normal over rows")
    return {"kl": kl, "agreement": _share("agreement", agreed, places, unit)}


def _share(metric: str, held: npt.NDArray[np.bool_], places: npt.NDArray[np.int64], unit: str) -> Found:
    """A share of the n, and its interval: Wilson's where each is a row of its own."""
    n, value = len(held), float(held.mean())
    if n == places.max() + 1:
        return score(metric, value, n, unit, bounds=wilson(int(held.sum()), n), interval="Wilson")
    _, around = ratio(_by_row(held.astype(np.float64), places), _by_row(np.ones(n), places))
    bounds = None if around is None else (max(0.0, around[0]), min(1.0, around[1]))
    return score(metric, value, n, unit, bounds=bounds, interval="normal over rows")


def _by_row(values: Array, places: npt.NDArray[np.int64]) -> Array:
    """Sums over the rows of values [n] or [n, k]; `places` has the row of each of the n."""
    sums: Array = np.zeros((int(places.max()) + 1, *values.shape[1:]))
    np.add.at(sums, places, values)
    return sums


def median(metric: str, values: list[float], unit: str, seed: int) -> Found:
    """The median of repeated timings, with the bootstrap of it."""
    taken = np.asarray(values)
    chance = np.random.default_rng(seed)
    drawn = np.median(chance.choice(taken, size=(RESAMPLES, len(taken))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return score(
        metric,
        float(np.median(taken)),
        len(values),
        "repeats",
        unit=unit,
        bounds=(float(low), float(high)) if len(values) > 1 else None,
        interval="bootstrap over repeats",
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
