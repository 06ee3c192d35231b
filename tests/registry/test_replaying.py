"""Replay: every verdict, on steps that earn it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.log.events import StepJudged
from mreg.registry.replay import kept as replay_kept
from mreg.registry.replay.resuming import Asked, read_again
from mreg.registry.runs import code_state
from mreg.registry.runs.applying import Interrupted
from mreg.registry.transform import Engine, Progress
from mreg.registry.versions import Version

from tests.registry.conftest import Import, make_model


def flag(name: str, up: bool) -> None:
    """Let the transform of this name do what it does only when it is told to."""
    path = Path(os.environ["HOME"], name)
    path.touch() if up else path.unlink(missing_ok=True)


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
    assert ["replay-started/1", "replay-finished/2"] == [event["kind"] for event in shop.events()[-2:]]
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
    assert next(shop.manifest(leaned).tensors()).name == step.first_tensor
    assert step.max_rel is not None
    assert 0 < step.max_rel <= 2
    assert step.max_ulps
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


# Several parents and several at once


def diamond(shop: Registry, bring: Import, left: str, right: str, **more: object) -> str:
    """A merge of two steps that do not rest on each other."""
    source = bring()
    one = shop.apply(left, source, threads=1, **more).version
    other = shop.apply(right, source, threads=1).version
    return shop.apply("merge", one, others=[other], threads=1).version.name


def test_branches_run_side_by_side_and_the_verdicts_stay_in_the_order_of_the_plan(shop: Registry, bring: Import):
    merged = diamond(shop, bring, "prune", "lean", sparsity=0.5)
    heard: list[str] = []

    replayed = shop.replay(
        merged,
        from_base=True,
        jobs=2,
        report=lambda step, said: heard.append(step.transform) if isinstance(said, StepJudged) else None,
    )

    assert [("prune", "bytes"), ("lean", "bytes"), ("merge", "bytes")] == [
        (step.transform, step.verdict) for step in replayed.steps
    ]
    assert ["prune", "lean", "merge"] == heard
    finished = shop.events()[-1]["payload"]
    assert (2, 0, os.uname().nodename) == (finished["jobs"], finished["resumed"], finished["host"])


def test_a_step_that_fails_leaves_the_other_branch_alone(shop: Registry, bring: Import):
    merged = diamond(shop, bring, "fragile", "lean")
    flag("fragile", True)
    try:
        steps = shop.replay(merged, from_base=True).steps
    finally:
        flag("fragile", False)

    assert ["failed", "bytes", "not-attempted"] == [step.verdict for step in steps]
    assert "ValueError: it broke" in steps[0].reason
    assert "is not there" in steps[2].reason


def test_ctrl_c_ends_all_branches_and_the_same_again_goes_on(shop: Registry, bring: Import):
    merged = diamond(shop, bring, "lean", "pause")
    flag("pause", True)

    def heard(step: Step, said: Progress | StepJudged) -> None:
        if step.transform == "pause" and isinstance(said, Progress):
            raise KeyboardInterrupt

    try:
        with pytest.raises(Interrupted):
            shop.replay(merged, from_base=True, jobs=2, report=heard)
    finally:
        flag("pause", False)

    again = shop.replay(merged, from_base=True, resume=True)
    assert [("bytes", "")] * 3 == [(step.verdict, step.reason) for step in again.steps]
    assert not is_kept(shop)


# Stopped, and gone on with


def is_kept(shop: Registry) -> bool:
    folder = shop.root / "replays"
    return folder.exists() and any(folder.iterdir())


def stop_after(count: int) -> Callable[[Step, Progress | StepJudged], None]:
    """Ctrl-C when so many steps are judged."""
    judged = 0

    def heard(_step: Step, said: Progress | StepJudged) -> None:
        nonlocal judged
        judged += isinstance(said, StepJudged)
        if judged == count:
            raise KeyboardInterrupt

    return heard


@pytest.fixture(scope="module")
def chain(shop: Registry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A version made by prune and then cast."""
    source = shop.import_model(make_model(tmp_path_factory.mktemp("chain") / "model", seed=77)).version
    pruned = shop.apply("prune", source, sparsity=0.5, threads=1).version
    return shop.apply("cast", pruned, dtype="float32", threads=1).version.name


