"""Many processes at one registry: nobody loses anything, and nobody who only reads is turned away."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry

from tests.histories import digest, imported
from tests.registry.conftest import make_model

# A fork has everything imported already; it opens the registry for itself, as any process would.
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    registry = Registry.init(tmp_path)
    for number in range(1, 4):
        registry.log.append(imported(number))
    return registry.root


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each work came to, all done at the same time in processes of their own."""
    ready = FORK.Barrier(len(works))
    answers: Any = FORK.Queue()

    def do(place: int, work: Callable[[], Any]) -> None:
        ready.wait()
        try:
            answers.put((place, work()))
        except BaseException as error:
            answers.put((place, repr(error)))
            raise

    processes = [FORK.Process(target=do, args=[place, work]) for place, work in enumerate(works)]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return [found[place] for place in range(len(works))]


def test_processes_that_append_at_once_lose_nothing_and_readers_are_not_refused(root: Path):
    def write(first: int) -> list[str]:
        log = Registry.open(root).log
        return [log.append(imported(number)).id for number in range(first, first + 3)]

    def read() -> list[int]:
        registry = Registry.open(root)
        return [len(registry.events()) for _ in range(12)]

    *written, seen = at_once([lambda: write(10), lambda: write(20), lambda: write(30), lambda: write(40), read])

    events = Registry.open(root).events()
    assert list(range(1, 17)) == [event["seq"] for event in events]
    assert {one for ids in written for one in ids} == {event["id"] for event in events[4:]}
    assert sorted(seen) == seen, "what was seen once is seen ever after"
    assert Registry.open(root).fsck().events == 16


def test_a_ref_that_eight_processes_move_at_once_has_one_history(root: Path):
    def move(rev: str) -> list[int | None]:
        registry = Registry.open(root)
        return [registry.set_ref("prod", rev).event, registry.set_ref("prod", "v3").event]

    moved = at_once([partial(move, rev) for rev in ("v1", "v2") * 4])

    moves = Registry.open(root).ref_log("prod")[::-1]
    assert moves[0]["old"] is None
    assert all(before["new"] == after["old"] for before, after in pairwise(moves))
    assert all(move["old"] != move["new"] for move in moves)
    assert [move["seq"] for move in moves] == sorted(event for events in moved for event in events if event)
    assert digest(3) == Registry.open(root).refs()["prod"].digest


def test_one_of_two_rollbacks_at_once_goes_further_back(root: Path):
    registry = Registry.open(root)
    for rev in ("v1", "v2", "v3"):
        registry.set_ref("prod", rev)

    back = at_once([lambda: str(Registry.open(root).rollback("prod").new)] * 2)

    assert ["v1", "v2"] == sorted(back)


def test_processes_that_find_the_database_lost_at_once_all_get_an_answer(root: Path):
    (root / "registry.duckdb").unlink()

    counts = at_once([lambda: len(Registry.open(root).versions()) for _ in range(4)])

    assert [3, 3, 3, 3] == counts


def test_models_imported_at_once_are_all_there(root: Path, model: Path):
    (model.parent / "other").mkdir()
    for path in model.iterdir():
        if path.is_file():
            (model.parent / "other" / path.name).write_bytes(path.read_bytes())

    def bring(folder: Path) -> str:
        return Registry.open(root).import_model(folder).version.name

    versions = at_once([partial(bring, folder) for folder in (model, model, model.parent / "other")])

    assert versions[0] == versions[1]
    assert {"v4", "v5"} == set(versions)
    assert ["v4", "v5"] == [version.name for version in Registry.open(root).versions()[3:]]


def test_two_processes_apply_at_once_while_a_third_reads(root: Path, tmp_path: Path):
    Registry.open(root).import_model(make_model(tmp_path / "real"))

    def apply(dtype: str) -> str:
        with Registry.open(root) as registry:
            return registry.apply("cast", "v4", dtype=dtype, threads=1, ref=dtype).version.name

    def read() -> int:
        registry = Registry.open(root)
        deadline = time.monotonic() + 60
        while len(registry.refs()) < 2 and time.monotonic() < deadline:
            registry.listing()
        return len(registry.versions())

    *made, seen = at_once([lambda: apply("float32"), lambda: apply("float16"), read])

    assert ["v5", "v6"] == sorted(made)
    assert 6 == seen
    runs = Registry.open(root).log.ask(lambda reader: reader.rows("SELECT status FROM run"))
    assert [{"status": "finished"}] * 2 == runs
