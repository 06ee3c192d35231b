"""Database files attached to the one DuckDB of a process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.log import attached
from mreg.registry.log.attached import Attached, is_busy
from mreg.registry.log.reading import bound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one row, in a folder whose name SQL must quote."""
    folder = tmp_path / "it's; here"
    folder.mkdir()
    with closing(Attached(folder / "a.duckdb", read_only=False)) as opened:
        opened.connection.execute("CREATE TABLE numbers AS SELECT 7 AS number")
    return folder / "a.duckdb"


def rows(opened: Attached) -> list[tuple[int, ...]]:
    return opened.connection.execute("SELECT number FROM numbers ORDER BY number").fetchall()


def writable_elsewhere(path: Path) -> bool:
    """Whether another process can open the file for writing."""
    program = "import duckdb, sys; duckdb.connect(sys.argv[1]).close()"
    return subprocess.run([sys.executable, "-c", program, str(path)], check=False, capture_output=True).returncode == 0


def test_what_was_not_committed_is_undone(path: Path) -> None:
    with closing(Attached(path, read_only=False)) as opened:
        opened.connection.begin()
        opened.connection.execute("INSERT INTO numbers VALUES (8)")

    with closing(Attached(path, read_only=True)) as opened:
        assert [(7,)] == rows(opened)


def test_readers_share_a_file_and_keep_it_until_the_last_has_left(path: Path) -> None:
    first, second = Attached(path, read_only=True), Attached(path, read_only=True)
    first.close()
    first.close()

    assert [(7,)] == rows(second)
    assert not writable_elsewhere(path)
    second.close()
    assert writable_elsewhere(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_writer_is_alone_in_its_process_too(path: Path, read_only: bool) -> None:
    with closing(Attached(path, read_only=not read_only)), pytest.raises(duckdb.Error) as raised:
        Attached(path, read_only=read_only)

    assert is_busy(raised.value)
    with closing(Attached(path, read_only=read_only)) as opened:
        assert [(7,)] == rows(opened)


def test_a_connection_that_is_forgotten_lets_go_of_the_file(path: Path) -> None:
    forgotten = Attached(path, read_only=False)
    assert not writable_elsewhere(path)

    del forgotten
    gc.collect()

    assert writable_elsewhere(path)


def test_a_file_that_is_no_database_hurts_no_other(path: Path) -> None:
    (path.parent / "b.duckdb").write_bytes(os.urandom(20_000))

    with closing(Attached(path, read_only=True)) as opened:
        with pytest.raises(duckdb.Error):
            Attached(path.parent / "b.duckdb", read_only=True)

        assert [(7,)] == rows(opened)


def test_after_an_error_that_breaks_it_there_is_another_duckdb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Attached(path, read_only=True)):
        before = attached._current
        assert before is not None
        monkeypatch.setattr(before, "broken", True)

        with closing(Attached(path.parent / "b.duckdb", read_only=False)):
            assert attached._current is not before

    assert writable_elsewhere(path)


def test_a_forked_child_has_one_of_its_own(path: Path) -> None:
    with closing(Attached(path, read_only=True)) as opened:
        child = os.fork()
        if child == 0:
            # No assertion may get out of here: the child would go on with the tests.
            with closing(Attached(path, read_only=True)) as again:
                os._exit(0 if rows(again) == [(7,)] else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert [(7,)] == rows(opened)


def test_threads_ask_beside_each_other(path: Path) -> None:
    found: list[list[tuple[int, ...]]] = []

    def ask() -> None:
        for _ in range(20):
            with closing(Attached(path, read_only=True)) as opened:
                found.append(rows(opened))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [[(7,)]] * 80 == found


@given(st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")))
def test_a_bound_value_comes_back_as_it_was(value: float | str) -> None:
    with duckdb.connect() as connection:
        (back,) = connection.execute(bound("SELECT ?", [value])).fetchone() or ()

    assert (type(back), repr(back)) == (type(value), repr(value))
