"""What the reading commands show, to people and to programs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mreg.registry.log.events import ReplayFinished, ReplayStarted, StepJudged

from tests.histories import digest, finished, imported, made, started

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def test_list_shows_every_version_with_what_made_it(run: Run) -> None:
    shown = run("list").out.splitlines()

    assert ["version", "digest", "refs", "made", "by", "size", "recorded", "(UTC)"] == shown[0].split()
    assert ["v1", "v2", "v3", "v4"] == [line.split()[0] for line in shown[1:]]
    assert "my-sft (recorded) v1 data=lines learning_rate=0.0001" in shown[2]
    assert "prod,sft" in shown[2]


def test_list_as_json_is_whole_and_exact(ok: Run) -> None:
    versions = ok("list")

    names = {"version", "digest", "weights", "parents", "transform", "params", "refs", "scores", "bytes"}
    assert all(names <= version.keys() for version in versions)
    assert ["import", "my-sft", "my-prune", "my-merge"] == [version["transform"] for version in versions]
    assert [[], ["v1"], ["v2"], ["v2", "v3"]] == [version["parents"] for version in versions]


def test_show_tells_what_a_version_is_how_it_was_made_and_what_came_of_it(run: Run) -> None:
    shown = run("show", "sft").out

    assert shown.startswith("v2 (prod, sft)  LlamaForCausalLM\n")
    assert "source=v1 (recorded, done elsewhere)" in shown
    assert "lines, 2 rows" in shown
    assert "children  v3 (my-prune), v4 (my-merge)" in shown


def test_show_as_json_has_the_inputs_by_role(ok: Run) -> None:
    shown = ok("show", "v4")

    assert [("source", "v2"), ("others", "v3")] == [(one["role"], one["version"]) for one in shown["inputs"]]


def test_log_of_a_version_leaves_out_what_did_not_lead_to_it(run: Run) -> None:
    shown = run("log", "v3", "--oneline").out.splitlines()

    assert ["v3", "v2", "v1"] == [line.split()[0] for line in shown]
    assert shown[2].endswith("(base) import a where it all begins")


def test_log_with_a_graph_draws_the_merge(run: Run) -> None:
    shown = [line[:5].rstrip() for line in run("log", "--graph", "--oneline").out.splitlines()]

    assert ["*   v", "├─╮", "│ * v", "├─╯", "* v2", "* v1"] == shown


def test_log_takes_a_number(ok: Run) -> None:
    assert ["v4", "v3"] == [step["version"] for step in ok("log", "-n", "2")]


def test_events_are_one_json_object_a_line_with_or_without_json(run: Run) -> None:
    plain, asked = run("events", "--after", "3"), run("--json", "events", "--after", "3")

    events = [json.loads(line) for line in plain.out.splitlines()]
    assert plain.out == asked.out
    assert list(range(4, 4 + len(events))) == [event["seq"] for event in events]
    assert {"seq", "id", "kind", "at", "actor", "payload", "prev", "hash"} == events[0].keys()


def test_lineage_is_a_tree_from_the_oldest_down(run: Run) -> None:
    assert [
        "v1 (base) import a",
        "└─ v2 (prod, sft) my-sft (recorded) learning_rate=0.0001 ◀",
        "   ├─ v3 my-prune (recorded) sparsity=0.5",
        "   │  └─ v4 [others] my-merge (recorded)",
        "   └─ v4 (above)",
    ] == run("lineage", "sft").out.splitlines()


def test_lineage_up_starts_at_the_version_and_down_leaves_its_ancestors_out(run: Run) -> None:
    up, down = run("lineage", "v3", "--up").out, run("lineage", "v3", "--down").out

    assert ["v3", "v2", "v1"] == [line.lstrip(" └─").split()[0] for line in up.splitlines()]
    assert ["v3", "v4"] == [line.lstrip(" └─").split()[0] for line in down.splitlines()]


def test_lineage_as_json_has_nodes_and_edges(ok: Run) -> None:
    shown = ok("lineage", "v1")

    edges = [(edge["parent"], edge["child"], edge["transform"], edge["role"]) for edge in shown["edges"]]
    assert ["v1", "v2", "v3", "v4"] == [node["version"] for node in shown["nodes"]]
    assert ("v3", "v4", "my-merge", "others") in edges


@pytest.mark.parametrize(("form", "line"), [("dot", "  v1 -> v2;"), ("mermaid", "  v3 -->|others| v4")])
def test_lineage_can_be_drawn_by_others(run: Run, form: str, line: str) -> None:
    assert line in run("lineage", "v1", "--format", form).out.splitlines()


def test_diff_names_the_steps_the_files_and_the_tensors_that_changed(run: Run) -> None:
    result = run("diff", "v1", "v2")

    assert 1 == result.code
    assert "  + my-sft v2  learning_rate=0.0001" in result.out
    assert "  ~ config.json" in result.out
    assert "  3 of 5 tensors changed, 2 identical" in result.out
    assert "F32[32,16]" in result.out


def test_diff_as_json_has_the_numbers_of_every_changed_tensor_the_most_changed_first(run: Run) -> None:
    document = run("diff", "v1", "v2", "--json").json

    changed = document["tensors"]["changed"]
    assert {"recipe", "tensors", "files", "scores"} <= document.keys()
    assert {"name", "max_abs", "rel_l2", "changed_fraction", "rank"} <= changed[0].keys()
    assert sorted((one["rel_l2"] for one in changed), reverse=True) == [one["rel_l2"] for one in changed]
    assert (3, 2) == (len(changed), document["tensors"]["identical"])


def test_diff_of_recipes_reads_no_weights(run: Run, filled: Path) -> None:
    for stored in (filled / ".mreg" / "objects").rglob("*"):
        if stored.is_file() and stored.stat().st_size > 2000:
            stored.unlink()

    result = run("diff", "v2", "v3", "--recipe")

    assert (1, "") == (result.code, result.err)
    assert "weights" not in result.out


def test_diff_of_a_version_with_itself_says_the_same_and_ends_with_0(run: Run) -> None:
    result = run("diff", "sft", "v2")

    assert 0 == result.code
    assert "the same tensors, every bit" in result.out


def test_diff_tells_tensors_that_differ_in_numbers_only_as_one_unless_all_are_asked_for(run: Run, model: Run) -> None:
    model("small", layers=1)
    run("import", "small", "--as", "small")

    short = run("diff", "v1", "small", "--weights").out
    whole = run("diff", "v1", "small", "--weights", "--all").out

    assert "  - model.layers.*.mlp.weight  (3 tensors)\n" in short
    assert "  - model.layers.2.mlp.weight\n" in whole


def test_refs_are_listed_with_what_they_name(ok: Run) -> None:
    assert [("base", "v1"), ("prod", "v2"), ("sft", "v2")] == [
        (one["ref"], one["version"]) for one in ok("ref", "list")
    ]


def test_the_log_of_a_ref_says_where_it_was_and_why(run: Run) -> None:
    shown = run("ref", "log", "prod").out.splitlines()

    assert ["prod@{0}", "v2", "set"] == shown[1].split()[:3]
    assert shown[1].endswith("safer")
    assert ["prod@{1}", "v3", "record"] == shown[2].split()[:3]


def test_datasets_are_listed(ok: Run) -> None:
    (lines,) = ok("data", "list")

    assert ("lines", 2, ["text"]) == (lines["dataset"], lines["rows"], lines["columns"])


def test_sql_gives_a_table_to_people_and_objects_to_programs(run: Run, ok: Run) -> None:
    question = "SELECT number, transform FROM version ORDER BY number LIMIT 2"

    assert ["number  transform", "     1  -", "     2  my-sft"] == run("sql", question).out.splitlines()
    assert [{"number": 1, "transform": None}, {"number": 2, "transform": "my-sft"}] == ok("sql", question)


def test_sql_cannot_write_nor_leave_the_database(run: Run, filled: Path) -> None:
    codes = [run("sql", statement).code for statement in ("DROP TABLE version", "COPY version TO 'out.csv'")]

    assert [2, 2] == codes
    assert not (filled / "out.csv").exists()


def test_names_from_outside_cannot_act_on_the_terminal(run: Run, ok: Run, model: Run) -> None:
    model("m", architecture="Llama\x1b[2J\u202eevil")
    ok("import", "m", "--as", "m", "-m", "first\n\x1b]0;owned\x07second")
    ok("ref", "set", "m", "v1", "-m", "\x1b[31mred")

    for command in (["list"], ["log"], ["log", "--oneline"], ["show", "m"], ["lineage", "m"], ["ref", "log", "m"]):
        shown = run(*command).out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown), command
        assert shown.isprintable() or all(line.isprintable() for line in shown.splitlines())
    assert "\u202e" not in run("show", "m", "--json").out


@pytest.fixture
def afresh(filled: Path, told: Run) -> Run:
    """Makes a registry from events in place of the one that is there."""
    shutil.rmtree(filled / ".mreg")
    return told


def judged(replay: str, number: int, verdict: str, cpu: str) -> list[Any]:
    step = StepJudged(version=digest(number), transform="prune", verdict=verdict)
    about = {"replay": replay, "version": digest(number)}
    return [
        ReplayStarted(**about, from_base=False, tolerance=1e-3, steps=(digest(number),)),
        ReplayFinished(**about, verdict=verdict, steps=(step,), environment={"cpu": cpu}),
    ]


def test_show_tells_the_run_its_curve_and_its_replays(run: Run, afresh: Run) -> None:
    facts = {"losses": [[1, 4.0], [2, 3.0], [3, 2.0], [4, 1.0]], "bytes_after": 1_500_000, "tokens": 123_456_789}
    afresh(
        imported(1),
        started("r", 1, message="half of it"),
        finished("r", 2, facts=facts, environment={"torch": "2.13.0"}),
        *judged("a", 2, "bytes", "EPYC"),
        *judged("b", 2, "tensors", "Xeon"),
        *judged("c", 2, "different", "EPYC"),
    )

    shown = [line.strip() for line in run("show", "v2").out.splitlines()]

    assert "losses       4 → 1  █▆▃▁" in shown
    assert "bytes_after  1.5 MB" in shown
    assert "tokens       123.5 M" in shown
    assert "seed      0, 2 threads, device auto" in shown
    assert "with      torch 2.13.0" in shown
    assert "reproduced   twice, last on 2026-01-01 00:00:08 UTC, on two machines" in shown
    assert any(line.startswith("last replay  different") for line in shown)


def test_a_long_chain_is_told_whole(run: Run, ok: Run, afresh: Run) -> None:
    afresh(imported(1), *(made(number, number - 1) for number in range(2, 1202)))

    assert 1201 == len(run("log", "v1201", "--oneline").out.splitlines())
    assert 1201 == len(run("lineage", "v600").out.splitlines())
    assert 600 == len(ok("lineage", "v600", "--up")["nodes"])
    assert [f"v{1201 - place}" for place in range(50)] == [step["version"] for step in ok("log")]
    assert ["v1100", "v1099"] == [step["version"] for step in ok("log", "v1100", "-n", "2")]


def test_a_version_made_again_from_its_own_descendant_does_not_send_a_reader_in_circles(run: Run, afresh: Run) -> None:
    afresh(imported(1), made(2, 1), made(1, 2, transform="undo"))

    assert ["v1", "└─ v2", "   └─ v1"] == [line.split(" (")[0].split(" import")[0] for line in
                                            run("lineage", "v2").out.replace(" prune", "").splitlines()]  # fmt: skip
    assert ["*", "*"] == [line[0] for line in run("log", "--graph", "--oneline").out.splitlines()]


def test_lineage_of_data_lists_what_it_went_into_and_through_whom(run: Run, ok: Run) -> None:
    told, document = run("lineage", "--of-data", "lines").out.splitlines(), ok("lineage", "--of-data", "lines")

    assert "lines  2 rows, 1 version trained on it, 2 more came of those" == told[0]
    assert ["v2", "prod,sft", "directly", "my-sft"] == told[2].split()[:4]
    assert "through v2, v3" in told[4]
    assert [("v2", True, []), ("v3", False, ["v2"]), ("v4", False, ["v2", "v3"])] == [
        (node["version"], node["direct"], node["through"]) for node in document["nodes"]
    ]
    assert ("v2", "v3") in {(edge["parent"], edge["child"]) for edge in document["edges"]}


def test_lineage_is_of_a_version_or_of_data(run: Run) -> None:
    assert [2, 2, 2, 4] == [
        run(*arguments).code
        for arguments in (
            ["lineage"],
            ["lineage", "v1", "--of-data", "lines"],
            ["lineage", "--of-data", "lines", "--format", "dot"],
            ["lineage", "--of-data", "line"],
        )
    ]
