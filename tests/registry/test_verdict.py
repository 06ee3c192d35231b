"""Verdicts: what a replayed step came to."""

from __future__ import annotations

from typing import Any

import pytest
from mreg.registry.models.weight_sources import WeightsChange
from mreg.registry.models.weights import TensorChange
from mreg.registry.replay.verdict import MOST_ULPS, ORDER, differences, diverges, is_reproduced, judge, same, weakest

from tests.histories import content


def changed(name: str, *, dtype: str = "F32", rel_l2: float | None = 0.0, **more: Any) -> TensorChange:
    return TensorChange(name, ("F32", dtype), ((2,), (2,)), max_abs=more.pop("max_abs", 0.5), rel_l2=rel_l2, **more)


def change(*tensors: TensorChange, added: tuple[str, ...] = (), removed: tuple[str, ...] = ()) -> WeightsChange:
    return WeightsChange(added, removed, tensors, 3)


def test_digests_decide_when_they_can():
    recorded = content(1)
    resharded = recorded.model_copy(update={"digest": content(2).digest})

    assert "bytes" == same(recorded, recorded)
    assert "tensors" == same(recorded, resharded)
    assert same(recorded, content(2)) is None


def test_weights_within_the_tolerance_are_close_and_the_worst_is_named():
    judged = judge(change(changed("a", rel_l2=1e-4, max_abs=0.1), changed("b", rel_l2=1e-3, max_abs=0.01)), 1e-3)

    assert {
        "verdict": "close",
        "reason": "",
        "changed_tensors": 2,
        "first_tensor": "a",
        "max_abs": 0.1,
        "max_rel": None,
        "max_ulps": None,
        "rel_l2": 1e-3,
        "worst_tensor": "b",
    } == judged


@pytest.mark.parametrize(
    "weights",
    [
        change(changed("a", rel_l2=2e-3)),
        change(changed("a", rel_l2=None)),
        change(changed("a", dtype="BF16")),
        change(changed("a", non_finite=1)),
        change(added=("a",)),
        change(removed=("a", "b")),
        change(changed("a"), added=("c",)),
    ],
)
def test_anything_else_is_different(weights: WeightsChange):
    assert "different" == judge(weights, 1e-3)["verdict"]


def test_the_first_tensor_is_that_of_the_manifest_and_the_largest_distances_may_lie_elsewhere():
    weights = change(
        changed("a", rel_l2=0.5, max_rel=0.25, max_ulps=3), changed("c", rel_l2=0.25, max_rel=2.0, max_ulps=9)
    )

    judged = judge(weights, 1e-3, ("z", "c", "b", "a"))

    assert ("c", "a") == (judged["first_tensor"], judged["worst_tensor"])
    assert (2.0, 9) == (judged["max_rel"], judged["max_ulps"])


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        (change(changed("b"), removed=("a",)), "a"),
        (change(changed("b"), added=("a",)), "b"),
        (change(added=("e", "f")), "e"),
    ],
)
def test_a_tensor_that_is_gone_differs_too_and_one_that_came_is_named_where_there_is_no_other(
    weights: WeightsChange, first: str
):
    assert first == judge(weights, 1e-3, ("a", "b"))["first_tensor"]


def test_a_distance_that_json_cannot_carry_is_left_out():
    assert judge(change(changed("a", max_ulps=MOST_ULPS), changed("b", max_ulps=3)), 1)["max_ulps"] is None


def test_weights_that_differ_where_no_tensor_does_are_different():
    judged = judge(change(), 1.0)

    assert "different" == judged["verdict"]
    assert "not told apart" in judged["reason"]


def test_only_the_same_bits_do_not_diverge():
    assert ["close", "different", "failed", "not-attempted"] == [verdict for verdict in ORDER if diverges(verdict)]


def test_tensors_that_came_and_went_are_counted():
    assert "1 tensors more, 2 fewer" == judge(change(added=("a",), removed=("b", "c")), 1e-3)["reason"]


def test_what_cannot_be_compared_is_the_worst():
    judged = judge(change(changed("a", rel_l2=9.0), changed("b", rel_l2=None, max_abs=None)), 1e-3)

    assert ("b", None, 0.5) == (judged["worst_tensor"], judged["rel_l2"], judged["max_abs"])


def test_the_weakest_step_decides():
    for place, verdict in enumerate(ORDER):
        assert verdict == weakest(ORDER[: place + 1])
    assert "not-attempted" == weakest([])


def test_only_the_three_strongest_mean_that_it_came_out_again():
    assert ["bytes", "tensors", "close"] == [verdict for verdict in ORDER if is_reproduced(verdict)]


def test_environments_differ_by_name():
    recorded = {"threads": 2, "torch": "2.8", "cpu": {"name": "a", "flags": 3}, "gone": 1}
    now = {"threads": 1, "torch": "2.8", "cpu": {"name": "a", "flags": 4}, "come": None}

    assert {"threads": (2, 1), "cpu.flags": (3, 4), "gone": (1, None)} == differences(recorded, now)
