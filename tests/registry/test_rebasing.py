"""Rebase: what a change does not touch is kept, what cannot work is found before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.chains.rewriting import Changes, Insert
from mreg.registry.errors import Refused
from mreg.registry.runs import steps
from mreg.registry.transform import BadParams
from mreg.registry.versions import Version

from tests.registry.conftest import Import, make_model


def chain(shop: Registry, base: str, further: str) -> list[Version]:
    """prune and cast of one base, cast of a further one, and their merge."""
    pruned = shop.apply("prune", base, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version
    other = shop.apply("cast", further, dtype="float32", threads=1).version
    return [pruned, cast, other, shop.apply("merge", cast, others=[other], threads=1).version]


def narrow(folder: Path, *, seed: int) -> Path:
    """A model of which every matrix has half of the rows."""
    from safetensors.numpy import load_file, save_file

    make_model(folder, seed=seed, dtype="F32")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor[:4].copy() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


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


def test_options_that_hang_on_another_follow_it_when_that_is_changed(shop: Registry, bring: Import):
    quantized = shop.apply("quantize", bring(), method="int8", group_size=4, ignore=[], threads=1).version

    def planned(**told: Any) -> dict[str, Any]:
        return dict(shop.rebase_plan(quantized, Changes(settings={quantized.digest: told})).lines[-1].params)

    assert (True, None) == (shop.recipe(quantized)[-1].params["symmetric"], planned(group_size=2)["bits"])
    with pytest.raises(BadParams, match=rf"{quantized} would not work: .*no option --group-size.*:NAME=null"):
        planned(method="fp8")
    fp8 = planned(method="fp8", group_size=None)
    assert {"method": "fp8", "ignore": []} == {name: value for name, value in fp8.items() if value is not None}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("edit", {"method": "memit", "v_lr": 0.1}),
        ("edit", {"undo": True}),
        ("prune", {"pattern": "2:4"}),
        ("prune", {"sparsity": 0.5, "method": "wanda"}),
        ("quantize", {"method": "gptq", "group_size": 32}),
        ("prefer", {"method": "simpo"}),
        ("distill", {"method": "gkd", "max_steps": 3}),
        ("reinforce", {"method": "rloo", "reward_function": "def reward(completions, **_): return [0]"}),
        ("merge", {"method": "ties", "density": (0.5,)}),
    ],
)
def test_what_was_said_is_told_from_what_followed(shop: Registry, name: str, given: dict[str, Any]):
    transform = shop.engine.find(name)
    complete = steps.validate(transform, given).model_dump(mode="json")
    told = steps.said(transform, complete)

    assert told.keys() <= given.keys()
    assert complete == steps.validate(transform, told).model_dump(mode="json")


def test_shapes_that_no_longer_fit_are_found_in_the_plan(shop: Registry, bring: Import, tmp_path: Path):
    base = shop.version(bring())
    shrunk = [
        shop.record_version(narrow(tmp_path / f"narrow-{seed}", seed=seed), transform="shrink", source=base).version
        for seed in (1, 2)
    ]
    cast = shop.apply("cast", shrunk[0], dtype="float32", threads=1).version
    other = shop.apply("cast", shrunk[1], dtype="float32", threads=1).version
    merged = shop.apply("merge", cast, others=[other], threads=1).version
    events = len(shop.events())

    with pytest.raises(Refused, match=rf"{merged} would not work: .* is 8x4 in .* and 4x4 in {other}"):
        shop.rebase(merged, Changes(drop=frozenset({shrunk[0].digest})))
    assert events == len(shop.events())
