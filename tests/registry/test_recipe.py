"""Recipes: the steps that lead to a version, and how two of them differ."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.chains.recipe import Step, StepChange, chain, compare
from mreg.registry.digests import Digest

from tests.histories import digest


def imported(number: int) -> Step:
    return Step(version=digest(number), transform="import")


def step(number: int, transform: str, *parents: int, seed: int = 0, **params: Any) -> Step:
    inputs = tuple(("source" if place == 0 else "others", digest(parent)) for place, parent in enumerate(parents))
    return Step(version=digest(number), transform=transform, mode="apply", params=params, inputs=inputs, seed=seed)


def lookup(*steps: Step) -> Any:
    return {one.version: one for one in steps}.__getitem__


DIAMOND = (imported(1), step(2, "prune", 1), step(3, "cast", 1), step(4, "merge", 2, 3))


def test_every_step_comes_after_its_inputs_and_once():
    assert [*DIAMOND] == chain(digest(4), lookup(*DIAMOND))


def test_an_import_is_its_own_recipe():
    assert [imported(1)] == chain(digest(1), lookup(*DIAMOND))


def test_what_is_stopped_at_is_not_looked_behind():
    steps = chain(digest(4), lookup(*DIAMOND), stop=lambda one: one.transform == "prune")

    assert ["prune", "import", "cast", "merge"] == [one.transform for one in steps]


def test_a_long_chain_needs_no_recursion():
    steps = [imported(1), *(step(number, "cast", number - 1) for number in range(2, 5000))]

    assert steps == chain(digest(4999), lookup(*steps))


def test_equal_recipes_on_other_bases_differ_in_the_base():
    a = [imported(1), step(2, "prune", 1, sparsity=0.5)]
    b = [imported(5), step(6, "prune", 5, sparsity=0.5)]

    assert [
        StepChange("changed", "import", digest(1), digest(5), {"content": (digest(1), digest(5))}),
        StepChange("same", "prune", digest(2), digest(6)),
    ] == compare(a, b)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ({"sparsity": 0.5}, {"sparsity": 0.3}, {"sparsity": (0.5, 0.3)}),
        ({"a": 1, "b": 2}, {"b": 2, "c": 3}, {"a": (1, None), "c": (None, 3)}),
        ({"seed": 1}, {"seed": 2}, {"seed": (1, 2)}),
    ],
)
def test_a_changed_step_says_which_params(old: dict[str, Any], new: dict[str, Any], changed: dict[str, Any]):
    found = compare([imported(1), step(2, "prune", 1, **old)], [imported(1), step(3, "prune", 1, **new)])

    assert StepChange("changed", "prune", digest(2), digest(3), changed) == found[1]


def test_steps_that_came_and_went_are_told_in_order():
    a = [imported(1), step(2, "finetune", 1), step(3, "prune", 2), step(4, "quantize", 3)]
    b = [imported(1), step(5, "merge", 1), step(6, "quantize", 5), step(7, "calibrate", 6)]

    assert [
        ("same", "import"),
        ("removed", "finetune"),
        ("removed", "prune"),
        ("added", "merge"),
        ("same", "quantize"),
        ("added", "calibrate"),
    ] == [(change.kind, change.transform) for change in compare(a, b)]


_STEPS = st.lists(
    st.builds(
        lambda number, transform, sparsity: step(number, transform, 1, sparsity=sparsity),
        st.integers(2, 9),
        st.sampled_from(["prune", "cast", "merge"]),
        st.sampled_from([0.1, 0.2]),
    ),
    max_size=7,
)


@given(_STEPS)
def test_a_recipe_is_the_same_as_itself(steps: list[Step]):
    assert {"same"} >= {change.kind for change in compare(steps, steps)}


@given(_STEPS, _STEPS)
def test_a_comparison_accounts_for_every_step_of_both_once(a: list[Step], b: list[Step]):
    found = compare(a, b)

    assert [one.version for one in a] == _present(change.a for change in found)
    assert [one.version for one in b] == _present(change.b for change in found)


def _present(versions: Any) -> list[Digest]:
    return [version for version in versions if version is not None]
