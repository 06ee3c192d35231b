"""The log: appended to one at a time and in full, whatever comes in between."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from mreg.registry import Registry
from mreg.registry.canonical import NotCanonical
from mreg.registry.config import BadPlace
from mreg.registry.files import StorageFailed
from mreg.registry.log import log, queries
from mreg.registry.log.database import Database
from mreg.registry.log.events import Event, UnreadableEvent
from mreg.registry.log.journal import Journal
from mreg.registry.log.log import IdTaken, LogMoved
from mreg.registry.log.reading import Busy, Reader

from tests.histories import digest, finished, imported, made, moved, started


def seqs(registry: Registry) -> list[int]:
    return [event["seq"] for event in registry.events()]


def test_an_event_is_in_the_journal_and_in_the_projections(registry: Registry):
    recorded = registry.log.append(imported(1))

    assert recorded == list(Journal(registry.root).read())[-1]
    assert [digest(1)] == [version.digest for version in registry.versions()]
    assert recorded.hash == registry.events()[-1]["hash"]


def test_a_writer_that_looked_too_long_ago_is_told_so(registry: Registry):
    registry.log.append(imported(1), expected=1)

    with pytest.raises(LogMoved, match="from event 1 to event 2"):
        registry.log.append(moved("prod", None, 1), expected=1)
    assert [1, 2] == seqs(registry)


def test_the_same_id_with_the_same_event_is_acknowledged_again(registry: Registry):
    event = imported(1, origin={"flops": 1e20, "share": 1.0})
    first = registry.log.append(event, id="mine")
    again = registry.log.append(event, id="mine", expected=0)

    assert first == again
    assert [1, 2] == seqs(registry)


@pytest.mark.parametrize("other", [imported(2), imported(1, message="other words"), moved("prod", None, None)])
def test_the_same_id_with_another_event_is_refused(registry: Registry, other: Event):
    registry.log.append(imported(1), id="mine")

    with pytest.raises(IdTaken, match="taken by event 2"):
        registry.log.append(other, id="mine")
    assert [1, 2] == seqs(registry)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (finished("never started", 1), UnreadableEvent),
        (imported(1, origin={"loss": float("nan")}), NotCanonical),
    ],
)
def test_an_event_that_cannot_be_folded_or_written_never_reaches_the_journal(
    registry: Registry, event: Event, error: type[Exception]
):
    with pytest.raises(error):
        registry.log.append(event)

    assert [1] == seqs(registry)
    assert registry.fsck().ok


def test_a_decision_is_made_on_what_nobody_can_change_meanwhile(registry: Registry):
    registry.log.append(imported(1))

    def decision(reader: Reader) -> Event:
        return moved("prod", None, len(queries.versions(reader)))

    recorded = registry.log.decide(decision)

    assert recorded is not None
    assert digest(1) == registry.refs()["prod"].digest


def test_a_decision_for_nothing_records_nothing(registry: Registry):
    assert registry.log.decide(lambda reader: None) is None
    assert [1] == seqs(registry)


def test_a_run_and_its_end_can_be_folded_at_once(registry: Registry):
    """A database that is far behind is caught up in one transaction, in which rows change that are new in it."""
    registry.log.path.rename(registry.root / "older.duckdb")
    for event in (imported(1), started("run", 1), finished("run", 2), moved("a", None, 1), moved("a", 1, None)):
        registry.log.append(event)
    registry.log.append(moved("a", None, 2))
    registry.log.path.with_name("older.duckdb").replace(registry.log.path)

    assert {"a": digest(2)} == {name: version.digest for name, version in registry.refs().items()}
    assert [7] == [event["seq"] for event in registry.events(after=6)]


def test_a_writer_waits_for_the_lock_and_says_what_it_waits_for(registry: Registry):
    told: list[str] = []
    impatient = Registry.open(registry.root, wait=1.2, notify=told.append)
    with FileLock(registry.root / "lock"), pytest.raises(Busy, match=r"in use by another process for 1\.2 s"):
        impatient.log.append(imported(1))

    assert ["waiting for another process that is writing to this registry …"] == told
    assert [1] == seqs(registry)


def test_a_lock_that_is_let_go_in_time_is_taken(registry: Registry):
    lock = FileLock(registry.root / "lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    registry.log.append(imported(1))
    timer.join()

    assert [1, 2] == seqs(registry)


def test_reading_needs_no_lock(registry: Registry):
    with FileLock(registry.root / "lock"):
        assert [] == registry.versions()


def test_a_look_opens_the_database_once_and_sees_what_is_recorded_meanwhile(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    opened = []
    real = log.reading
    monkeypatch.setattr(log, "reading", lambda *args, **kwargs: (opened.append(1), real(*args, **kwargs))[1])

    with registry.log.looking():
        before = [len(registry.versions()) for _ in range(3)]
        with registry.log.looking():
            registry.log.append(imported(1))
        after = [len(registry.versions()) for _ in range(3)]

    assert ([0] * 3, [1] * 3) == (before, after)
    assert 2 == len(opened), "once before the append and once after it"
    assert 1 == len(registry.versions())


def test_a_look_lets_others_write_when_it_is_over_and_makes_them_wait_before(registry: Registry):
    other = Registry.open(registry.root.parent, wait=0)

    with registry.log.looking():
        registry.versions()
        with pytest.raises(Busy):
            in_a_process(registry.root.parent)
    in_a_process(registry.root.parent)

    assert [1, 2] == seqs(other)


def in_a_process(place: Path) -> None:
    """Append an event in a process of its own; raise Busy if it could not."""
    code = (
        "import sys; from mreg.registry import Registry; from tests.histories import imported; "
        "from mreg.registry.log.reading import Busy\n"
        "try: Registry.open(sys.argv[1], wait=0).log.append(imported(1))\n"
        "except Busy: sys.exit(8)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    if done.returncode == 8:
        raise Busy(place, 0)
    assert 0 == done.returncode


def test_a_look_heals_what_it_finds_stale(registry: Registry):
    registry.log.append(imported(1))
    Database(registry.log.path, wait=0).rebuild(list(Journal(registry.root).read())[:1])

    with registry.log.looking():
        assert [1] == [version.number for version in registry.versions()]


def test_what_is_asked_with_an_append_is_answered_as_of_it(registry: Registry):
    recorded, found = registry.log.append_and_ask(imported(1), queries.versions)

    assert (2, [digest(1)]) == (recorded.seq, [version.digest for version in found])


def test_threads_of_one_process_may_append_and_read_at_once(registry: Registry):
    counts: list[int] = []

    def write(first: int) -> None:
        for number in range(first, first + 3):
            registry.log.append(imported(number))

    def read() -> None:
        for _ in range(8):
            counts.append(len(registry.versions()))

    threads = [threading.Thread(target=write, args=[first]) for first in (1, 11)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(range(1, 8)) == seqs(registry)
    assert 16 == len(counts)
    assert registry.rebuild() == 7


def test_an_interruption_leaves_an_append_done_whole_or_not_at_all(registry: Registry):
    acknowledged = []
    told: list[str] = []
    registry.log.notify = told.append
    chosen = random.Random(1)
    # Shells have the commands that they run in the background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in range(1, 13):
        timer = threading.Timer(chosen.uniform(0, 0.1), os.kill, [os.getpid(), signal.SIGINT])
        try:
            timer.start()
            acknowledged.append(registry.log.append(imported(number)).id)
            timer.join()
        except KeyboardInterrupt:
            pass

    ids = [event["id"] for event in registry.events()]
    assert set(acknowledged) <= set(ids)
    assert [] == told, "the database was never behind"
    assert Journal(registry.root).head().size == Journal(registry.root).path.stat().st_size
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_full_disk_leaves_nothing_half_recorded(registry: Registry):
    # What a directory in its place does to HEAD, a full disk would: the write fails after the journal line.
    (registry.root / ".HEAD.tmp").mkdir()
    before = (registry.root / "log" / "journal.jsonl").read_bytes()

    with pytest.raises(StorageFailed):
        registry.log.append(imported(1))

    assert before == (registry.root / "log" / "journal.jsonl").read_bytes()
    assert [] == registry.versions()
    (registry.root / ".HEAD.tmp").rmdir()
    assert registry.fsck().ok


def test_a_registry_under_an_odd_path_works(tmp_path: Path):
    registry = Registry.init(tmp_path / "a b#c%20dé'\";--")
    registry.log.append(imported(1))
    registry.log.append(made(2, 1))

    assert 3 == registry.rebuild()
    assert (["number"], [(1,), (2,)]) == registry.sql("SELECT number FROM version ORDER BY 1")


def test_a_registry_is_not_made_where_duckdb_would_lose_its_way(tmp_path: Path):
    with pytest.raises(BadPlace, match="question mark"):
        Registry.init(tmp_path / "why?")

    assert [] == list(tmp_path.iterdir())
