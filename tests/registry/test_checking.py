"""fsck: it names what is wrong, and mends nothing but what proves itself."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.log.database import Database
from mreg.registry.log.journal import DamagedLog, Head, Journal
from mreg.registry.log.mending import splice
from mreg.registry.log.recorded import Recorded, seal

from tests.histories import history, imported, moved
from tests.strategies import TINY_MODEL, write_folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a model, a dataset and a ref that moved, as a folder to copy."""
    folder = tmp_path_factory.mktemp("sound")
    registry = Registry.init(folder)
    registry.import_model(write_folder(folder / "model", TINY_MODEL), ref="prod")
    (folder / "rows.txt").write_text("one\ntwo\n")
    registry.add_dataset(folder / "rows.txt", name="train")
    registry.set_ref("old", "prod")
    return registry.root


@pytest.fixture
def registry(sound: Path, tmp_path: Path) -> Registry:
    shutil.copytree(sound, tmp_path / ".mreg")
    return Registry.open(tmp_path)


@pytest.fixture
def journal(registry: Registry) -> Journal:
    return Journal(registry.root)


def problems(registry: Registry) -> list[tuple[str, str]]:
    return [(problem.where, problem.what) for problem in registry.fsck().problems]


def test_a_sound_registry_has_no_problems(registry: Registry):
    findings = registry.fsck()

    assert ((), (), (), 5, 7) == (
        findings.problems,
        findings.notes,
        findings.repaired,
        findings.events,
        findings.objects,
    )


# The journal


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_byte_of_the_journal_is_named_and_mended_from_the_database(
    registry: Registry, journal: Journal, seed: int
):
    right = journal.path.read_bytes()
    place = random.Random(seed).randrange(len(right))
    seq = right[:place].count(b"\n") + 1
    journal.path.write_bytes(right[:place] + bytes([right[place] ^ 4]) + right[place + 1 :])

    ((where, what),) = problems(registry)
    assert "journal" == where
    assert f"what comes before event {seq} is sound" in what
    (repaired,) = registry.fsck(repair=True).repaired
    assert "5 events are proved" in repaired
    assert right == journal.path.read_bytes()
    assert [] == problems(registry)


def _no_head(journal: Journal) -> None:
    journal.head_path.unlink()


def _garbled_head(journal: Journal) -> None:
    journal.head_path.write_bytes(journal.head_path.read_bytes().replace(b'"seq":5', b'"seq":4'))


def _no_journal(journal: Journal) -> None:
    journal.path.unlink()


def _no_journal_folder(journal: Journal) -> None:
    shutil.rmtree(journal.path.parent)


def _empty_journal(journal: Journal) -> None:
    journal.path.write_bytes(b"")


def _no_last_line(journal: Journal) -> None:
    journal.path.write_bytes(b"".join(journal.lines()[:-1]))


def _half_a_last_line(journal: Journal) -> None:
    journal.path.write_bytes(journal.path.read_bytes()[:-100])


def _swapped_lines(journal: Journal) -> None:
    one, two, three, *rest = journal.lines()
    journal.path.write_bytes(b"".join([one, three, two, *rest]))


def _a_line_twice(journal: Journal) -> None:
    one, *rest = journal.lines()
    journal.path.write_bytes(b"".join([one, one, *rest]))


def _no_head_and_no_last_line(journal: Journal) -> None:
    _no_head(journal)
    _no_last_line(journal)


def _older_head(journal: Journal) -> None:
    """And the line after it damaged: HEAD alone would have the log end there."""
    events = journal.intact()
    lines = journal.lines()
    journal.head_path.write_bytes(Head(3, events[2].hash, sum(map(len, lines[:3]))).to_bytes())
    journal.path.write_bytes(b"".join([*lines[:3], b"x" + lines[3][1:]]))


MENDED = (
    _no_head,
    _garbled_head,
    _no_journal,
    _no_journal_folder,
    _empty_journal,
    _no_last_line,
    _half_a_last_line,
    _swapped_lines,
    _no_head_and_no_last_line,
    _older_head,
)


@pytest.mark.parametrize("damage", [*MENDED, _a_line_twice])
def test_damage_to_the_log_is_named(registry: Registry, journal: Journal, damage: Callable[[Journal], None]):
    damage(journal)

    assert ["journal"] == [where for where, _ in problems(registry)]


@pytest.mark.parametrize("damage", [*MENDED, _a_line_twice])
def test_a_damaged_log_is_mended_when_the_database_proves_it(
    registry: Registry, journal: Journal, damage: Callable[[Journal], None]
):
    right = journal.path.read_bytes(), journal.head_path.read_bytes()
    before = registry.events()
    damage(journal)

    assert registry.fsck(repair=True).ok
    assert right == (journal.path.read_bytes(), journal.head_path.read_bytes())
    assert before == registry.events()


def test_a_repair_of_a_sound_log_does_nothing(registry: Registry):
    assert () == registry.fsck(repair=True).repaired


@pytest.mark.parametrize("damage", [_no_head, _garbled_head, _empty_journal, _half_a_last_line])
def test_a_damaged_log_is_left_alone_when_there_is_no_other_copy(
    registry: Registry, journal: Journal, damage: Callable[[Journal], None]
):
    damage(journal)
    registry.log.path.unlink()
    before = journal.path.read_bytes()

    with pytest.raises(DamagedLog):
        registry.fsck(repair=True)
    assert before == journal.path.read_bytes()
    assert ["journal"] == [where for where, _ in problems(registry)]


