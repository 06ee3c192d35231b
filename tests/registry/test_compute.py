"""What a version took, alone and with all that led to it, and what a dataset went into."""

from __future__ import annotations

import pytest
from mreg.registry import Registry
from mreg.registry.log import events as e
from mreg.registry.models.datasets import UnknownDataset

from tests.histories import digest, finished, imported, made, started

ROWS = e.DatasetAdded(
    digest=digest(9, "f"), name="rows", rows=3, bytes=70, columns=("text",), format="csv", source="/rows.csv"
)


def run(
    registry: Registry, name: str, child: int, *parents: int, data: bool = False, wall_s: float = 1.0, **facts: float
):
    registry.log.append(started(name, *parents, datasets=(ROWS.digest,) * data))
    registry.log.append(finished(name, child, facts=facts, wall_s=wall_s))


@pytest.fixture
def diamond(registry: Registry) -> Registry:
    """v2 and v3 are trained on v1, the first of them on the rows; v4 merges them, v5 comes of v3 alone."""
    registry.log.append(imported(1))
    registry.log.append(ROWS)
    run(registry, "a", 2, 1, data=True, tokens=100, flops=1e18, wall_s=10)
    run(registry, "b", 3, 1, tokens=10, wall_s=2)
    run(registry, "c", 4, 2, 3)
    run(registry, "d", 5, 3, wall_s=4)
    return registry


def test_the_compute_of_a_version_adds_up_every_run_before_it_once(diamond: Registry):
    run(diamond, "e", 6, 4, 2, 3, flops=5)

    compute = diamond.show("v6")["compute"]

    assert {"runs": 1, "wall_s": 1, "tokens": None, "flops": 5} == compute["step"]
    assert {"runs": 4, "wall_s": 14, "tokens": 110, "flops": 1e18 + 5} == compute["lineage"]


def test_an_import_took_nothing(diamond: Registry):
    nothing = {"runs": 0, "wall_s": None, "tokens": None, "flops": None}

    assert {"step": nothing, "lineage": nothing} == diamond.show("v1")["compute"]


def test_facts_that_are_no_numbers_do_not_count(registry: Registry):
    registry.log.append(imported(1))
    registry.log.append(started("a", 1))
    registry.log.append(finished("a", 2, facts={"tokens": "many", "flops": [1]}))

    assert {"runs": 1, "wall_s": 1.5, "tokens": None, "flops": None} == registry.show("v2")["compute"]["step"]


def test_a_run_that_made_a_version_again_does_not_count_twice(diamond: Registry):
    run(diamond, "again", 2, 1, tokens=1000)

    assert 100 == diamond.show("v2")["compute"]["lineage"]["tokens"]


def test_a_dataset_went_into_what_was_trained_on_it_and_into_all_that_came_of_that(diamond: Registry):
    run(diamond, "e", 6, 4, data=True)

    dataset, found = diamond.trained_on("rows")

    assert ROWS.digest == dataset.digest
    assert [2, 4, 6] == [node["number"] for node in found.nodes]
    assert {digest(2), digest(6)} == found.direct
    assert ([], [digest(2)], [digest(4)]) == tuple(found.through(digest(number)) for number in (2, 4, 6))


def test_a_version_that_was_recorded_as_trained_on_it_counts_too(diamond: Registry):
    diamond.log.append(made(7, 1, datasets=(ROWS.digest,)))

    assert digest(7) in diamond.trained_on(ROWS.digest[:8])[1].direct


def test_a_dataset_that_is_not_there_is_told_with_the_nearest(diamond: Registry):
    with pytest.raises(UnknownDataset, match=r"no dataset is called 'row' .* did you mean rows"):
        diamond.trained_on("row")
