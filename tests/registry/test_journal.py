"""The journal: whatever happens to its bytes is seen, and what a killed writer left is settled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mreg.registry.log.journal import EMPTY, DamagedLog, Head, Journal
from mreg.registry.log.recorded import Recorded

from tests.histories import history, imported, moved

TOLD = history([imported(1), moved("prod", None, 1), imported(2, message="two"), moved("prod", 1, 2)])
SHORT = history([moved("a", None, 1), moved("a", 1, None)])
"""Small enough to try every byte of it."""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return write(tmp_path, TOLD)


def write(root: Path, told: list[Recorded]) -> Journal:
    journal = Journal(root)
    journal.create()
    head = EMPTY
    for recorded in told:
        head = journal.append(recorded, head)
    return journal


def read(journal: Journal) -> list[Recorded]:
    """What a writer and then a reader get to see."""
    journal.settle()
    return list(journal.read())


def is_damaged(journal: Journal) -> bool:
    try:
        read(journal)
    except DamagedLog:
        return True
    return False


def test_what_was_appended_is_read(journal: Journal):
    assert TOLD == read(journal)
    assert Head(4, TOLD[-1].hash, journal.path.stat().st_size) == journal.head()


def test_an_empty_journal_is_sound(tmp_path: Path):
    assert [] == read(write(tmp_path, []))


@pytest.mark.parametrize("which", ["path", "head_path"])
def test_every_flipped_bit_is_seen(tmp_path: Path, which: str):
    journal = write(tmp_path, SHORT)
    path: Path = getattr(journal, which)
    sound = path.read_bytes()
    unseen = []
    for place in range(len(sound)):
        for bit in (0, 5):
            path.write_bytes(_flipped(sound, place, bit))
            if not is_damaged(journal):
                unseen.append((place, bit))

    assert [] == unseen


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


@pytest.mark.parametrize("which", ["path", "head_path"])
def test_every_truncation_is_seen(tmp_path: Path, which: str):
    journal = write(tmp_path, SHORT)
    path: Path = getattr(journal, which)
    sound = path.read_bytes()
    unseen = []
    for length in range(len(sound)):
        path.write_bytes(sound[:length])
        if not is_damaged(journal):
            unseen.append(length)

    assert [] == unseen


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "two lines swapped": _swapped,
    "a line removed": lambda lines: [lines[0], *lines[2:]],
    "the last line removed": lambda lines: lines[:-1],
    "a line twice": lambda lines: [lines[0], lines[0], *lines[1:]],
    "the last line twice": lambda lines: [*lines, lines[-1]],
    "a line twice, in place of another of its length": lambda lines: [lines[0], lines[1], lines[2], lines[1]],
    "an earlier line after the end": lambda lines: [*lines, lines[0]],
    "rubbish between the lines": lambda lines: [lines[0], b"{}\n", *lines[1:]],
    "two lines of rubbish after the end": lambda lines: [*lines, b"one\n", b"two\n"],
    "nothing left": lambda lines: [],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_lines_that_were_moved_about_are_seen(journal: Journal, damage: str):
    journal.path.write_bytes(b"".join(DAMAGE[damage](journal.lines())))

    assert is_damaged(journal)


def test_an_event_with_its_hash_made_to_fit_is_seen_by_the_next(journal: Journal):
    forged = history([imported(7), *[moved("x", None, 7)] * 3])
    lines = journal.lines()
    journal.path.write_bytes(forged[0].line() + b"".join(lines[1:]))

    assert is_damaged(journal)


def test_a_line_of_the_same_place_from_another_history_is_seen(journal: Journal):
    other = history([imported(1), moved("prod", None, 1), imported(2, message="two"), moved("prod", 1, 1)])
    journal.path.write_bytes(b"".join([*journal.lines()[:-1], other[-1].line()]))

    assert is_damaged(journal)


@pytest.mark.parametrize("which", ["path", "head_path"])
def test_a_missing_file_is_named(journal: Journal, which: str):
    getattr(journal, which).unlink()

    with pytest.raises(DamagedLog, match=r"(the journal|HEAD) is missing"):
        read(journal)


def test_whole_lines_beyond_head_are_taken_in(journal: Journal):
    journal.head_path.write_bytes(Head(2, TOLD[1].hash, _size(2)).to_bytes())

    assert TOLD == read(journal)
    assert Head(4, TOLD[-1].hash, _size(4)) == journal.head()


def test_a_torn_line_beyond_head_is_dropped_wherever_it_was_torn(journal: Journal):
    last = TOLD[-1].line()
    for length in (*range(0, len(last), 29), len(last) - 1):
        journal.head_path.write_bytes(Head(3, TOLD[2].hash, _size(3)).to_bytes())
        journal.path.write_bytes(b"".join(r.line() for r in TOLD[:3]) + last[:length])

        assert TOLD[:3] == read(journal)
        assert _size(3) == journal.path.stat().st_size


def test_a_torn_line_whose_first_page_never_reached_the_disk_is_dropped(journal: Journal):
    last = TOLD[-1].line()
    journal.head_path.write_bytes(Head(3, TOLD[2].hash, _size(3)).to_bytes())
    journal.path.write_bytes(b"".join(r.line() for r in TOLD[:3]) + bytes(100) + last[100:])

    assert TOLD[:3] == read(journal)


def test_a_broken_line_that_others_follow_was_whole_once_and_is_damage(journal: Journal):
    journal.head_path.write_bytes(Head(1, TOLD[0].hash, _size(1)).to_bytes())
    lines = journal.lines()
    journal.path.write_bytes(b"".join([lines[0], b"x" + lines[1][1:], *lines[2:]]))

    with pytest.raises(DamagedLog, match="beyond HEAD, event 2 is not as it was written"):
        read(journal)


def _size(events: int) -> int:
    return sum(len(recorded.line()) for recorded in TOLD[:events])


def test_a_failed_append_leaves_journal_and_head_as_they_were(journal: Journal):
    before = journal.path.read_bytes(), journal.head_path.read_bytes()
    (journal.head_path.parent / ".HEAD.tmp").mkdir()
    more = history([*[imported(1)] * 4, imported(3)])[-1]

    with pytest.raises(IsADirectoryError):
        journal.append(more, journal.head())

    assert before == (journal.path.read_bytes(), journal.head_path.read_bytes())


def test_a_rewritten_journal_keeps_the_damaged_ones(journal: Journal):
    for damage in (b"first", b"second"):
        journal.path.write_bytes(damage)
        journal.rewrite(TOLD)

    kept = sorted(path.read_bytes() for path in journal.path.parent.glob("*.damaged*"))
    assert TOLD == read(journal)
    assert [b"first", b"second"] == kept
