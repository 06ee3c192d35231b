"""Verdicts: what a replayed step came to."""

from __future__ import annotations

from typing import Any

import pytest
from mreg.registry.verdict import ORDER, differences, is_reproduced, judge, same, weakest
from mreg.registry.weight_sources import WeightsChange
from mreg.registry.weights import TensorChange

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
        "max_abs": 0.1,
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
