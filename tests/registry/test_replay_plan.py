"""Plans of replays: how long they take, and what stands behind what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mreg.registry.chains.recipe import Step
from mreg.registry.replay.plan import ReplayPlan
from mreg.registry.versions import Version

from tests.histories import content, digest


def step(number: int, *inputs: int, wall_s: float | None = 2.0) -> Step:
    used = tuple(("source", digest(one)) for one in inputs)
    return Step(digest(number), "prune", "apply", inputs=used, wall_s=wall_s, datasets=(digest(90 + number),))


def planned(*steps: Step) -> ReplayPlan:
    last = content(4).model_dump()
    more = {"base": None, "marks": (), "origin": "apply", "transform": "prune", "run": "r", "source": None}
    target = Version(number=4, **last, **more, message="", seq=9, recorded_at="")  # type: ignore[arg-type]
    return ReplayPlan(target, True, steps, (), {}, {digest(n): f"v{n}" for n in range(9)})


DIAMOND = planned(step(1, 0), step(2, 1), step(3, 1, wall_s=5.0), step(4, 2, 3))


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 11.0), (2, 9.0), (8, 9.0)])
def test_steps_that_do_not_rest_on_each_other_take_less_with_more_jobs(jobs: int, seconds: float):
    assert seconds == DIAMOND.estimate(jobs)


def test_steps_of_which_no_time_is_known_take_none():
    assert 0.0 == planned(step(1, 0, wall_s=None), step(2, 1, wall_s=None)).estimate(2)


def test_what_comes_after_a_step_that_cannot_be_done_is_not_done_and_takes_no_time():
    plan = replace(DIAMOND, missing={digest(3): "made elsewhere"})

    assert {digest(3): "made elsewhere", digest(4): "comes after v3"} == plan.blocked
    assert 4.0 == plan.estimated_s


def test_a_step_comes_after_the_one_that_makes_its_data():
    plan = replace(planned(step(1, 0), step(2, 0)), makers={digest(92): digest(1)})

    assert [(), (digest(1),)] == [plan.comes_after(one) for one in plan.steps]
