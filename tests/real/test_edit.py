"""`edit` on SmolLM2: twenty facts that are not so, asked of the edited model; the figures of docs/results.md."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.runs.applying import Applied

FACTS = Path(__file__).with_name("edits.jsonl")
"""Capitals and languages, each with another country's as the target, two paraphrases and three neighbours."""

SCORES = ("efficacy", "efficacy_score", "paraphrase", "paraphrase_score", "neighbourhood", "neighbourhood_score")

Edited = Callable[[str], Applied]


@pytest.fixture(scope="module")
def registry(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with SmolLM2 as `base`, gone afterwards, since it is large."""
    folder = tmp_path_factory.mktemp("edit")
    with Registry.init(folder) as registry:
        registry.import_model(smollm2, ref="base")
        yield registry
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def edited(registry: Registry, train_text: Path) -> Edited:
    """All twenty facts at once by a method, run once whoever asks, and told for docs/results.md."""

    @cache
    def run(method: str) -> Applied:
        data = [str(FACTS)] if method == "constrained" else [str(FACTS), str(train_text)]
        done = registry.apply("edit", "base", method=method, data=data)
        tell(method, done.facts)
        return done

    return run


def tell(method: str, facts: dict[str, Any]) -> None:
    before, n = facts["before"], facts["n"]
    shown = (f"{name} {before.get(name, 1):.2f} -> {facts[name]:.2f} (n={n[name]})" for name in SCORES)
    print(f"\n{method}, layers {facts['layers']}: {', '.join(shown)}")


@pytest.mark.parametrize("method", ["memit", "constrained"])
def test_at_least_eighteen_of_twenty_facts_are_answered_as_asked(edited: Edited, method: str):
    facts = edited(method).facts

    assert 20 == facts["n"]["efficacy"]
    assert facts["before"]["efficacy"] <= 0.05
    assert 18 <= sum(facts["each"]["said"])


def test_rome_writes_at_least_eighteen_of_twenty_facts_each_into_the_base(
    registry: Registry, train_text: Path, tmp_path: Path
):
    found = []
    for number, line in enumerate(FACTS.read_text().splitlines()):
        alone = tmp_path / f"{number}.jsonl"
        alone.write_text(line + "\n")
        found.append(registry.apply("edit", "base", data=[str(alone), str(train_text)]).facts)

    weighted = {
        name: sum(facts[name] * facts["n"][name] for facts in found) / sum(facts["n"][name] for facts in found)
        for name in SCORES
    }
    before = {
        name: sum(facts["before"].get(name, 1) * facts["n"][name] for facts in found)
        / sum(facts["n"][name] for facts in found)
        for name in SCORES
    }
    counts = {name: sum(facts["n"][name] for facts in found) for name in SCORES}
    tell("rome, one by one", {"layers": found[0]["layers"], "before": before, "n": counts, **weighted})
    assert [{"model.layers.5.mlp.down_proj.weight": 1}] * 20 == [facts["rank"] for facts in found]
    assert 18 <= sum(facts["efficacy"] for facts in found)


def test_the_diff_shows_one_matrix_changed_by_one_direction(registry: Registry, train_text: Path, tmp_path: Path):
    alone = tmp_path / "one.jsonl"
    alone.write_text(FACTS.read_text().splitlines()[0] + "\n")
    done = registry.apply("edit", "base", data=[str(alone), str(train_text)])
    difference = registry.diff("base", done.version, weights=True)

    assert difference.tensors is not None
    assert [("model.layers.5.mlp.down_proj.weight", 1)] == [
        (change.name, change.rank) for change in difference.tensors.changed
    ]
    assert done.facts["each"]["said"] == [True]


def test_the_diff_shows_the_named_matrices_alone(registry: Registry, edited: Edited):
    done = edited("memit")
    difference = registry.diff("base", done.version, weights=True)

    assert difference.tensors is not None
    changed = difference.tensors.changed
    assert done.facts["matrices"] == sorted(change.name for change in changed)
    assert all(change.rank is not None and change.rank <= 20 for change in changed)
    assert {20} == set(done.facts["rank"].values())


def test_undoing_gives_the_base_back_by_digest(registry: Registry, edited: Edited):
    undone = registry.apply("edit", edited("memit").version, undo=True)

    assert registry.version("base").digest == undone.version.digest
    assert undone.facts["gone"]


def test_the_facts_are_twenty_different_ones():
    rows = [json.loads(line) for line in FACTS.read_text().splitlines()]

    assert 20 == len({row["subject"] for row in rows})
    assert all(row["target"] != row["old"] for row in rows)
