"""Holding the objects: what is about to be named by an event is not taken away meanwhile.

Whoever stores objects, or relies on some that are there, holds them `shared` from before the first until its event is
recorded. Whoever takes objects away or stores them in another way holds them `alone`, for moments. Both are flocks, so
they go with their process; a fork does not have them.

There are two files, so that nobody starves: who wants `objects.lock` alone takes `objects.turn` first and keeps it, and
others, who take the turn for an instant, then wait in front of it.
"""

from __future__ import annotations

import fcntl
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry.files import disk_errors
from mreg.registry.log.reading import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from mreg.registry.registry import Registry

LOCK = "objects.lock"
TURN = "objects.turn"

_PATIENCE = 1.0
"""Seconds before a person is told what is waited for."""
_PAUSE = 0.01
"""Seconds between two tries."""
_GAP = 3 * _PAUSE
"""Seconds in which who waits gets in before the same process is alone again."""


@dataclass
class _Held:
    """What this process holds shared of one registry, and how often."""

    fd: int
    count: int = 1


_held: dict[Path, _Held] = {}
_let_go: dict[Path, float] = {}
"""When this process was alone last."""
_guard = threading.Lock()
_open: set[int] = set()
"""The descriptors of all locks that this process holds."""


@contextmanager
def shared(registry: Registry, *, patiently: bool = False) -> Iterator[None]:
    """Nobody takes objects away or changes how they are stored while inside. May be nested.

    `patiently` waits for as long as it takes, for those who would lose hours of work. Raises Busy.
    """
    wait = math.inf if patiently else registry.log.wait
    with disk_errors(registry.root):
        _enter(registry.root, _Waiting(wait, registry.log.notify))
    try:
        yield
    finally:
        _leave(registry.root)


@contextmanager
def alone(registry: Registry) -> Iterator[None]:
    """Nobody stores objects or relies on any while inside. Not to be nested. Raises Busy.

    Who does this over and over lets in those who wait in between.
    """
    waiting = _Waiting(registry.log.wait, registry.log.notify)
    time.sleep(max(0.0, _let_go.get(registry.root, -math.inf) + _GAP - time.monotonic()))
    with disk_errors(registry.root):
        turn = _locked(registry.root / TURN, fcntl.LOCK_EX, waiting)
    try:
        with disk_errors(registry.root):
            fd = _locked(registry.root / LOCK, fcntl.LOCK_EX, waiting)
        try:
            yield
        finally:
            _unlock(fd)
    finally:
        _unlock(turn)
        _let_go[registry.root] = time.monotonic()


def _enter(root: Path, waiting: _Waiting) -> None:
    while True:
        with _guard:
            if (held := _held.get(root)) is not None:
                held.count += 1
                return
            fd = _try(root)
            if fd is not None:
                _held[root] = _Held(fd)
                return
        waiting.pause(root / LOCK)


def _try(root: Path) -> int | None:
    """Take the lock shared, if nobody has or awaits it alone."""
    turn = _opened(root / TURN)
    fd = _opened(root / LOCK)
    try:
        fcntl.flock(turn, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        _unlock(fd)
        return None
    except BaseException:
        _unlock(fd)
        raise
    finally:
        _unlock(turn)
    return fd


def _leave(root: Path) -> None:
    with _guard:
        # A fork in the middle of the block has forgotten it.
        if (held := _held.get(root)) is None:
            return
        held.count -= 1
        if held.count == 0:
            del _held[root]
            _unlock(held.fd)


def _locked(path: Path, how: int, waiting: _Waiting) -> int:
    fd = _opened(path)
    try:
        while True:
            try:
                fcntl.flock(fd, how | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                waiting.pause(path)
    except BaseException:
        _unlock(fd)
        raise


def _opened(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    _open.add(fd)
    return fd


def _unlock(fd: int) -> None:
    if fd in _open:
        _open.discard(fd)
        os.close(fd)


class _Waiting:
    """Patience that ends after `wait` seconds and says once what is waited for."""

    def __init__(self, wait: float, notify: Callable[[str], None]) -> None:
        self._wait = wait
        self._notify = notify
        self._began = time.monotonic()
        self._told = False

    def pause(self, path: Path) -> None:
        """Wait a little. Raises Busy."""
        waited = time.monotonic() - self._began
        if waited > self._wait:
            raise Busy(path, self._wait)
        if waited > _PATIENCE and not self._told:
            self._notify("waiting for another process that is working on the objects of this registry …")
            self._told = True
        time.sleep(_PAUSE)


def _forked() -> None:
    """Let go in a child of what its parent holds: a lock that two processes hold outlives the one that took it."""
    global _guard
    _guard = threading.Lock()
    _held.clear()
    for fd in list(_open):
        _unlock(fd)


os.register_at_fork(after_in_child=_forked)
