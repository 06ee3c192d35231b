"""Metrics and intervals, held against the libraries that have them and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from mreg.transforms import _metrics


@pytest.mark.parametrize(("right", "n"), [(0, 7), (3, 7), (7, 7), (450, 1000)])
def test_the_wilson_interval_is_that_of_scipy(right: int, n: int):
    from scipy.stats import binomtest

    theirs = binomtest(right, n).proportion_ci(0.95, "wilson")

    assert pytest.approx((theirs.low, theirs.high), abs=1e-12) == _metrics.wilson(right, n)


def test_scores_of_a_classifier_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    chance = np.random.default_rng(1)
    probabilities = chance.dirichlet(np.ones(3), 60)
    labels = chance.integers(0, 3, 60)
    found = _metrics.classification(probabilities, labels, ["a", "b", "c"], 15, 0)
    answers = probabilities.argmax(axis=1)

    assert pytest.approx(accuracy_score(labels, answers)) == found["accuracy"]["value"]
    assert pytest.approx(f1_score(labels, answers, average="macro")) == found["f1"]["value"]
    assert pytest.approx(log_loss(labels, probabilities)) == found["nll"]["value"]
    assert pytest.approx(np.square(probabilities - np.eye(3)[labels]).sum(1).mean()) == found["brier"]["value"]
    for score in found.values():
        assert score["low"] <= score["value"] <= score["high"] or score["metric"] == "ece"


def test_saying_every_word_of_a_row_twice_makes_nothing_surer():
    """Words of one row hang together: rows are the units of every interval."""
    chance = np.random.default_rng(2)
    probabilities, labels = chance.dirichlet(np.ones(3), 40), chance.integers(0, 3, 40)
    of = np.repeat([7, 3, 9, 1, 5, 2, 8, 4], 5)
    names = ["a", "b", "c"]

    once = _metrics.classification(probabilities, labels, names, 15, 0, of=of, unit="words")
    twice = _metrics.classification(
        np.concatenate([probabilities, probabilities]),
        np.concatenate([labels, labels]),
        names,
        15,
        0,
        of=np.concatenate([of, of]),
        unit="words",
    )

    for name, score in once.items():
        bounds = [(one["value"], one["low"], one["high"]) for one in (score, twice[name])]
        assert pytest.approx(bounds[0]) == bounds[1], name
        assert (40, 80, "words") == (score["n"], twice[name]["n"], score["unit_of_n"])


def test_a_class_that_nobody_has_and_nobody_says_does_not_count_in_f1():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    found = _metrics.classification(probabilities, np.array([0, 1]), ["a", "b", "c"], 15, 0)

    assert (1.0, {"a": 1.0, "b": 1.0}) == (found["f1"]["value"], found["f1"]["details"]["by_class"])


def test_ece_is_the_mean_gap_of_the_bins():
    calibration = _metrics.Calibration(10)
    calibration.add(np.array([0.95, 0.95]), np.array([1.0, 0.0]))
    calibration.add(np.array([0.55, 0.55]), np.array([1.0, 1.0]))
    score = calibration.score("tokens", 0)

    assert pytest.approx((0.45 * 2 + 0.45 * 2) / 4) == score["value"]
    assert {"n": 2, "confidence": 0.95, "accuracy": 0.5} == score["details"]["bins"][9]


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    """Rows of unequal length, 95 % intervals: about 95 of 100 hold the truth."""
    chance = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        counts = chance.integers(5, 60, 80).astype(float)
        totals = counts * (2.0 + chance.normal(0, 0.5, 80))
        _, bounds = _metrics.ratio(totals, counts)
        assert bounds is not None
        held += bounds[0] <= 2.0 <= bounds[1]

    assert 0.91 <= held / 400 <= 0.98


def test_one_row_has_no_interval_and_what_is_no_number_is_none():
    alone = _metrics.ratio(np.array([3.0]), np.array([2.0]))
    broken = _metrics.score("nll", float("nan"), 2, "tokens", bounds=(float("nan"), 1.0), interval="normal")

    assert (1.5, None) == alone
    assert (None, None, "") == (broken["value"], broken["low"], broken["interval"])


def test_the_bootstrap_is_the_same_for_the_same_seed_and_holds_the_mean():
    values = np.random.default_rng(0).normal(5, 1, 200)

    def mean(weights: _metrics.Array) -> _metrics.Array:
        return weights @ values / weights.sum(axis=1)

    bounds = _metrics.bootstrap(mean, 200, 7)

    assert bounds == _metrics.bootstrap(mean, 200, 7)
    assert bounds is not None
    # ±1.96 · s/√n
    assert pytest.approx((values.mean() - 0.136, values.mean() + 0.136), abs=0.02) == bounds
