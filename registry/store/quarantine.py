"""Where objects that nothing needs wait to be deleted: `objects/quarantine/<when>/ab/cd…`, as they lay in the store.

A file only ever moves by a rename, so a process that is killed leaves it in one of the two places. Who is in here holds
the objects alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mreg.registry.digests import Digest, is_digest
from mreg.registry.files import disk_errors, sync_directory
from mreg.registry.store.objects import QUARANTINE, ObjectStore

_WHEN = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An object in quarantine since `since` (seconds since 1970)."""

    digest: Digest
    path: Path
    since: float
    bytes: int


class Quarantine:
    """The quarantine of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.root = store.root / QUARANTINE

    def put(self, digests: Iterable[Digest], now: float) -> None:
        """Move objects out of the store."""
        folder = self.root / datetime.fromtimestamp(now, UTC).strftime(_WHEN)
        touched: set[Path] = set()
        with disk_errors(self.root):
            for digest in digests:
                path = self._store.path(digest)
                place = folder / path.parent.name
                place.mkdir(parents=True, exist_ok=True)
                path.rename(place / path.name)
                touched |= {place, path.parent}
            # What is moved is not lost if the disk forgets it, so one sync at the end will do.
            for each in sorted(touched | ({folder, self.root} if touched else set())):
                sync_directory(each)

    def waiting(self) -> Iterator[Waiting]:
        """What is in quarantine, the latest first."""
        with disk_errors(self.root):
            for folder in sorted(self.root.glob("*"), reverse=True):
                since = _since(folder)
                for path in sorted(folder.glob("??/*")):
                    name = path.parent.name + path.name
                    if is_digest(name):
                        yield Waiting(Digest(name), path, since, os.lstat(path).st_size)

    def put_back(self, wanted: Iterable[Waiting]) -> int:
        """Move objects into the store again, unless it has them; return how many it had not."""
        count = 0
        touched: set[Path] = set()
        with disk_errors(self.root):
            for one in wanted:
                path = self._store.path(one.digest)
                if not os.path.lexists(path):
                    path.parent.mkdir(exist_ok=True)
                    one.path.rename(path)
                    touched.add(path.parent)
                    count += 1
            for each in sorted(touched | ({self._store.root} if touched else set())):
                sync_directory(each)
        return count

    def delete(self, unwanted: Iterable[Waiting]) -> None:
        """Delete objects for good."""
        with disk_errors(self.root):
            for one in unwanted:
                one.path.unlink(missing_ok=True)
            for folder in sorted(self.root.glob("*")):
                if not any(path.is_file() for path in folder.rglob("*")):
                    shutil.rmtree(folder, ignore_errors=True)


def _since(folder: Path) -> float:
    """When what is in a folder was put there; the time of the folder itself where its name does not say."""
    try:
        return datetime.strptime(folder.name, _WHEN).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return folder.stat().st_mtime
