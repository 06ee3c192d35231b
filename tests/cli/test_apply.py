"""Transforms and replays from the command line, with real runs in child processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mreg.cli import replayed
from mreg.registry import Registry
from mreg.registry.log.events import StepJudged
from mreg.registry.replay.replaying import Replay, ReplayPlan
from safetensors.numpy import save_file

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def test_a_step_is_run_once_then_answered_from_the_log_and_replayed_with_a_verdict(run: Run, ok: Run) -> None:
    step = ["apply", "cast", "--from", "base", "--dtype", "bfloat16", "--as", "small", "--threads", "1"]
    made = ok(*step, "-m", "to save space")
    again = run(*step)
    judged = run("replay", "small", "--threads", "2")

    names = {"version", "digest", "weights", "parents", "transform", "params", "facts", "cached", "event"}
    assert names <= made.keys()
    assert ("v5", ["v1"], {"dtype": "bfloat16"}, False) == (
        made["version"],
        made["parents"],
        made["params"],
        made["cached"],
    )
    assert "v5 (small)  cast v1  dtype=bfloat16" in again.out
    assert "answered from the log" in again.out
    assert 0 == judged.code
    assert "threads 1 → 2" in judged.out
    assert judged.out.endswith("v5: bytes, every file came out again, byte for byte\n")
    assert "bytes" == ok("show", "small")["replays"][0]["verdict"]
    assert "to save space" in run("log", "small").out


def test_a_plan_and_a_replay_plan_run_nothing(run: Run, ok: Run) -> None:
    before = len(run("events").out.splitlines())

    planned = ok("apply", "merge", "--from", "v2", "--with", "v3", "--with", "others=v4", "--dry-run")
    told = run("apply", "cast", "--from", "v1", "--dtype", "bfloat16", "--dry-run").out
    again = ok("replay", "v3", "--from-base", "--dry-run")

    assert [("source", "v2"), ("others", "v3"), ("others", "v4")] == [
        (one["role"], one["version"]) for one in planned["inputs"]
    ]
    assert told.startswith("would run cast, nothing was done\n")
    assert ["v2", "v3"] == [step["version"] for step in again["steps"]]
    assert before == len(run("events").out.splitlines())


def test_what_was_done_elsewhere_is_not_replayed_and_nothing_is_proved(run: Run) -> None:
    result = run("replay", "v2")

    assert 1 == result.code
    assert "made elsewhere" in result.out
    assert result.out.endswith("v2: not-attempted, a step could not be done again, so nothing is proved\n")


def test_a_transform_that_fails_is_told_in_one_line_and_leaves_no_version(run: Run, ok: Run, model: Run) -> None:
    save_file({"large.weight": np.full((4, 4), 1e30, np.float32)}, model("huge") / "model.safetensors")
    ok("import", "huge", "--as", "huge")

    result = run("apply", "cast", "--from", "huge", "--dtype", "float16")

    assert 6 == result.code
    assert "cast failed: large.weight holds 1e+30, too large for float16" in result.err
    assert 1 == result.err.count("\n")
    assert 5 == len(ok("list"))
    assert ok("fsck")["ok"]


def test_ctrl_c_ends_a_transform_with_130_and_leaves_no_version(run: Run, ok: Run, filled: Path) -> None:
    step = ["apply", "cast", "--from", "base", "--dtype", "bfloat16"]
    process = subprocess.Popen([sys.executable, "-m", "mreg.cli.main", *step], stderr=subprocess.PIPE)
    while not any(json.loads(line)["kind"].startswith("run-started") for line in run("events").out.splitlines()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)

    _, said = process.communicate(timeout=30)

    assert (130, 1) == (process.returncode, said.count(b"\n"))
    assert b"mreg: cast was stopped" in said
    assert "interrupted" == ok("sql", "SELECT status FROM run WHERE mode = 'apply'")[0]["status"]
    assert ok("fsck")["ok"]
    assert [] == list((filled / ".mreg" / "tmp").iterdir())


def test_a_replay_that_differs_says_where_by_how_much_and_what_was_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Registry.open() as registry:
        target = registry.version("v2")
    plan = ReplayPlan(target, True, (), (), {}, {target.digest: "v2"})
    step = StepJudged(
        version=target.digest,
        transform="finetune",
        verdict="different",
        max_abs=0.25,
        rel_l2=0.0125,
        worst_tensor="lm_head.weight",
        changed_tensors=3,
        environment={"threads": (2, 1), "mkl_cbwr": ("", "COMPATIBLE")},
        wall_s=2.0,
    )

    replayed.tell(Replay(plan, "different", (step,), 9, tolerance=1e-3))

    shown = capsys.readouterr().out
    assert "0.25" in shown
    assert "threads 2 → 1, mkl_cbwr none → COMPATIBLE" in shown
    assert "3 tensors differ, most lm_head.weight (rel L2 0.0125)" in shown
    assert shown.endswith("v2: different, other weights came out\n")
