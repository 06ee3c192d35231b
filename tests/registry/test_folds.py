"""The folds: what each event makes of the projections."""

from __future__ import annotations

import pytest
from hypothesis import given
from mreg.registry.log import events as e
from mreg.registry.log.events import UnreadableEvent
from mreg.registry.log.folds import KEYS, Tables, changes, fold
from mreg.registry.log.recorded import Recorded

from tests.histories import content, digest, finished, histories, history, imported, made, moved, started


def numbers(tables: Tables) -> dict[str, int]:
    """Versions by digest."""
    return {row["digest"]: row["number"] for row in tables["version"].values()}


def edges(tables: Tables) -> list[tuple[str, str, str]]:
    return [(row["parent"], row["child"], row["role"]) for row in tables["edge"].values()]


@given(histories())
def test_folding_one_by_one_is_folding_at_once(told: list[Recorded]):
    tables = Tables()
    for recorded in told:
        for change in changes(recorded, tables):
            tables.apply(change)

    assert fold(told) == tables


@given(histories())
def test_a_longer_history_never_renumbers_a_version(told: list[Recorded]):
    whole = numbers(fold(told))
    for length in range(len(told)):
        before = numbers(fold(told[:length]))

        assert before.items() <= whole.items()
    assert sorted(whole.values()) == list(range(1, len(whole) + 1))


@given(histories())
def test_every_edge_joins_versions_that_are_there(told: list[Recorded]):
    tables = fold(told)

    assert {end for edge in edges(tables) for end in edge[:2]} <= numbers(tables).keys()


def test_content_that_comes_again_keeps_its_number_and_its_first_source():
    tables = fold(history([imported(1), imported(2), e.VersionImported(content=content(1), source="/elsewhere")]))

    assert {digest(1): 1, digest(2): 2} == numbers(tables)
    assert "/models/1" == tables["version"][digest(1),]["source"]


def test_a_finished_run_gives_a_version_with_edges_to_its_inputs():
    tables = fold(history([imported(1), started("run", 1), finished("run", 2, made=(digest(7),), log=digest(8))]))
    version, run = tables["version"][digest(2),], tables["run"]["run",]

    assert ("apply", "prune", "run") == (version["origin"], version["transform"], version["run"])
    assert ("finished", digest(2), [digest(7)], digest(8)) == (run["status"], run["output"], run["made"], run["log"])
    assert (2, 3) == (run["started_seq"], run["ended_seq"])
    assert [(digest(1), digest(2), "source")] == edges(tables)


def test_a_run_that_gives_a_known_version_adds_an_edge_and_no_number():
    """There and back: the lineage has a cycle."""
    told = [imported(1), started("a", 1), finished("a", 2), started("b", 2), finished("b", 1)]
    tables = fold(history(told))

    assert {digest(1): 1, digest(2): 2} == numbers(tables)
    assert "import" == tables["version"][digest(1),]["origin"]
    assert [(digest(1), digest(2), "source"), (digest(2), digest(1), "source")] == edges(tables)


@pytest.mark.parametrize(("interrupted", "status"), [(False, "failed"), (True, "interrupted")])
def test_a_failed_run_leaves_no_version(interrupted: bool, status: str):
    failed = e.RunFailed(run="run", error="out of memory", interrupted=interrupted)
    tables = fold(history([imported(1), started("run", 1), failed]))

    assert (status, "out of memory") == (tables["run"]["run",]["status"], tables["run"]["run",]["error"])
    assert {digest(1): 1} == numbers(tables)
    assert [] == edges(tables)


def test_a_recorded_step_is_a_run_that_somebody_else_did():
    tables = fold(history([imported(1), imported(2), made(3, 1, 2, transform="my-merge", datasets=(digest(9),))]))
    run = tables["run"]["id-3",]

    assert ("recorded", "finished", "my-merge", None) == (run["mode"], run["status"], run["transform"], run["seed"])
    assert "record" == tables["version"][digest(3),]["origin"]
    assert [(digest(1), digest(3), "source"), (digest(2), digest(3), "source")] == edges(tables)
    assert digest(9) == tables["run_dataset"]["id-3", 0]["dataset"]


def test_a_ref_is_where_it_was_last_moved_to_and_remembers_every_move():
    tables = fold(history([imported(1), moved("prod", None, 1), moved("prod", 1, 1), moved("old", None, 1)]))

    assert {("prod",), ("old",)} == tables["ref"].keys()
    assert (digest(1), 3) == (tables["ref"]["prod",]["digest"], tables["ref"]["prod",]["seq"])
    assert [2, 3, 4] == [row["seq"] for row in tables["ref_move"].values()]


def test_a_deleted_ref_is_gone():
    tables = fold(history([imported(1), moved("prod", None, 1), moved("prod", 1, None, reason="delete")]))

    assert {} == tables["ref"]
    assert 2 == len(tables["ref_move"])


def test_a_dataset_is_kept_under_its_digest_and_a_name_means_the_last():
    def added(number: int, name: str) -> e.DatasetAdded:
        return e.DatasetAdded(
            digest=digest(number), name=name, rows=number, bytes=9, columns=("text",), format="csv", source="/a.csv"
        )

    tables = fold(history([added(1, "train"), added(2, "train"), added(1, ""), added(2, "test")]))

    assert [digest(1), digest(2)] == [row["digest"] for row in tables["dataset"].values()]
    assert {("train",): digest(2), ("test",): digest(2)} == {
        key: row["digest"] for key, row in tables["dataset_name"].items()
    }


def test_a_replay_has_no_verdict_until_it_is_finished():
    begun = e.ReplayStarted(replay="r", version=digest(1), from_base=True, tolerance=0.5, steps=(digest(1),))
    judged = e.StepJudged(version=digest(1), transform="prune", verdict="bytes")
    done = e.ReplayFinished(replay="r", version=digest(1), verdict="bytes", steps=(judged,), environment={"threads": 2})
    told = history([imported(1), begun, done])

    assert fold(told[:2])["replay"]["r",]["verdict"] is None
    assert "bytes" == fold(told)["replay"]["r",]["verdict"]
    assert [digest(1)] == [step["version"] for step in fold(told)["replay"]["r",]["steps"]]


@pytest.mark.parametrize(
    "event",
    [
        finished("nothing", 1),
        e.RunFailed(run="nothing", error=""),
        e.ReplayFinished(replay="nothing", version=digest(1), verdict="bytes", steps=(), environment={}),
    ],
)
def test_what_ends_without_having_started_cannot_be_folded(event: e.Event):
    with pytest.raises(UnreadableEvent, match="never started"):
        fold(history([event]))


def test_every_projection_has_a_table_and_every_table_a_projection():
    from mreg.registry.log.tables import TABLES

    assert KEYS.keys() | {"event"} == TABLES.keys()
    for table, key in KEYS.items():
        assert key == tuple(column.name for column in TABLES[table].__table__.primary_key)  # type: ignore[attr-defined]
