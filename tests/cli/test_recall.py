"""Recall from the command line: what it reaches, what it blocks, and how it is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def test_a_version_and_all_that_came_of_it_are_taken_out_of_use(run: Run, ok: Run) -> None:
    planned = ok("recall", "v2", "--dry-run")
    told = run("recall", "v2", "-m", "trained on the test set")
    again = ok("recall", "v2", "-m", "once more")
    blocked, forced = run("ref", "set", "next", "v4"), ok("ref", "set", "next", "v4", "--force")

    assert ["v2", "v3", "v4"] == [one["version"] for one in planned["recalled"]]
    assert [("source", "v2"), ("source", "v2")] == [(one["role"], one["through"]) for one in planned["recalled"][1:]]
    assert [{"ref": "prod", "version": "v2"}, {"ref": "sft", "version": "v2"}] == planned["refs"]
    assert (None, None) == (planned["event"], again["event"])
    assert "recalled v2, and with it 2 versions that came of it" in told.out
    assert "prod points at v2" in told.out
    assert (1, 1) == (blocked.code, len(blocked.err.splitlines()))
    assert "v4 came of v2, which is recalled (trained on the test set)" in blocked.err
    assert ["recall of v2 (event 11)"] == forced["forced"]


def test_it_is_seen_wherever_versions_are_shown(run: Run, ok: Run) -> None:
    ok("recall", "v3", "-m", "leaked")
    every = {one["version"]: [recall["version"] for recall in one["recalled"]] for one in ok("list")}
    shown = ok("show", "v4")["recalled"]
    graph = {one["version"]: bool(one["recalled"]) for one in ok("lineage", "v1")["nodes"]}

    assert {"v1": [], "v2": [], "v3": ["v3"], "v4": ["v3"]} == every
    assert [("v3", "leaked")] == [(one["version"], one["message"]) for one in shown]
    assert {"v1": False, "v2": False, "v3": True, "v4": True} == graph
    for arguments in (["list"], ["show", "v4"], ["log"], ["lineage", "v1"], ["lineage", "--of-data", "lines"]):
        told = run(*arguments).out
        assert "v4 (recalled)" in told
        assert "v2 (recalled)" not in told
    assert "recalled  v3, by" in run("show", "v4").out
    assert r'v4 [label="v4\nmy-merge\nrecalled", color=red];' in run("lineage", "v1", "--format", "dot").out
    assert "  class v3,v4 recalled" in run("lineage", "v1", "--format", "mermaid").out


def test_a_recall_is_lifted_and_the_list_says_what_stands(run: Run, ok: Run) -> None:
    ok("recall", "v3", "-m", "leaked")
    ok("recall", "lines", "-m", "consent was withdrawn")
    listed, told = ok("recall"), run("recall").out
    lifted = run("recall", "--undo", "lines", "-m", "it was given")

    assert [("v3", 2), ("lines", 3)] == [(one.get("version") or one["dataset"], len(one["recalled"])) for one in listed]
    assert "the dataset lines" in told
    assert "consent was withdrawn" in told
    assert "2 versions of these are recalled for another reason" in lifted.out
    assert ["v3"] == [one["version"] for one in ok("recall")]


def test_a_step_on_what_is_recalled_warns_and_goes_on(run: Run) -> None:
    assert 0 == run("recall", "v2", "-m", "leaked").code
    done = run("record", "--from", "v3", "--output", "d", "--transform", "again")
    out = run("checkout", "v3", "out")

    assert 0 == done.code
    assert "warning: v3 came of v2, which is recalled (leaked)" in done.err
    assert "warning" not in done.out
    assert (0, "warning: v3 is recalled: `mreg show v3` says why\n") == (out.code, out.err)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["v2"], 2, "say why it is recalled: with -m TEXT"),
        (["--undo", "v2", "-m", "x"], 11, "v2 was not recalled itself"),
        (["--undo"], 2, "name a version or a dataset"),
        (["nothing", "-m", "x"], 4, "no version and no dataset is called 'nothing'"),
    ],
)
def test_what_cannot_be_recalled_is_said_in_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run("recall", *arguments)

    assert (code, 1) == (result.code, len(result.err.splitlines()))
    assert said in result.err