@pytest.fixture
def stopped(shop: Registry, chain: str) -> str:
    """The chain, whose replay was stopped when the first step was judged."""
    with pytest.raises(Interrupted, match=r"1 of 2 steps are judged and kept, the same again with --resume"):
        shop.replay(chain, from_base=True, report=stop_after(1))
    return chain


def done_again(shop: Registry, rev: str, **how: object) -> tuple[list[str], int, list[str]]:
    """What a resumed replay ran, how many steps it took over, and what it said."""
    ran: list[str] = []
    said: list[str] = []

    def heard(step: Step, what: Progress | StepJudged) -> None:
        if isinstance(what, Progress):
            ran.append(step.transform)

    before, shop.log.notify = shop.log.notify, said.append
    try:
        replayed = shop.replay(rev, **{"from_base": True, "resume": True, "report": heard, **how})  # type: ignore[arg-type]
    finally:
        shop.log.notify = before
    assert {"bytes"} == {step.verdict for step in replayed.steps}
    assert 2 == len(replayed.steps)
    return list(dict.fromkeys(ran)), replayed.resumed, said


def test_a_stopped_replay_goes_on_where_it_was(shop: Registry, stopped: str):
    started, before = shop.events()[-1], len(shop.show(stopped)["replays"])

    assert (["cast"], 1, []) == done_again(shop, stopped)
    finished = shop.events()[-1]["payload"]
    assert (started["payload"]["replay"], 1) == (finished["replay"], finished["resumed"])
    assert not is_kept(shop)
    assert before + 1 == len(shop.show(stopped)["replays"])


def test_without_resume_it_starts_over_and_says_what_is_kept(shop: Registry, stopped: str):
    ran, resumed, said = done_again(shop, stopped, resume=False)

    assert (["prune", "cast"], 0) == (ran, resumed)
    assert [f"this starts over, though a stopped replay of {stopped} has 1 of 2 steps judged: "] == [
        words.partition("with --resume")[0] for words in said
    ]
    assert not is_kept(shop)


def test_what_does_not_hold_any_more_starts_over_and_says_so(shop: Registry, stopped: str):
    (output,) = shop.root.glob("replays/*/*/output/config.json")
    output.write_text(output.read_text() + "\n")

    ran, resumed, (said,) = done_again(shop, stopped)

    assert (["prune", "cast"], 0) == (ran, resumed)
    name = shop.replay_plan(stopped).given[0]
    why = f"what {name} gave is not what it was"
    assert f"this starts over: one is kept that has 1 of 2 steps judged, but {why}" == said


def test_only_what_the_same_code_made_in_the_same_environment_is_gone_on_with(shop: Registry, stopped: str):
    planned, asked = shop.replay_plan(stopped, from_base=True), Asked(1e-3)
    ((folder, kept),) = replay_kept.kept(shop.root, planned.target.digest)
    (step,) = kept.steps
    other_code = replace(step, code="0" * 64)
    other_torch = replace(step, environment={**step.environment, "torch": "1.0"})

    assert [step.judged.version] == [*read_again(shop, planned, asked, folder, kept)]
    with pytest.raises(Refused, match="the code of prune has changed since"):
        read_again(shop, planned, asked, folder, replace(kept, steps=(other_code,)))
    with pytest.raises(Refused, match=r"torch was 1\.0 then and is .* now"):
        read_again(shop, planned, asked, folder, replace(kept, steps=(other_torch,)))


KILLED = """
import os, signal, sys
from mreg.registry import Registry
from mreg.registry.log.events import StepJudged

judged = 0

def heard(step, said):
    global judged
    judged += isinstance(said, StepJudged)
    if judged == 1:
        os.kill(os.getpid(), signal.SIGKILL)

with Registry.open(sys.argv[1]) as registry:
    registry.replay(sys.argv[2], from_base=True, report=heard)
"""


def test_a_replay_that_was_killed_goes_on_too(shop: Registry, chain: str):
    done = subprocess.run([sys.executable, "-c", KILLED, str(shop.root), chain], check=False)

    assert -signal.SIGKILL == done.returncode
    assert (["cast"], 1, []) == done_again(shop, chain)


# Data that a run made


