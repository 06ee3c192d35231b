"""Holding the objects: who relies on some and who takes some away never do so at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.log.reading import Busy
from mreg.registry.store.holding import alone, shared

HOLDER = """
import sys
from mreg.registry import Registry
from mreg.registry.store import holding

with getattr(holding, sys.argv[2])(Registry.open(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(registry: Registry, how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the objects so."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, registry.root, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        yield process
        if process.stdin is not None:
            process.stdin.close()


def opened(registry: Registry, wait: float, told: list[str] | None = None) -> Registry:
    return Registry.open(registry.root, wait=wait, notify=(told if told is not None else []).append)


def test_many_may_rely_on_objects_at_once(registry: Registry):
    with held_elsewhere(registry, "shared"), shared(opened(registry, wait=0)):
        pass


def test_nobody_takes_objects_away_while_somebody_relies_on_them(registry: Registry):
    with (
        held_elsewhere(registry, "shared"),
        pytest.raises(Busy, match=r"objects.lock was in use"),
        alone(opened(registry, wait=0)),
    ):
        pass


def test_nobody_relies_on_objects_while_somebody_takes_some_away(registry: Registry):
    with held_elsewhere(registry, "alone"), pytest.raises(Busy), shared(opened(registry, wait=0)):
        pass


def test_an_import_waits_for_who_takes_objects_away_and_says_so(registry: Registry, model: Path):
    told: list[str] = []
    with held_elsewhere(registry, "alone"), pytest.raises(Busy):
        opened(registry, wait=1.2, told=told).import_model(model)

    assert ["waiting for another process that is working on the objects of this registry …"] == told
    assert [] == registry.versions()


def test_a_process_that_is_killed_holds_nothing(registry: Registry):
    with held_elsewhere(registry, "alone") as process:
        process.kill()
        process.wait()

        with alone(opened(registry, wait=0)):
            pass


def test_who_waits_to_be_alone_is_not_passed_by_newcomers(registry: Registry):
    patient, newcomer = opened(registry, wait=60), opened(registry, wait=0)
    got = threading.Event()

    def wait() -> None:
        with alone(patient):
            got.set()

    with held_elsewhere(registry, "shared") as process:
        waiter = threading.Thread(target=wait)
        waiter.start()
        _until_refused(newcomer)
        assert not got.is_set()
        process.kill()
        process.wait()
        waiter.join(60)

    assert got.is_set()


def _until_refused(registry: Registry) -> None:
    """Ask for the objects over and over, until they are refused."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with shared(registry):
                pass
        except Busy:
            return
    pytest.fail("newcomers were let in all the time")


def test_holding_twice_is_holding_once(registry: Registry):
    with shared(registry):
        with shared(registry):
            pass
        with pytest.raises(Busy), alone(opened(registry, wait=0)):
            pass
    with alone(opened(registry, wait=0)):
        pass


def test_a_forked_child_does_not_keep_what_its_parent_holds(registry: Registry):
    until, go_on = os.pipe()
    began, begin = os.pipe()
    with shared(registry):
        child = os.fork()
        if child == 0:
            os.close(go_on)
            os.write(begin, b".")
            os.read(until, 1)
            os._exit(0)
        os.read(began, 1)

    with alone(opened(registry, wait=0)):
        pass
    for end in (go_on, until, began, begin):
        os.close(end)
    os.waitpid(child, 0)


def test_every_module_that_stores_objects_holds_them():
    folder = Path(__file__).parents[2] / "registry"
    storing = [path for path in folder.rglob("*.py") if "store.batch()" in path.read_text(encoding="utf-8")]

    assert len(storing) > 4
    assert [] == [path.name for path in storing if "mreg.registry.store.holding import" not in path.read_text("utf-8")]
