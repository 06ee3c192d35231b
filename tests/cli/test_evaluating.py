"""Scores and guards as the log tells them: compare, show, diff, policy, and the refs that do not move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mreg.cli import scatter
from mreg.registry.log.events import DatasetAdded
from mreg.registry.measures import tradeoff

from tests.histories import digest, evaluated, imported, judgement, made, moved, score

Run = Callable[..., Any]

GENERAL = DatasetAdded(
    digest=digest(9, "f"), name="general", rows=3, bytes=70, columns=("text",), format="jsonl", source="/general.jsonl"
)
WORDS = "perplexity(general) is 31.2, 1.49 × that of v1 (20.9); at most 1.05 × is allowed"  # noqa: RUF001


@pytest.fixture
def measured(told: Callable[..., Path]) -> Path:
    """v1 at 20.9; v2, larger and worse; v3, larger and better; v4, not measured; v2 fails a guard, and prod is v1."""
    return told(
        GENERAL,
        imported(1),
        made(2, 1),
        made(3, 1),
        made(4, 1),
        evaluated(1, score(1, 30.0), evaluation="first"),
        evaluated(1, score(1, 20.9), score(1, 0.5, metric="accuracy"), evaluation="second"),
        evaluated(2, score(2, 31.2)),
        evaluated(3, score(3, 18.5)),
        judgement(2, holds=False, words=WORDS),
        moved("prod", None, 1),
    )


@pytest.mark.usefixtures("measured")
def test_compare_puts_versions_side_by_side_and_marks_the_front(run: Run) -> None:
    found = run("compare", "v1", "v2", "v3", "--json").json
    by_version = {row["version"]: row for row in found["versions"]}

    assert ["size", "perplexity(general)"] == found["objectives"]
    assert [True, False, True] == [by_version[name]["front"] for name in ("v1", "v2", "v3")]
    assert 20.9 == by_version["v1"]["scores"]["perplexity(general)"]["value"], "the newest of two answers"
    assert ("prod", None) == (by_version["v1"]["ref"], by_version["v2"]["ref"])


@pytest.mark.usefixtures("measured")
def test_compare_tells_how_to_measure_what_is_missing(run: Run) -> None:
    shown = run("compare", "v1", "v2", "v4").out
    missing = run("compare", "v1", "v4", "--metric", "perplexity", "--json").json["missing"]

    assert "mreg eval v4 v2 --metric perplexity --metric accuracy --data general" in shown
    assert "missing" in shown
    assert [
        {
            "version": "v4",
            "metric": "perplexity",
            "data": "general",
            "command": "mreg eval v4 --metric perplexity --data general",
        }
    ] == missing


@pytest.mark.usefixtures("measured")
def test_compare_draws_the_trade_off(run: Run, here: Path) -> None:
    shown = run("compare", "v1", "v2", "v3", "--plot", "out.png").out

    assert b"\x89PNG" == (here / "out.png").read_bytes()[:4]
    assert "* v1" in shown
    assert "o v2" in shown
    assert "on the front over size, perplexity(general)" in shown


@pytest.mark.usefixtures("measured")
def test_an_unknown_metric_is_refused_with_the_nearest(run: Run) -> None:
    result = run("compare", "v1", "v2", "--metric", "perplexty")

    assert (4, True) == (result.code, "did you mean perplexity" in result.err)


@pytest.mark.usefixtures("measured")
def test_show_lists_the_newest_scores_and_what_guards_said(run: Run) -> None:
    found, shown = run("show", "v2", "--json").json, run("show", "v2").out

    assert [("perplexity", 31.2, "general")] == [(s["metric"], s["value"], s["data"]) for s in found["scores"]]
    assert [(False, WORDS)] == [(one["holds"], one["words"]) for one in found["guards"]]
    assert "perplexity(general)  31.2 (30.2 to 32.2), 40 tokens" in shown
    assert f"fails  {WORDS}" in shown


def test_list_marks_the_versions_that_fail_a_guard_of_their_own(run: Run, told: Callable[..., Path]) -> None:
    told(
        imported(1),
        *(made(number, 1) for number in (2, 3, 4, 5)),
        judgement(2, holds=False, words=WORDS),
        judgement(3, holds=False),
        judgement(3, holds=True),
        judgement(4, holds=False, ref="prod"),
        judgement(5, holds=True, source=digest(2)),
        judgement(5, holds=False, source=None, other=None),
    )
    found, result = run("list", "--json").json, run("list")
    marked = [line.split()[0] for line in result.out.splitlines() if line.split()[1] == "!"]

    assert [[], [WORDS], [], [], ["perplexity(general) is 31.2"]] == [row["fails"] for row in found]
    assert ["v2", "v5"] == marked


@pytest.mark.usefixtures("measured")
def test_diff_shows_both_scores_and_the_difference(run: Run) -> None:
    result = run("diff", "v1", "v2", "--scores", "--json")
    rows = {row["name"]: row for row in result.json["scores"]}
    shown = run("diff", "v1", "v2", "--scores").out

    assert 1 == result.code
    assert pytest.approx(31.2 - 20.9) == rows["perplexity(general)"]["difference"]
    assert (0.5, None) == (rows["accuracy(general)"]["a"], rows["accuracy(general)"]["b"])
    assert "+10.3 (+49.3 %)" in shown
    assert "missing" in shown


@pytest.mark.usefixtures("measured")
def test_a_name_does_not_move_to_a_version_that_fails_without_force(run: Run) -> None:
    refused = run("ref", "set", "prod", "v2")
    forced = run("ref", "set", "prod", "v2", "--force", "--json").json
    log = run("ref", "log", "prod", "--json").json

    assert (1, 1) == (refused.code, refused.err.count("\n"))
    assert f"prod stays at v1, since v2 fails: {WORDS}" in refused.err
    assert ["perplexity(general) <= 1.05 * source"] == forced["forced"]
    assert [forced["forced"], []] == [move["forced"] for move in log]


@pytest.mark.usefixtures("measured")
def test_a_rollback_does_not_go_back_to_a_version_that_fails_without_force(run: Run) -> None:
    for rev in ("v2", "v3"):
        assert 0 == run("ref", "set", "prod", rev, "--force").code
    refused, forced = run("rollback", "prod"), run("rollback", "prod", "--force")

    assert (1, 0) == (refused.code, forced.code)
    assert "v2" == run("ref", "list", "--json").json[0]["version"]


@pytest.mark.usefixtures("measured")
def test_a_policy_is_kept_listed_and_taken_away(run: Run) -> None:
    guard = "size <= 1e12"
    kept = run("policy", "set", "live", "--guard", guard, "-m", "small enough", "--json").json
    listed = run("policy", "list", "--json").json
    moved_to = run("ref", "set", "live", "v4")
    run("policy", "set", "live", "--guard", "size < 10")
    stays = run("ref", "set", "live", "v1")
    deleted = run("policy", "delete", "live", "--json").json

    assert {"ref": "live", "guards": ["size <= 1000000000000"]} == kept
    assert [kept] == listed
    assert (0, 1) == (moved_to.code, stays.code)
    assert "live stays at v4, since v1 fails: size is 2000000000; less than 10 is allowed" in stays.err
    assert ["size < 10"] == deleted["before"]
    assert 0 == run("ref", "set", "live", "v1").code


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["policy", "set", "prod"], 2, "a policy has at least one guard"),
        (["policy", "set", "prod", "--guard", "perplexity(general) ~ 3"], 2, "is no guard"),
        (["policy", "set", "new", "--guard", "perplexity(nowhere) < 3"], 4, "no dataset is called 'nowhere'"),
        (["policy", "delete", "prod"], 4, "prod has no policy"),
        (["eval", "v1", "--metric", "perplexity"], 2, "name a file or a dataset with --data"),
        (["eval", "v1", "--metric", "f1", "--data", "general"], 11, "f1 is not defined for v1"),
        (["eval", "v1", "--metric", "kl", "--data", "general"], 11, "name a version with --against"),
        (["eval", "v1", "--metric", "size", "--data", "general"], 2, "leave --data out"),
        (["compare", "v1", "v4", "--metric", "f1", "--plot", "x.png"], 11, "there is nothing to plot"),
    ],
)
@pytest.mark.usefixtures("measured")
def test_what_cannot_be_done_is_said_in_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)

    assert (code, 1) == (result.code, result.err.count("\n"))
    assert said in result.err


@pytest.mark.usefixtures("measured")
def test_sizes_need_no_measuring(run: Run) -> None:
    found = run("eval", "v1", "v2", "--json").json

    assert ["v1", "v2"] == [one["version"] for one in found]
    assert [2e9, 4e9] == [one["scores"][0]["value"] for one in found]


def test_a_scatter_shows_every_point_and_the_ends_of_the_axes() -> None:
    points = [scatter.Point(1, 5, "v1"), scatter.Point(9, 2, "v2", marked=True), scatter.Point(9, 5, "v3")]
    lines = scatter.draw(points, "size", "nll", ("1 MB", "9 MB"), ("2", "5"))

    assert "nll" == lines[0]
    assert lines[1].startswith("5 |o v1")
    assert lines[1].endswith("v3 o")
    assert lines[scatter.HEIGHT].endswith("v2 *")
    assert all(len(line) <= scatter.WIDTH + 10 for line in lines)


def test_no_other_version_beats_one_on_the_front() -> None:
    def column(metric: str, **values: float) -> tradeoff.Column:
        answers: Any = {name: type("Answer", (), {"value": value})() for name, value in values.items()}
        return tradeoff.Column(metric, metric, None, answers)

    size = column("size", v1=1, v2=2, v3=3, v4=3)
    accuracy = column("accuracy", v1=0.5, v2=0.4, v3=0.9, v4=0.9)

    assert {"v1", "v3", "v4"} == tradeoff.front(["v1", "v2", "v3", "v4"], [size, accuracy])