def test_data_that_a_run_made_is_made_again_and_read_again(shop: Registry, bring: Import):
    source = bring()
    sampled = shop.apply("sample", source, amount=3, threads=1).version
    rows, numbers = shop.show(sampled)["run"]["made"]
    read = shop.apply("read", source, data=[rows, numbers], threads=1).version

    planned = shop.replay_plan(read, from_base=True)
    assert [sampled.digest, read.digest] == [step.version for step in planned.steps]
    assert {rows: sampled.digest, numbers: sampled.digest} == planned.makers
    steps = shop.replay(read, from_base=True).steps
    assert ["bytes", "bytes"] == [step.verdict for step in steps]
    assert {rows: rows, numbers: numbers} == steps[0].made
    assert ["read"] == [step.transform for step in shop.replay_plan(read).steps], "data in the store is taken as it is"


def test_data_that_comes_out_otherwise_is_said_and_what_rests_on_it_differs(shop: Registry, bring: Import):
    source = bring()
    sampled = shop.apply("sample", source, amount=-4, threads=1).version
    _, numbers = shop.show(sampled)["run"]["made"]
    read = shop.apply("read", source, data=[numbers], threads=1).version
    with Path(os.environ["HOME"], "counted").open("a") as counted:
        counted.write("." * 10**4)

    first, second = shop.replay(read, from_base=True).steps

    assert ("bytes", "different") == (first.verdict, second.verdict)
    assert first.made[numbers] not in (None, numbers)


def test_data_that_is_not_in_the_store_is_made_again_by_the_run_that_made_it(shop: Registry, bring: Import):
    source = bring()
    sampled = shop.apply("sample", source, amount=5, threads=1).version
    rows, _ = shop.show(sampled)["run"]["made"]
    read = shop.apply("read", source, data=[rows], threads=1).version

    with away(shop, rows):
        planned = shop.replay_plan(read)
        assert ([sampled.digest, read.digest], {}) == ([step.version for step in planned.steps], planned.missing)
        assert ["bytes", "bytes"] == [step.verdict for step in shop.replay(read).steps]


# What is not in the store


@contextmanager
def away(shop: Registry, *digests: Digest) -> Iterator[None]:
    """Without these objects in the store."""
    kept = {shop.store.path(digest): shop.store.path(digest).read_bytes() for digest in digests}
    for path in kept:
        path.unlink()
    try:
        yield
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def only_in(shop: Registry, version: Version, *others: str) -> list[Digest]:
    """The tensors that a version does not share with others."""
    shared = {tensor.digest for other in others for tensor in shop.manifest(other).tensors()}
    return [tensor.digest for tensor in shop.manifest(version).tensors() if tensor.digest not in shared]


