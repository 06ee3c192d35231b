"""The database: a cache that may be lost, cut short or bit-flipped without an answer ever being wrong."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.log.database import Database
from mreg.registry.log.folds import KEYS, fold
from mreg.registry.log.journal import EMPTY, DamagedLog, Head, Journal
from mreg.registry.log.reading import Reader, Stale
from mreg.registry.log.recorded import Recorded

from tests.histories import digest, histories, history, imported, made, moved

TOLD = [
    imported(1),
    moved("prod", None, 1, message="a question? and 'quotes'"),
    made(2, 1),
    made(3, 1, 2),
    moved("prod", 1, 3),
    moved("old", None, 2),
    moved("old", 2, None, reason="delete"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a few events, as a folder to copy."""
    registry = Registry.init(tmp_path_factory.mktemp("sound"))
    for event in TOLD:
        registry.log.append(event)
    return registry.root


@pytest.fixture
def registry(sound: Path, tmp_path: Path) -> Registry:
    return _copy(sound, tmp_path)


def _copy(root: Path, to: Path) -> Registry:
    """The same registry elsewhere."""
    shutil.copytree(root, to / ".mreg")
    return Registry.open(to)


def answers(registry: Registry) -> list[object]:
    """Every row of every table, and what a person would ask."""

    def rows(reader: Reader) -> list[object]:
        return [sorted(map(str, reader.rows(f"SELECT * FROM {table}"))) for table in ("event", *KEYS)]

    return [registry.log.ask(rows), registry.events(), registry.listing(), registry.refs(), registry.ref_log("prod")]


def is_clean(registry: Registry) -> bool:
    """Whether the log is sound; the made-up versions of these tests have no objects."""
    return not [problem for problem in registry.fsck().problems if problem.where in ("journal", "registry.duckdb")]


@given(histories(max_size=12), st.data())
@settings(max_examples=5)
def test_tables_grown_event_by_event_equal_those_rebuilt_and_the_fold(
    tmp_path_factory: pytest.TempPathFactory, told: list[Recorded], data: st.DataObject
):
    folder = tmp_path_factory.mktemp("databases")
    grown, rebuilt = (Database(folder / name, wait=0) for name in ("grown", "rebuilt"))
    grown.rebuild([])
    at = EMPTY
    while at.seq < len(told):
        chunk = told[at.seq : at.seq + data.draw(st.integers(2, 8))]
        grown.append(chunk, at)
        at = Head(chunk[-1].seq, chunk[-1].hash, 0)
    rebuilt.rebuild(told)

    assert (told, fold(told)) == grown.everything() == rebuilt.everything()


def test_text_and_numbers_of_every_kind_come_back(tmp_path: Path):
    odd = {"\0key": "\0 \u2028 \U0001f600 ' ? \x7f", "numbers": [1e20, 1e300, 5e-324, -0.0, 0.1, 2**53 - 1, 1e16]}
    told = history([imported(1, message="\0?'", origin=odd)])
    database = Database(tmp_path / "a b#c%20.duckdb", wait=0)
    database.rebuild([])
    database.append(told, EMPTY)
    grown = database.everything()
    database.rebuild(told)

    assert (told, fold(told)) == grown == database.everything()


def test_events_are_only_added_where_the_database_ends(tmp_path: Path):
    told = history([imported(1), imported(2), imported(3)])
    database = Database(tmp_path / "registry.duckdb", wait=0)
    database.rebuild(told[:1])

    with pytest.raises(Stale):
        database.append(told[2:], Head(2, told[1].hash, 0))
    assert told[:1] == database.events()


def test_what_is_not_committed_is_undone(tmp_path: Path):
    told = history([imported(1), imported(2)])
    database = Database(tmp_path / "registry.duckdb", wait=0)
    database.rebuild(told[:1])
    with database.writing(Head(1, told[0].hash, 0)) as writing:
        writing.add(told[1])

    assert (told[:1], fold(told[:1])) == database.everything()


def _deleted(path: Path) -> None:
    path.unlink()


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(50_000))


def _of_another_program(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(4080))


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return cut


def _of_another_schema(path: Path) -> None:
    _change(path, "UPDATE mreg_schema SET version = version + 1")


def _without_a_table(path: Path) -> None:
    _change(path, "DROP TABLE ref")


def _behind(path: Path) -> None:
    told = list(Journal(path.parent).read())
    Database(path, wait=0).rebuild(told[:3])


def _change(path: Path, sql: str) -> None:
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute(sql)


