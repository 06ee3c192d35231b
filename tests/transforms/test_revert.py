"""Revert: what a step changed becomes what it was, and the rest stays byte for byte, or nothing comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.chains.reversion import NotExact
from mreg.transforms._engine import LocalEngine
from safetensors.torch import load_file

from tests import tiny
from tests.transforms.conftest import Here, Stock, tree

FIRST, SECOND = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"


def test_only_what_the_step_changed_is_put_back(here: Here, stock: Stock, tmp_path: Path):
    output, facts = here(
        "revert", stock.later, more={"step": stock.edited, "before": stock.base}, version="of the edit"
    )

    alone = tiny.make_changed(tmp_path / "alone", stock.base, SECOND)
    assert tree(alone).keys() == tree(output).keys()
    assert {path: told for path, told in tree(alone).items() if path != "model.safetensors"} == {
        path: told for path, told in tree(output).items() if path != "model.safetensors"
    }
    wanted, got = load_file(alone / "model.safetensors"), load_file(output / "model.safetensors")
    assert list(wanted) == list(got)
    assert all(wanted[name].equal(got[name]) for name in wanted)
    assert ([FIRST], 1, []) == (list(facts["restored"]), facts["tensors"], facts["files"])
    assert len(wanted) - 1 == facts["kept"]


def test_the_last_step_gives_the_version_before_it_file_by_file(here: Here, stock: Stock):
    output, _ = here("revert", stock.edited, more={"step": stock.edited, "before": stock.base}, version="of the edit")

    assert tree(stock.base) == tree(output)


def test_shards_stay_as_they_are_in_the_source(here: Here, stock: Stock, tmp_path: Path):
    step = tiny.make_changed(tmp_path / "step", stock.sharded, FIRST)
    source = tiny.make_changed(tmp_path / "source", step, SECOND)
    output, _ = here("revert", source, more={"step": step, "before": stock.sharded}, version="of the step")

    assert tree(source).keys() == tree(output).keys()
    assert tree(source)["model.safetensors.index.json"] == tree(output)["model.safetensors.index.json"]


def test_files_beside_the_weights_are_put_back_too(here: Here, stock: Stock, tmp_path: Path):
    step = tiny.make_changed(tmp_path / "step", stock.base)
    config = json.loads((step / "config.json").read_text())
    (step / "config.json").write_text(json.dumps({**config, "temperature": 2.0}))
    (step / "notes.txt").write_text("new")
    (step / "chat_template.jinja").unlink()
    source = tiny.make_changed(tmp_path / "source", step, SECOND)
    output, facts = here("revert", source, more={"step": step, "before": stock.base}, version="of the step")

    assert ["chat_template.jinja", "config.json", "notes.txt"] == facts["files"]
    assert tree(stock.base).keys() == tree(output).keys()
    assert (stock.base / "config.json").read_bytes() == (output / "config.json").read_bytes()
    assert load_file(source / "model.safetensors")[SECOND].equal(load_file(output / "model.safetensors")[SECOND])


def test_an_adapter_is_taken_out_of_what_it_was_fused_into(stock: Stock, engine: LocalEngine, tmp_path: Path):
    registry = Registry.init(tmp_path / "registry", engine=engine)
    base = registry.import_model(stock.base).version
    adapter = registry.record_version(stock.adapter, transform="my-lora", source=base).version
    fused = registry.apply("fuse", adapter, threads=1).version
    registry.check_out(fused, tmp_path / "fused")
    norm = "model.norm.weight"
    last = registry.record_version(
        tiny.make_changed(tmp_path / "last", tmp_path / "fused", norm), transform="tweak", source=fused
    ).version
    done = registry.revert(adapter, last)

    registry.check_out(done.version, tmp_path / "out")
    alone = tiny.make_changed(tmp_path / "alone", stock.base, norm)
    wanted, got = load_file(alone / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert ("weights", fused) == (done.plan.way, done.plan.step)
    assert wanted.keys() == got.keys()
    assert all(wanted[name].equal(got[name]) for name in wanted)
    assert done.version == registry.revert(fused, last).version
    chain = registry.revert_plan(adapter, fused, way="rebase").chain
    assert chain is not None
    assert (base.digest, []) == (chain.result.given, list(chain.todo))


@pytest.mark.parametrize("again", [FIRST, "config.json"])
def test_what_was_changed_again_is_not_put_back(here: Here, stock: Stock, tmp_path: Path, again: str):
    step = tiny.make_changed(tmp_path / "step", stock.edited)
    (step / "config.json").write_text((step / "config.json").read_text() + " ")
    source = tiny.make_changed(tmp_path / "source", step, again)
    if again == "config.json":
        (source / again).write_text((source / again).read_text() + " ")

    with pytest.raises(NotExact, match=f"{again} was changed again"):
        here("revert", source, more={"step": step, "before": stock.base}, version="of the step")


def test_a_step_that_changed_shapes_or_nothing_is_not_put_back(here: Here, stock: Stock, tmp_path: Path):
    same = shutil.copytree(stock.base, tmp_path / "same")

    with pytest.raises(NotExact, match="changed nothing"):
        here("revert", stock.edited, more={"step": same, "before": stock.base}, version="of nothing")
    with pytest.raises(NotExact, match=r"dtype or the shape of|took away|added"):
        here("revert", stock.sharded, more={"step": stock.sharded, "before": stock.base}, version="of a cast")
