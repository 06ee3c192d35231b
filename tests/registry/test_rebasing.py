"""Rebase: what a change does not touch is kept, what cannot work is found before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused
from mreg.registry.rewriting import Changes, Insert
from mreg.registry.versions import Version

from tests.registry.conftest import Import, make_model


def chain(shop: Registry, base: str, further: str) -> list[Version]:
    """prune and cast of one base, cast of a further one, and their merge."""
    pruned = shop.apply("prune", base, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version
    other = shop.apply("cast", further, dtype="float32", threads=1).version
    return [pruned, cast, other, shop.apply("merge", cast, others=[other], threads=1).version]


def actions(shop: Registry, target: Version, changes: Changes) -> list[tuple[str, str]]:
    return [(line.transform, line.action) for line in shop.rebase_plan(target, changes).lines]


def test_a_change_in_the_middle_runs_only_what_depends_on_it(shop: Registry, bring: Import):
    pruned, cast, _, merged = chain(shop, bring(), bring(8))
    changes = Changes(settings={pruned.digest: {"sparsity": 0.25}})

    assert [("prune", "run"), ("cast", "run"), ("cast", "keep"), ("merge", "run")] == actions(shop, merged, changes)
    done = shop.rebase(merged, changes, message="gentler")
    assert done.version.digest not in {merged.digest, cast.digest}
    (change,) = [one for one in shop.diff(merged, done.version, weights=False).recipe if one.kind != "same"]
    assert ("prune", {"sparsity": (0.5, 0.25)}) == (change.transform, dict(change.params))


def test_the_same_rebase_again_is_answered_from_the_log(shop: Registry, bring: Import):
    pruned, _, _, merged = chain(shop, bring(), bring(8))
    changes = Changes(settings={pruned.digest: {"sparsity": 0.25}})
    first = shop.rebase(merged, changes)
    events = len(shop.events())
    again = shop.rebase(merged, changes)

    assert first.version == again.version
    assert events == len(shop.events())
    assert [("prune", "reuse"), ("cast", "reuse"), ("cast", "keep"), ("merge", "reuse")] == actions(
        shop, merged, changes
    )


def test_dropping_a_step_leaves_the_old_chain_and_its_names(shop: Registry, bring: Import):
    pruned, _, other, merged = chain(shop, bring(), bring(8))
    shop.set_ref("prod", merged)
    done = shop.rebase(merged, Changes(drop=frozenset({pruned.digest})), ref="gentle")

    assert [("prune", "drop"), ("cast", "run"), ("cast", "keep"), ("merge", "run")] == [
        (line.transform, line.action) for line in done.plan.lines
    ]
    assert (merged, done.version) == (shop.version("prod"), shop.version("gentle"))
    assert ["import", "cast", "import", "cast", "merge"] == [step.transform for step in shop.recipe(done.version)]
    assert other.digest == shop.recipe(done.version)[-1].inputs[1][1]


def test_another_base_goes_through_the_same_steps(shop: Registry, bring: Import):
    merged, base = chain(shop, bring(), bring(8))[-1], shop.version(bring(1))
    done = shop.rebase(merged, Changes(onto={shop.recipe(merged)[0].version: base.digest}))

    steps = shop.recipe(done.version)
    assert [step.transform for step in shop.recipe(merged)] == [step.transform for step in steps]
    assert base.digest == steps[0].version


def test_a_step_can_be_put_in_between(shop: Registry, bring: Import):
    base = bring()
    pruned = shop.apply("prune", base, sparsity=0.5, threads=1).version
    done = shop.rebase(pruned, Changes(inserts={shop.version(base).digest: (Insert("cast", {"dtype": "float32"}),)}))

    assert ["import", "cast", "prune"] == [step.transform for step in shop.recipe(done.version)]


def test_what_a_later_step_refuses_is_found_before_anything_runs(shop: Registry, bring: Import, tmp_path: Path):
    merged = chain(shop, bring(), bring(8))[-1]
    wide = shop.import_model(make_model(tmp_path / "half", seed=5, dtype="F32")).version
    quantized = shop.apply("quantize", bring(2), method="int8", group_size=-1, ignore=["re:.*head"], threads=1).version
    events = len(shop.events())

    with pytest.raises(Refused, match=r"would not work.*quantized already"):
        shop.rebase(merged, Changes(onto={shop.recipe(merged)[0].version: quantized.digest}))
    with pytest.raises(Refused, match="was imported"):
        shop.rebase(merged, Changes(drop=frozenset({shop.recipe(merged)[0].version})))
    with pytest.raises(Refused, match="is not on the way"):
        shop.rebase(merged, Changes(drop=frozenset({wide.digest})))
    assert events == len(shop.events())


def test_what_was_made_elsewhere_cannot_be_made_again_on_something_else(shop: Registry, bring: Import, tmp_path: Path):
    base = bring()
    pruned = shop.apply("prune", base, sparsity=0.5, threads=1).version
    elsewhere = shop.record_version(make_model(tmp_path / "x", seed=9), transform="my-sft", source=pruned).version
    cast = shop.apply("cast", elsewhere, dtype="float32", threads=1).version

    with pytest.raises(Refused, match="made elsewhere, by my-sft"):
        shop.rebase_plan(cast, Changes(drop=frozenset({pruned.digest})))
    assert [("prune", "drop"), ("my-sft", "drop"), ("cast", "run")] == actions(
        shop, cast, Changes(drop=frozenset({pruned.digest, elsewhere.digest}))
    )