def test_a_replay_starts_from_the_nearest_version_that_is_whole_in_the_store(shop: Registry, bring: Import):
    source = bring()
    pruned = shop.apply("prune", source, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version

    with away(shop, *only_in(shop, pruned, source)):
        planned = shop.replay_plan(cast)
        assert ([pruned.digest, cast.digest], [source]) == (
            [step.version for step in planned.steps],
            [version.name for version in planned.given],
        )
        assert ["bytes", "bytes"] == [step.verdict for step in shop.replay(cast).steps]


def test_a_plan_names_the_object_that_is_missing_and_what_cannot_be_done(shop: Registry, bring: Import):
    source = bring()
    pruned = shop.apply("prune", source, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version
    gone = sorted(tensor.digest for tensor in shop.manifest(source).tensors())[:2]

    with away(shop, *gone):
        planned = shop.replay_plan(cast, from_base=True)

    assert f"object {gone[0][:12]} of {source} is not in the store, nor are 1 more" == planned.missing[pruned.digest]
    assert {pruned.digest: planned.missing[pruned.digest], cast.digest: f"comes after {pruned}"} == planned.blocked
    assert 0.0 == planned.estimated_s


def test_how_far_off_it_is_cannot_be_told_without_the_recorded_weights(shop: Registry, bring: Import):
    source = bring()
    leaned = shop.apply("lean", source, threads=1).version

    with away(shop, only_in(shop, leaned, source)[0]):
        assert {leaned.digest} == shop.replay_plan(leaned).absent.keys()
        (same,) = shop.replay(leaned).steps
        (other,) = shop.replay(leaned, threads=2).steps

    assert ("bytes", "different") == (same.verdict, other.verdict)
    assert other.reason.startswith("by how much cannot be told: object ")


# Why it differs


def test_another_version_of_a_package_is_named_where_bits_depend_on_it(
    shop: Registry, bring: Import, other_packages: Engine
):
    there, source = Registry.open(shop.root, engine=other_packages), bring(dtype="F32")
    for amount, verdict in ((1.0, "different"), (2.0**-20, "close")):
        made = there.apply("versioned", source, amount=amount, threads=1).version

        (step,) = shop.replay(made).steps

        assert verdict == step.verdict
        assert {"compressed-tensors": ("99.0", version("compressed-tensors"))} == step.environment
    again = there.replay(made)
    assert ("bytes", {}) == (again.verdict, again.steps[0].environment)


@pytest.fixture(scope="module")
def other_packages(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine of a machine on which another version of a package is installed."""
    del engine  # It was asked for because it says where the transforms from outside are.
    from mreg.transforms._engine import LocalEngine

    site = tmp_path_factory.mktemp("newer")
    info = site / "compressed_tensors-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: compressed-tensors\nVersion: 99.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))
        with LocalEngine(state=tmp_path_factory.mktemp("state")) as other:
            other.environment(threads=1, portable=False, device="cpu")
            yield other


# What replays prove of a version


def test_a_version_is_reproduced_as_a_step_of_a_longer_replay_too(shop: Registry, bring: Import):
    leaned = shop.apply("lean", bring(dtype="F32"), threads=1).version
    pruned = shop.apply("prune", leaned, sparsity=0.5, threads=1).version

    first, second = shop.replay(pruned, from_base=True, threads=2).steps
    shop.replay(pruned, from_base=True)

    assert ((), (leaned.digest,)) == (first.inherited, second.inherited), "what it worked on came out otherwise"
    told = shop.show(leaned)["reproduced"]
    assert (1, 1, 2, f"{pruned}") == (told["times"], told["machines"], told["attempted"], told["as_step"]["of"])
    before = shop.show(pruned)
    assert told["last"] == before["reproduced"]["last"]
    shop.rebuild()
    assert (before["replays"], before["reproduced"]) == tuple(shop.show(pruned)[x] for x in ("replays", "reproduced"))


# Commands of somebody's own


CHANGE = 'cp "$MREG_INPUT"/* "$MREG_OUTPUT"; echo "{}" > "$MREG_OUTPUT/config.json"\n'


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@host")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def ran(shop: Registry, source: str, folder: Path) -> Version:
    """What `mreg run -- sh train.sh` made in a folder."""
    state = code_state.look(folder, ["train.sh"])
    about = {"cwd": str(folder), "commit": state.commit, "diff": state.changes(), "files": state.files}
    return shop.apply("command", source, threads=1, command=["sh", "train.sh"], **about).version


def test_a_command_is_replayed_in_its_commit_with_the_changes_of_then(shop: Registry, bring: Import, tmp_path: Path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.sh").write_text("exit 1\n")
    git(code, "init", "-q")
    git(code, "add", ".")
    git(code, "commit", "-q", "-m", "train")
    (code / "train.sh").write_text(CHANGE)
    made = ran(shop, bring(), code)
    (code / "train.sh").write_text("exit 2\n")

    (step,) = shop.replay(made).steps

    assert "bytes" == step.verdict
    assert step.note.startswith("in a checkout of commit ")
    assert step.note.endswith(" with the changes that were not committed")
    assert not any(name.startswith("code") for name in step.environment)
    shutil.rmtree(code / ".git")
    (step,) = shop.replay(made).steps
    assert "not-attempted" == step.verdict
    assert f"the git repository of {code} is not there any more: put it back, with the commit" in step.reason
    assert step.reason == shop.replay_plan(made).missing[made.digest]


def test_a_command_outside_git_is_replayed_where_it_is_as_long_as_its_files_are_what_they_were(
    shop: Registry, bring: Import, tmp_path: Path
):
    (tmp_path / "train.sh").write_text(CHANGE)
    made = ran(shop, bring(), tmp_path)

    (same,) = shop.replay(made).steps
    (tmp_path / "train.sh").write_text(f"{CHANGE}# changed\n")
    (other,) = shop.replay(made).steps

    assert ("bytes", "not-attempted") == (same.verdict, other.verdict)
    assert f"in {tmp_path} as it is now, which is in no git commit" == same.note
    assert "train.sh is not what it was, and in no git commit" in other.reason