LOSSES = {
    "deleted": _deleted,
    "emptied": _emptied,
    "garbage": _garbage,
    "of another program": _of_another_program,
    "cut to a hundredth": _cut(0.01),
    "cut to a half": _cut(0.5),
    "of another schema": _of_another_schema,
    "without a table": _without_a_table,
    "behind": _behind,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_database_is_made_anew_and_the_user_is_told(registry: Registry, loss: str):
    before = answers(registry)
    told: list[str] = []
    registry.log.notify = told.append

    LOSSES[loss](registry.log.path)

    assert before == answers(registry)
    assert len(told) == 1
    assert "journal" in told[0]
    assert is_clean(registry)


@pytest.mark.parametrize("loss", ["deleted", "garbage", "of another schema", "without a table", "behind"])
def test_a_writer_finds_a_lost_database_too(registry: Registry, loss: str):
    LOSSES[loss](registry.log.path)

    registry.log.append(moved("new", None, 3))

    assert digest(3) == registry.refs()["new"].digest
    assert is_clean(registry)


def test_a_row_that_somebody_changed_is_named_and_repaired(registry: Registry):
    before = answers(registry)
    _change(registry.log.path, f"UPDATE ref SET digest = '{digest(1)}' WHERE name = 'prod'")

    problems = [problem.what for problem in registry.fsck().problems if problem.where == "registry.duckdb"]
    repaired = registry.fsck(repair=True).repaired

    assert ["ref (prod) is not what the events fold to; run `mreg rebuild`"] == problems
    assert ("registry.duckdb was rebuilt from the journal",) == repaired
    assert before == answers(registry)


def test_an_event_that_somebody_changed_is_named(registry: Registry):
    _change(registry.log.path, "UPDATE event SET actor = 'eve' WHERE seq = 3")

    problems = [problem.what for problem in registry.fsck().problems if problem.where == "registry.duckdb"]
    assert ["event 3 is not as the journal has it; `mreg rebuild` makes it anew"] == problems


def test_a_database_that_knows_more_than_the_journal_is_not_thrown_away(registry: Registry):
    journal = registry.root / "log" / "journal.jsonl"
    older = journal.read_bytes(), (registry.root / "HEAD").read_bytes()
    registry.log.append(moved("new", None, 3))
    before = answers(registry)
    journal.write_bytes(older[0])
    (registry.root / "HEAD").write_bytes(older[1])

    for ask in (registry.refs, registry.rebuild, lambda: registry.log.append(moved("newer", None, 3))):
        with pytest.raises(DamagedLog, match="lacks event 9"):
            ask()
    assert not is_clean(registry)
    assert "9 events are proved" in registry.fsck(repair=True).repaired[0]
    assert before == answers(registry)


@pytest.fixture(scope="module")
def left_by_a_killed_writer(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry whose database has its last transactions in a write-ahead log."""
    registry = _copy(sound, tmp_path_factory.mktemp("killed"))
    program = """
import os, sys
from pathlib import Path
from mreg.registry.log.database import Database
from mreg.registry.log.journal import Journal
from tests.histories import made
from mreg.registry.log.events import record

root = Path(sys.argv[1])
journal, database = Journal(root), Database(root / "registry.duckdb", wait=0)
head = journal.head()
for number in (4, 5, 6):
    place = dict(seq=head.seq + 1, id=f"id-{number}", at="2026", actor="ann", prev=head.hash)
    recorded = record(made(number, 3), **place)
    writing = database.writing(head)
    transaction = writing.__enter__()
    transaction.add(recorded)
    head = journal.append(recorded, head)
    transaction.commit()
    if number == 6:
        os.kill(os.getpid(), 9)
    writing.__exit__(None, None, None)
"""
    done = subprocess.run([sys.executable, "-c", program, registry.root], cwd=Path(__file__).parents[2], check=False)
    assert -9 == done.returncode
    assert registry.log.path.with_name("registry.duckdb.wal").stat().st_size > 0
    return registry.root


def test_what_a_killed_writer_left_in_the_write_ahead_log_is_read(left_by_a_killed_writer: Path, tmp_path: Path):
    registry = _copy(left_by_a_killed_writer, tmp_path)
    told: list[str] = []
    registry.log.notify = told.append

    assert [digest(number) for number in range(1, 7)] == [version.digest for version in registry.versions()]
    assert [] == told


@pytest.mark.parametrize("killed", [False, True])
def test_a_flipped_bit_never_gives_a_wrong_answer(
    sound: Path, left_by_a_killed_writer: Path, tmp_path: Path, is_thorough: bool, killed: bool
):
    root = left_by_a_killed_writer if killed else sound
    right = answers(_copy(root, tmp_path / "right"))
    wrong = []
    for seed in range(500 if is_thorough else 10):
        registry = _copy(root, tmp_path / str(seed))
        _flip_a_bit(registry.root, random.Random(seed))
        if answers(registry) != right:
            wrong.append(seed)
        shutil.rmtree(registry.root)

    assert [] == wrong


def _flip_a_bit(root: Path, chosen: random.Random) -> None:
    """In the database or, as often, in its write-ahead log; mostly where they are not empty."""
    path = chosen.choice([path for path in root.glob("registry.duckdb*") if path.stat().st_size])
    data = bytearray(path.read_bytes())
    full = [place for place, byte in enumerate(data) if byte]
    place = chosen.choice(full) if chosen.random() < 0.8 else chosen.randrange(len(data))
    data[place] ^= 1 << chosen.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("percent", [5, 40, 60, 80, 90, 97])
def test_a_cut_database_never_gives_a_wrong_answer(registry: Registry, percent: int):
    before = answers(registry)
    _cut(percent / 100)(registry.log.path)

    assert before == answers(registry)


@pytest.mark.parametrize("what", ["deleted", "emptied", "cut to a hundredth", "cut to a half", "garbage"])
def test_a_lost_write_ahead_log_never_gives_a_wrong_answer(left_by_a_killed_writer: Path, tmp_path: Path, what: str):
    registry = _copy(left_by_a_killed_writer, tmp_path)
    LOSSES[what](registry.log.path.with_name("registry.duckdb.wal"))

    assert [digest(number) for number in range(1, 7)] == [version.digest for version in registry.versions()]
    assert is_clean(registry)
