"""Rebase, bisect, verify and heritage from the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import make_model

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def test_a_chain_is_changed_in_the_middle_and_only_the_name_asked_for_moves(run: Run, ok: Run) -> None:
    ok("apply", "cast", "--from", "base", "--dtype", "bfloat16", "--threads", "1")
    ok("apply", "cast", "--from", "v5", "--dtype", "float16", "--as", "small", "--threads", "1")
    planned = ok("rebase", "small", "--drop", "v5", "--dry-run")
    told = run("rebase", "small", "--set", "v6:dtype=float32", "--as", "wide")
    done = ok("rebase", "small", "--set", "v6:dtype=float32")
    without = ok("rebase", "small", "--drop", "v5", "--as", "direct")
    recipe = run("diff", "small", "direct", "--recipe", "--json").json["recipe"]

    assert ["drop", "run"] == [one["action"] for one in planned["steps"]]
    assert 0 == told.code, told.err
    assert "v7 (wide) is v6 rebased" in told.out
    assert [("same", "import"), ("removed", "cast"), ("same", "cast")] == [
        (one["kind"], one["transform"]) for one in recipe
    ]
    assert ["drop", "run"] == [one["action"] for one in without["steps"]]
    assert ("v7", "reuse") == (done["version"], done["steps"][-1]["action"])
    assert "v6" == ok("show", "small")["version"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["v4"], 2, "nothing to change: give --drop, --set, --onto or --insert"),
        (["v4", "--set", "sparsity=1"], 2, "--set takes REV:KEY=VALUE, it was 'sparsity=1'"),
        (["v4", "--drop", "v1"], 11, "v1 was imported, no step made it"),
        (["v3", "--drop", "v4"], 11, "v4 is not on the way to v3"),
        (["v4", "--drop", "v2"], 11, "was made elsewhere, by my-prune"),
        (["v4", "--drop", "v9"], 4, "no version is called 'v9'"),
    ],
)
def test_what_cannot_be_rebased_is_said_in_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run("rebase", *arguments)

    assert (code, 1) == (result.code, len(result.err.splitlines()))
    assert said in result.err


def test_the_step_that_broke_it_is_found_by_a_command(run: Run) -> None:
    # b, c and d of the stock differ from a in their first tensors.
    test = "import os, sys; sys.exit(int(os.environ['MREG_VERSION'] in ('v3', 'v4')))"
    found = run("--json", "bisect", "--good", "v1", "--bad", "v4", "--", sys.executable, "-c", test).json
    told = run("bisect", "--good", "v1", "--bad", "v4", "--", sys.executable, "-c", test)

    assert ("v3", ["v2", "v3"]) == (found["first_bad"], sorted(one["version"] for one in found["tested"]))
    assert "v3 is the first bad version" in told.out
    assert "my-prune" in told.out


def test_versions_that_cannot_be_judged_leave_several(run: Run) -> None:
    result = run("bisect", "--good", "v1", "--bad", "v4", "--", sys.executable, "-c", "raise SystemExit(125)")

    assert 1 == result.code
    assert "one of v2, v3, v4" in result.out


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [(["no-such-program"], 12, "no-such-program cannot be run"), (["sh", "-c", "exit 127"], 12, "exit code 127")],
)
def test_a_test_that_cannot_be_run_says_neither_good_nor_bad(
    run: Run, command: list[str], code: int, said: str
) -> None:
    result = run("bisect", "--good", "v1", "--bad", "v4", "--", *command)

    assert code == result.code
    assert said in result.err


def test_a_metric_that_the_log_knows_needs_no_checkout(run: Run, ok: Run) -> None:
    ok("apply", "cast", "--from", "v3", "--dtype", "bfloat16", "--threads", "1")
    events = len(run("events").out.splitlines())
    arguments = ["--good", "v1", "--bad", "v5", "--metric", "size", "--above", "0.9 * v1"]
    found, told = ok("bisect", *arguments), run("bisect", *arguments)

    assert ("v5", [True]) == (found["first_bad"], list({one["from_log"] for one in found["tested"]}))
    assert all(one["measured"].startswith("size is 127") for one in found["tested"])
    assert "v5 is the first bad version: cast v3" in told.out
    assert "(from the log)" in told.err
    assert events == len(run("events").out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "give either a command after --, or --metric, or --prompt"),
        (["--metric", "size", "--below", "1", "--", "true"], 2, "give either a command"),
        (["--metric", "size"], 2, "--metric needs --below or --above"),
        (["--metric", "size", "--below", "1", "--above", "0"], 2, "--metric needs --below or --above"),
        (["--prompt", "hello"], 2, "--prompt needs --expect or --reject"),
        (["--expect", "hello", "--", "true"], 2, "--expect belongs to --prompt"),
        (["--metric", "size", "--below", "1", "--flaky", "0.1"], 2, "--flaky belongs to a command"),
        (["--metric", "sise", "--below", "1"], 4, "no metric is called 'sise': did you mean size"),
        (["--metric", "size", "--below", "1"], 11, "v1 is said to be good, and is bad: size is 127"),
    ],
)
def test_a_question_that_cannot_be_asked_is_said_in_one_line(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    result = run("bisect", "--good", "v1", "--bad", "v4", *arguments)

    assert (code, 1) == (result.code, len(result.err.splitlines())), result.err
    assert said in result.err


def test_a_version_is_whole_until_a_bit_of_it_flips(run: Run, ok: Run, filled: Path) -> None:
    whole = ok("verify", "v2")
    largest = max((filled / ".mreg" / "objects").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.chmod(0o644)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    broken = [run("verify", f"v{number}") for number in (1, 2, 3, 4)]

    assert (True, []) == (whole["ok"], whole["problems"])
    assert {1} <= {result.code for result in broken}
    assert any("problem" in result.out for result in broken)


def test_claims_that_the_weights_contradict_are_told(run: Run, ok: Run) -> None:
    ok("apply", "cast", "--from", "base", "--dtype", "bfloat16", "--threads", "1")
    ok("checkout", "v5", "small")
    honest = run("verify", "v5", "--claims")
    make_model(Path("other"), seed=7, changed=4)
    assert 0 == run("record", "--from", "v1", "--with", "v2", "--output", "other", "--transform", "merge").code
    found = run("verify", "v6", "--claims", "--json")

    assert 0 == honest.code
    assert "proved" in honest.out
    assert 1 == found.code
    assert "contradicted" == found.json["steps"][-1]["verdict"]


def test_a_model_of_unknown_origin_is_told_where_it_came_from(run: Run, ok: Run) -> None:
    ok("checkout", "v2", "unknown")
    make_model(Path("stranger"), seed=11, layers=3, architecture="OtherModel")
    known, nobody = ok("heritage", "unknown"), run("heritage", "nowhere")

    assert (["v2"], "identical") == (known["origins"][0]["versions"], known["origins"][0]["kind"])
    assert 2 == nobody.code
