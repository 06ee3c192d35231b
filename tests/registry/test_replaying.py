"""Replay: every verdict, on steps that earn it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused

from tests.registry.conftest import Import, make_model


def verdicts(shop: Registry, rev: str, **how: object) -> list[tuple[str, str]]:
    replayed = shop.replay(rev, **how)  # type: ignore[arg-type]  # options of the replay
    return [(step.transform, step.verdict) for step in replayed.steps]


def test_an_exact_chain_comes_out_byte_for_byte(shop: Registry, bring: Import):
    source, versions = bring(), len(shop.versions())
    pruned = shop.apply("prune", source, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version
    other = shop.apply("cast", source, dtype="float32", threads=1).version
    merged = shop.apply("merge", cast, others=[other], threads=1).version
    heard: list[str] = []
    replayed = shop.replay(
        merged, from_base=True, message="audit", report=lambda step, said: heard.append(step.transform)
    )

    assert "bytes" == replayed.verdict
    assert [pruned.digest, cast.digest, other.digest, merged.digest] == [step.version for step in replayed.steps]
    assert {"bytes"} == {step.verdict for step in replayed.steps}
    assert {"prune", "cast", "merge"} == set(heard)
    assert versions + 4 == len(shop.versions()), "a replay makes no versions"
    assert [] == list((shop.root / "tmp").iterdir())


def test_a_replay_is_recorded_and_shown(shop: Registry, bring: Import):
    cast = shop.apply("cast", bring(), dtype="float32", threads=1).version
    for _ in range(2):
        shop.replay(cast)

    replays = shop.show(cast)["replays"]
    assert ["bytes", "bytes"] == [replay["verdict"] for replay in replays]
    assert ["replay-started/1", "replay-finished/1"] == [event["kind"] for event in shop.events()[-2:]]
    assert 1e-3 == shop.events()[-2]["payload"]["tolerance"], "fixed before the work"


def test_without_the_base_only_the_last_step_is_done_again(shop: Registry, bring: Import):
    pruned = shop.apply("prune", bring(), sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version

    assert [("cast", "bytes")] == verdicts(shop, cast.name)
    planned = shop.replay_plan(cast)
    assert ([pruned], {}) == ([*planned.given], planned.missing)
    assert planned.estimated_s > 0


def test_other_threads_are_named_where_the_bits_depend_on_them(shop: Registry, bring: Import):
    leaned = shop.apply("lean", bring(), threads=1).version

    assert [("lean", "bytes")] == verdicts(shop, leaned.name)
    (step,) = shop.replay(leaned, threads=2).steps
    assert "different" == step.verdict
    assert (1, 2) == step.environment["threads"]
    assert 5 == step.changed_tensors
    assert step.max_abs is not None
    assert step.rel_l2 is not None
    assert 0 < step.rel_l2
    assert "weight" in str(step.worst_tensor)
    assert "different" == shop.show(leaned)["replays"][-1]["verdict"]


def test_weights_that_agree_in_other_files_are_the_same_tensors(shop: Registry, bring: Import):
    relabelled = shop.apply("relabel", bring(), threads=1).version

    assert [("relabel", "tensors")] == verdicts(shop, relabelled.name)


def test_weights_within_the_tolerance_are_close(shop: Registry, bring: Import):
    drifted = shop.apply("drift", bring(dtype="F32"), threads=1).version

    assert {"close", "bytes"} >= {verdict for _, verdict in verdicts(shop, drifted.name, tolerance=0.1)}
    (step,) = shop.replay(drifted, tolerance=0.0).steps
    assert step.verdict in ("different", "bytes"), "nothing that differs is within a tolerance of nothing"


def test_a_step_that_now_gives_more_tensors_is_different(shop: Registry, bring: Import):
    grown = shop.apply("grow", bring(), threads=1).version
    flag = Path(os.environ["HOME"], "grow")
    flag.touch()
    try:
        (step,) = shop.replay(grown).steps
    finally:
        flag.unlink()

    assert "different" == step.verdict
    assert "10 tensors more, 5 fewer" == step.reason


@pytest.mark.parametrize("transform", ["made-elsewhere", "prune"])
def test_a_step_made_elsewhere_is_not_attempted_nor_is_what_rests_on_it(
    shop: Registry, bring: Import, tmp_path: Path, transform: str
):
    folder = make_model(tmp_path / "made", seed=len(transform))
    recorded = shop.record_version(folder, transform=transform, source=bring()).version
    cast = shop.apply("cast", recorded, dtype="float32", threads=1).version

    steps = shop.replay(cast, from_base=True).steps
    assert [(transform, "not-attempted"), ("cast", "not-attempted")] == [
        (step.transform, step.verdict) for step in steps
    ]
    assert "made elsewhere: nothing here can run it" == steps[0].reason
    assert f"its input {recorded} is not there" == steps[1].reason
    assert {recorded.digest} == shop.replay_plan(cast, from_base=True).missing.keys()


def test_an_import_has_nothing_to_replay(shop: Registry, bring: Import):
    with pytest.raises(Refused, match="was imported, no step led to it"):
        shop.replay(bring())


def test_a_step_whose_input_is_damaged_is_not_attempted(shop: Registry, bring: Import):
    source = bring()
    cast = shop.apply("cast", source, dtype="float32", threads=1).version
    tensor = next(iter(shop.manifest(source).tensors())).digest
    path = shop.store.path(tensor)
    content = path.read_bytes()
    path.unlink()
    (step,) = shop.replay(cast).steps
    path.write_bytes(content)

    assert "not-attempted" == step.verdict
    assert tensor[:12] in step.reason
