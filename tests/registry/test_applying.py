"""Applying transforms: what a run leaves in the log, however it ends."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused
from mreg.registry.runs.applying import Interrupted, TransformFailed, reap
from mreg.registry.transform import BadParams, Progress, UnknownTransform

from tests.histories import started
from tests.registry.conftest import Import, make_model, seed_of


def kinds(registry: Registry, after: int) -> list[str]:
    return [event["kind"] for event in registry.events(after)]


def last(registry: Registry) -> int:
    return int(registry.events()[-1]["seq"])


def test_a_run_is_recorded_from_its_start_to_its_end(shop: Registry, bring: Import):
    source, before = bring(), last(shop)
    heard: list[Progress] = []
    applied = shop.apply(
        "prune", source, sparsity=0.5, threads=1, seed=3, ref="pruned", message="m", report=heard.append
    )

    assert ["run-started/2", "run-finished/1", "ref-moved/2"] == kinds(shop, before)
    assert (True, False, False) == (applied.is_new, applied.cached, applied.unchanged)
    assert [source] == [parent.name for parent in applied.parents]
    assert heard[-1].done == heard[-1].total > 0
    shown = shop.show(applied.version)
    assert ("prune", 0.5, 3, 1, ["pruned"]) == (
        shown["transform"],
        shown["params"]["sparsity"],
        shown["seed"],
        shown["threads"],
        shown["refs"],
    )
    run = shown["run"]
    assert ("finished", "exact", applied.facts, "m") == (
        run["status"],
        run["determinism"],
        run["facts"],
        run["message"],
    )
    assert 1 == run["environment"]["threads"]
    assert run["code"] == shop.engine.code("prune")
    assert [] == list((shop.root / "tmp").iterdir())


def test_the_same_step_is_answered_from_the_log(shop: Registry, bring: Import):
    source = bring()
    first = shop.apply("cast", source, dtype="float32", threads=1)
    before = last(shop)
    again = shop.apply("cast", source, dtype="float32", threads=1)

    assert (first.version, True, False) == (again.version, again.cached, again.is_new)
    assert first.facts == again.facts
    assert [] == kinds(shop, before)
    assert first.version == shop.plan("cast", source, dtype="float32", threads=1).answer


@pytest.mark.parametrize(
    "other", [{"dtype": "float16"}, {"seed": 1}, {"portable": True}], ids=["params", "seed", "portable"]
)
def test_another_step_is_not_answered_from_the_log(shop: Registry, bring: Import, other: dict[str, object]):
    source = bring()
    step = {"dtype": "float32", "threads": 1}
    shop.apply("cast", source, **step)  # type: ignore[arg-type]  # options of the step

    assert shop.plan("cast", source, **{**step, **other}).answer is None  # type: ignore[arg-type]


def test_a_step_that_is_run_afresh_is_recorded_again_with_the_same_version(shop: Registry, bring: Import):
    source = bring()
    first = shop.apply("cast", source, dtype="float32", threads=1)
    again = shop.apply("cast", source, dtype="float32", threads=1, fresh=True)

    assert (first.version, False, None) == (again.version, again.cached, again.disproves)
    assert 1 == len(shop.show(first.version)["also_made_by"])


def test_a_step_that_gives_other_weights_the_second_time_disproves_the_first(shop: Registry, bring: Import):
    source = bring()
    first = shop.apply("wander", source, threads=1)
    again = shop.apply("wander", source, threads=1, fresh=True)

    assert first.disproves is None
    assert first.version == again.disproves
    assert first.version.digest == shop.events()[-1]["payload"]["disproves"]


def test_an_output_that_is_its_own_source_is_said(shop: Registry, bring: Import):
    source, before = bring(), len(shop.versions())
    applied = shop.apply("cast", source, dtype="bfloat16", threads=1)

    assert (source, True, False) == (applied.version.name, applied.unchanged, applied.is_new)
    assert before == len(shop.versions())
    assert "run-finished/1" == shop.events()[-1]["kind"]
    assert ["cast"] == [run["transform"] for run in shop.show(source)["also_made_by"]]


def test_there_and_back_again_is_the_version_that_it_was(shop: Registry, bring: Import):
    """The lineage has a cycle, and nothing that walks it runs in circles."""
    source = bring()
    there = shop.apply("cast", source, dtype="float32", threads=1).version
    back = shop.apply("cast", there, dtype="bfloat16", threads=1)

    assert (source, False, False) == (back.version.name, back.is_new, back.unchanged)
    for version in (source, there):
        lineage = shop.lineage(version)
        assert 2 == len(lineage.edges)
        assert 1 == len(lineage.ancestors()) == len(lineage.descendants())
        assert 2 == lineage.to_networkx().number_of_edges()
    assert ["import"] == [step.transform for step in shop.recipe(source)]
    assert ["import", "cast"] == [step.transform for step in shop.recipe(there)]
    assert [there.name, source] == [
        row["version"] if "version" in row else f"v{row['number']}" for row in shop.history(there)
    ]
    assert "changed" not in {change.kind for change in shop.diff(source, there, weights=False).recipe}
    with pytest.raises(Refused, match="was imported"):
        shop.replay_plan(source)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        ("explode", "explode failed: ValueError: the loss is not a number"),
        ("refuse", r"refuse failed: too large for float16: use bfloat16"),
        ("die", "die failed: it ended with exit status 3"),
        ("scribble", "scribble failed: it gave no sound model: .*holds no model"),
        ("corrupt", "corrupt failed: it gave no sound model"),
    ],
)
def test_a_run_that_fails_is_recorded_as_failed_and_leaves_no_version(
    shop: Registry, bring: Import, transform: str, said: str
):
    source, before = bring(), last(shop)
    versions, objects = shop.versions(), set(shop.store.names())

    with pytest.raises(TransformFailed, match=said) as failure:
        shop.apply(transform, source, threads=1, ref="never")

    assert 6 == failure.value.exit_code
    assert ["run-started/2", "run-failed/1"] == kinds(shop, before)
    assert not shop.events()[-1]["payload"]["interrupted"]
    assert versions == shop.versions()
    assert objects == set(shop.store.names())
    assert "never" not in shop.refs()
    kept = Path(failure.value.fix.removeprefix("what it printed is in "))
    assert f"working on {transform}" in kept.read_text()
    assert [] == list((shop.root / "tmp").iterdir())


def test_a_failed_step_is_not_the_answer_to_the_next(shop: Registry, bring: Import):
    source = bring()
    for _ in range(2):
        with pytest.raises(TransformFailed):
            shop.apply("refuse", source, threads=1)


def test_ctrl_c_ends_the_work_and_is_recorded(shop: Registry, bring: Import):
    source, before = bring(), last(shop)

    interrupt = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    with pytest.raises(Interrupted, match="stall was stopped") as stopped:
        shop.apply("stall", source, threads=1, report=lambda _: interrupt.start())

    assert 130 == stopped.value.exit_code
    assert ["run-started/2", "run-failed/1"] == kinds(shop, before)
    assert shop.events()[-1]["payload"]["interrupted"]
    assert [] == list((shop.root / "tmp").iterdir())


def test_a_run_whose_process_is_gone_is_recorded_as_interrupted_once(shop: Registry):
    shop.log.append(started("gone", 1))
    with shop.scratch("alive"):
        shop.log.append(started("alive", 1))
        dead = reap(shop), reap(shop)

    assert (["gone"], []) == dead
    assert ["interrupted"] == [
        row["status"] for row in shop.log.ask(lambda r: r.rows("SELECT * FROM run WHERE id = 'gone'"))
    ]
    assert ["alive"] == reap(shop)


def test_what_can_be_known_to_be_wrong_is_said_before_anything_is_recorded(
    shop: Registry, bring: Import, tmp_path: Path
):
    source, before = bring(), last(shop)
    (tmp_path / "rows.txt").write_text("not for cast")
    rows = [tmp_path / "rows.txt"]
    for error, said, attempt in [
        (UnknownTransform, "no transform is called 'prun'.*did you mean prune", lambda: shop.apply("prun", source)),
        (
            BadParams,
            "cast has no option --dtyp.*did you mean dtype",
            lambda: shop.apply("cast", source, dtype="float32", dtyp=1),
        ),
        (BadParams, "--sparsity.*it was 2", lambda: shop.apply("prune", source, sparsity=2)),
        (BadParams, "cast takes 1 input", lambda: shop.apply("cast", source, others=[source], dtype="float32")),
        (
            BadParams,
            "cast has no input called 'teacher'",
            lambda: shop.apply("cast", source, others=[("teacher", source)], dtype="float32"),
        ),
        (BadParams, "merge needs", lambda: shop.apply("merge", source)),
        (BadParams, "cast takes no data", lambda: shop.apply("cast", source, data=rows, dtype="float32")),
        (Refused, "is a whole model, and fuse takes an adapter", lambda: shop.apply("fuse", source)),
    ]:
        with pytest.raises(error, match=said):
            attempt()

    assert before == last(shop)


@pytest.fixture
def adapter(shop: Registry, bring: Import, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An adapter version on a base of its own."""
    folder = make_model(tmp_path / "adapter", seed=seed_of(request.node.nodeid))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    return shop.import_model(folder, base=bring(1)).version.name


