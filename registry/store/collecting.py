"""gc: objects that nothing needs go into quarantine, and what was there long enough is deleted; so are old caches.

What is needed is settled, and what is not is taken away, while nobody else has any object in hand. So an object that an
import found in the store, and relies upon, is never taken from under it, however little time it is given.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.files import disk_errors
from mreg.registry.runs import checkpoints
from mreg.registry.store.holding import alone
from mreg.registry.store.needs import Needs
from mreg.registry.store.quarantine import Quarantine, Waiting

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

DAY = 86400.0
GRACE = DAY
"""Seconds for which an object that nothing needs stays where it is."""
KEPT = 7 * DAY
"""Seconds for which it then stays in quarantine."""
STALE = 30 * DAY
"""Seconds after which a cache that was not used, the log of a failed run or a checkpoint is old."""

CACHES = ("cache", "failed", checkpoints.FOLDER, "replays")
"""Folders of `.mreg` that hold nothing but what can be done without."""


@dataclass
class Tally:
    """So many objects or files, and what they take on disk."""

    objects: int = 0
    bytes: int = 0

    def add(self, count: int) -> None:
        """One more, of so many bytes."""
        self.objects += 1
        self.bytes += count


@dataclass
class Collected:
    """What a collection did, or would do.

    `swept` went into quarantine, by what kind of object it was; with `now` it was deleted at once. `deleted` had been
    in quarantine. `young` is needed by nothing and was left for its grace, `quarantined` is what is in there now.
    `back` came out again because it is needed. `caches` are old files beside the objects, by folder; `busy` says that
    they were left alone, since something runs.
    """

    swept: Mapping[str, Tally] = field(default_factory=lambda: {"tensor": Tally(), "file": Tally()})
    deleted: Tally = field(default_factory=Tally)
    young: Tally = field(default_factory=Tally)
    quarantined: Tally = field(default_factory=Tally)
    back: int = 0
    caches: Mapping[str, Tally] = field(default_factory=lambda: {name: Tally() for name in CACHES})
    temporary: int = 0
    busy: bool = False

    @property
    def objects(self) -> int:
        """The objects that nothing needed."""
        return sum(tally.objects for tally in self.swept.values())

    @property
    def bytes(self) -> int:
        """What they take, or took."""
        return sum(tally.bytes for tally in self.swept.values())


@dataclass(frozen=True, slots=True)
class _Needless:
    digest: Digest
    bytes: int
    since: float


def collect(
    registry: Registry,
    *,
    grace: float = GRACE,
    kept: float = KEPT,
    stale: float = STALE,
    now: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Take away what nothing needs. `now` is no grace and no quarantine. Raises Busy, and what is wrong with objects.

    Seconds each: objects that nothing needs stay for `grace` since they were written, then in quarantine for `kept`;
    caches go when they were not touched for `stale`.
    """
    if now:
        grace = kept = 0.0
    done = Collected()
    if not dry_run:
        done.temporary = _tidy(registry)
    needs = Needs(registry)
    # Read everything once while others may go on: under the lock, what is known already is not read again.
    needs.refresh()
    needs.needed()
    if dry_run:
        _collect(registry, needs, done, grace, kept, dry_run=True)
    else:
        with alone(registry):
            needs.refresh()
            _collect(registry, needs, done, grace, kept, dry_run=False)
    _sweep_caches(registry, done, stale, dry_run)
    return done


def _collect(registry: Registry, needs: Needs, done: Collected, grace: float, kept: float, *, dry_run: bool) -> None:
    store, quarantine, now = registry.store, Quarantine(registry.store), _seconds(registry.log.clock())
    needed = needs.needed()
    waiting = list(quarantine.waiting())
    back = [one for one in waiting if one.digest in needed and not store.has(one.digest)]
    due = [one for one in waiting if one.since <= now - kept]
    going = []
    for one in _needless(registry, needed):
        if one.since > now - grace:
            done.young.add(one.bytes)
        else:
            going.append(one)
            done.swept[_kind(registry, one.digest)].add(one.bytes)
    for gone in due:
        done.deleted.add(gone.bytes)
    done.back = len(back)
    left = [one for one in waiting if one not in due and one not in back]
    if not dry_run:
        quarantine.put_back(back)
        quarantine.put([one.digest for one in going], now)
        if kept <= 0:
            due += [one for one in quarantine.waiting() if one not in waiting]
        quarantine.delete(due)
        left = list(quarantine.waiting())
    for one_left in left:
        done.quarantined.add(one_left.bytes)


def put_back(registry: Registry, wanted: set[Digest] | None = None) -> Collected:
    """Put what is in quarantine into the store again: all of it, or the objects `wanted`."""
    done = Collected()
    with alone(registry):
        quarantine = Quarantine(registry.store)
        done.back = quarantine.put_back(_chosen(quarantine.waiting(), wanted))
        for one in quarantine.waiting():
            done.quarantined.add(one.bytes)
    return done


def _chosen(waiting: Iterable[Waiting], wanted: set[Digest] | None) -> list[Waiting]:
    return [one for one in waiting if wanted is None or one.digest in wanted]


def _needless(registry: Registry, needed: set[Digest]) -> Iterator[_Needless]:
    store = registry.store
    for digest in store.names():
        if digest not in needed:
            with disk_errors(store.path(digest)):
                status = os.lstat(store.path(digest))
            yield _Needless(digest, status.st_size, status.st_mtime)


def _kind(registry: Registry, digest: Digest) -> str:
    try:
        return registry.store.envelope(digest).kind
    except MregError:
        # Nobody needs it, so nobody minds that it is damaged.
        return "file"


def _tidy(registry: Registry) -> int:
    """Record runs that died, and remove what they and dead batches left; how many folders that were."""
    from mreg.registry.runs.applying import reap

    before = _temporary(registry.root)
    reap(registry)
    return before - _temporary(registry.root)


def _temporary(root: Path) -> int:
    return sum(path.is_dir() for folder in ("tmp", "objects/tmp") for path in (root / folder).glob("*"))


def _sweep_caches(registry: Registry, done: Collected, stale: float, dry_run: bool) -> None:
    """Remove files that nobody touched for so long, and the folders that are empty then; a checkpoint as a whole."""
    root = registry.root
    if any(_is_held(path) for folder in ("tmp", "replays") for path in (root / folder).glob("*.lock")):
        done.busy = True
        return
    before = _seconds(registry.log.clock()) - stale
    for name in CACHES:
        tally = done.caches[name]
        # What belongs together goes together: the checkpoint of a step, a replay that was stopped.
        for group in sorted((root / name).glob("*")):
            whole = name in (checkpoints.FOLDER, "replays") and group.is_dir()
            found = [path for path in (group.rglob("*") if group.is_dir() else [group]) if not path.is_dir()]
            times = {path: _touched(path) for path in found}
            if whole and any(time > before for time in times.values()):
                continue
            for path in (path for path, time in times.items() if time <= before):
                tally.add(os.lstat(path).st_size)
                if not dry_run:
                    with disk_errors(path):
                        path.unlink(missing_ok=True)
            if not dry_run and group.is_dir():
                _remove_empty(group)


def _is_held(path: Path) -> bool:
    """Whether a run or a replay works under this lock."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def _remove_empty(folder: Path) -> None:
    if not any(path.is_file() or path.is_symlink() for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)


def _touched(path: Path) -> float:
    """When a file was last written or read, as far as the file system keeps that."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0.0
    return max(status.st_mtime, status.st_atime)


def _seconds(at: str) -> float:
    """An event's time in seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()