def test_a_mended_log_is_put_together_from_both_copies(registry: Registry, journal: Journal):
    """The database lacks the last event, the journal one in the middle."""
    right = journal.path.read_bytes()
    Database(registry.log.path, wait=0).rebuild(journal.intact()[:4])
    journal.path.write_bytes(b"".join([b"x" + line[1:] if n == 1 else line for n, line in enumerate(journal.lines())]))

    assert registry.fsck(repair=True).ok
    assert right == journal.path.read_bytes()


def test_events_that_neither_copy_can_prove_are_not_forgotten(registry: Registry, journal: Journal):
    Database(registry.log.path, wait=0).rebuild(journal.intact()[:4])
    _half_a_last_line(journal)

    with pytest.raises(DamagedLog, match="no other copy reaches event 5"):
        registry.fsck(repair=True)


def test_a_lost_head_does_not_make_a_broken_last_line_forgotten(registry: Registry, journal: Journal):
    Database(registry.log.path, wait=0).rebuild(journal.intact()[:4])
    _half_a_last_line(journal)
    _no_head(journal)

    with pytest.raises(DamagedLog, match="nothing else proves where the log ends"):
        registry.fsck(repair=True)


def _another_history(journal: Journal) -> list[Recorded]:
    """The same first event and then another one, as somebody who rewrote the past would have it."""
    first = journal.intact()[0]
    (other,) = history([imported(1)])
    return [first, seal(Recorded(**{**other.body(), "seq": 2, "prev": first.hash, "hash": ""}))]


def test_a_history_that_the_database_contradicts_is_not_accepted(registry: Registry, journal: Journal):
    journal.rewrite(_another_history(journal))

    ((where, what),) = problems(registry)
    assert ("journal", "the journal lacks event 2, of which registry.duckdb has a copy") == (where, what)
    with pytest.raises(DamagedLog, match="two events 2"):
        registry.fsck(repair=True)
    with pytest.raises(DamagedLog, match="lacks event 2"):
        registry.rebuild()


def test_a_history_that_head_contradicts_is_not_accepted(registry: Registry, journal: Journal):
    other = _another_history(journal)
    journal.head_path.write_bytes(Head(2, other[1].hash, sum(len(r.line()) for r in other)).to_bytes())

    assert ["journal"] == [where for where, _ in problems(registry)]
    with pytest.raises(DamagedLog, match="no other copy reaches event 2"):
        registry.fsck(repair=True)


def test_a_whole_event_beyond_head_that_two_copies_agree_on_is_taken_in(registry: Registry, journal: Journal):
    events = journal.intact()
    journal.head_path.write_bytes(Head(4, events[3].hash, sum(map(len, journal.lines()[:4]))).to_bytes())

    assert [] == problems(registry)
    assert 5 == journal.head().seq


TOLD = history([imported(1), moved("a", None, 1), imported(2), moved("a", 1, 2), moved("b", None, 1)])


@given(st.permutations(TOLD * 2), st.sets(st.integers(0, 9), max_size=4))
def test_a_splice_is_the_whole_history_or_a_refusal(copies: list[Recorded], lost: set[int]):
    left = [recorded for place, recorded in enumerate(copies) if place not in lost]
    there = {recorded.seq for recorded in left}
    try:
        chain = splice(left)
    except DamagedLog:
        assert there != set(range(1, len(there) + 1)), "only a gap is refused"
    else:
        assert TOLD[: len(there)] == chain


# Objects


def test_a_changed_byte_of_an_object_is_named(registry: Registry):
    chosen = random.Random(0)
    for digest in registry.store.names():
        path = registry.store.path(digest)
        right = path.read_bytes()
        place = chosen.randrange(len(right))
        path.chmod(0o644)
        path.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])

        assert f"object {digest}" in [where for where, _ in problems(registry)]
        path.write_bytes(right)
    assert [] == problems(registry)


def test_a_missing_object_is_named_with_what_needs_it(registry: Registry):
    (version,) = registry.versions()
    tensor = next(iter(registry.manifest(version).tensors())).digest
    (dataset,) = registry.datasets()
    for digest in (tensor, dataset.digest):
        registry.store.path(digest).unlink()

    assert [
        ("v1", f"its object {tensor} is missing"),
        (f"dataset {dataset.digest[:12]}", "its rows are missing"),
    ] == problems(registry)
    registry.store.path(version.manifest).unlink()
    assert ("v1", f"its manifest {version.manifest} is missing") in problems(registry)


def test_a_file_that_is_no_object_is_named(registry: Registry):
    (registry.store.root / "ab").mkdir(exist_ok=True)
    (registry.store.root / "ab" / "notes.txt").write_text("hello")

    assert [("objects/ab/notes.txt", "it is not an object")] == problems(registry)


def test_an_event_of_a_newer_mreg_is_named(registry: Registry, journal: Journal):
    head = journal.head()
    newer = Recorded(head.seq + 1, "id", "painted/1", "2030", "ann", {}, head.hash, "")
    journal.append(seal(newer), head)

    assert [("journal", "event 6 is of the unknown kind 'painted/1'")] == problems(registry)