def test_an_adapter_knows_its_base_and_is_not_taken_for_a_model(shop: Registry, adapter: str):
    assert shop.version(adapter).adapter
    assert shop.version(adapter).base in {version.digest for version in shop.versions()}
    with pytest.raises(Refused, match="is an adapter"):
        shop.import_model("nowhere", base=adapter)


def test_an_adapter_is_not_imported_again_on_another_base(shop: Registry, bring: Import, adapter: str, tmp_path: Path):
    before = last(shop)
    shop.check_out(adapter, tmp_path / "again")
    with pytest.raises(Refused, match=f"{adapter} is this very adapter, and fits another base"):
        shop.import_model(tmp_path / "again", base=bring(2))

    assert "version-imported/1" == shop.events(before)[0]["kind"]
    assert before + 1 == last(shop), "only the base came in"


def test_a_recorded_step_needs_no_transform_of_that_name(shop: Registry, bring: Import, tmp_path: Path):
    source, other = bring(), bring(1)
    folder = make_model(tmp_path / "made", seed=7)
    made = shop.record_version(folder, transform="my-merge", source=source, others=[other], params={"weight": 0.5})

    assert ([source, other], True, False) == ([v.name for v in made.parents], made.is_new, made.unchanged)
    assert ("record", "my-merge", {"weight": 0.5}) == tuple(
        shop.show(made.version)[key] for key in ("origin", "transform", "params")
    )
    assert [source, other] == shop.show(made.version)["parents"]
