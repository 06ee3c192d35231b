"""What in the store is needed: what an event names, what is in a version that is not evicted, and what those rest on.

It is read from the journal, which proves itself, and not from the database. Whoever takes objects away asks while
holding them alone; asking once before makes the second time quick, since what was read is remembered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mreg.registry import files
from mreg.registry.digests import Digest, is_digest
from mreg.registry.log import folds
from mreg.registry.log.journal import Journal
from mreg.registry.log.recorded import Recorded
from mreg.registry.store.listed import Listed, listed
from mreg.registry.store.objects import MissingObject

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


class Needs:
    """What is needed of a registry's store, and by what. Methods raise what is wrong with the log and with objects.

    What is damaged cannot say what it needs: then nothing can be known to be needless.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._store = registry.store
        self._history: list[Recorded] = []
        self._tables = folds.Tables()
        self._named: set[Digest] = set()
        self._listed: dict[Digest, Listed] = {}
        self._inputs: dict[Digest, tuple[tuple[int, ...], tuple[Digest, ...]]] = {}

    def refresh(self) -> None:
        """Take in the events that came since."""
        journal = Journal(self._registry.root)
        with self._registry.log.locked(), files.disk_errors():
            head = journal.settle()
            if head.seq == len(self._history):
                return
            self._history = list(journal.read())
        self._tables = folds.fold(self._history)
        self._named = {digest for recorded in self._history for digest in _digests(recorded.payload)}

    @property
    def tables(self) -> folds.Tables:
        """The fold of the events taken in."""
        return self._tables

    def needed(self, *, without: Digest | None = None) -> set[Digest]:
        """Every object that is needed, be it in the store or not; as if the version `without` were evicted."""
        evicted = {version for (version,) in self._tables["eviction"]} | ({without} if without else set())
        wanted = set(self._named)
        for row in self._tables["version"].values():
            wanted |= self.listed(row["manifest"]).others
            if row["digest"] not in evicted:
                wanted |= self.listed(row["manifest"]).weights
        return self.closure(wanted)

    def listed(self, manifest: Digest) -> Listed:
        """The objects of a version."""
        if manifest not in self._listed:
            self._listed[manifest] = listed(self._store, manifest)
        return self._listed[manifest]

    def closure(self, digests: Iterable[Digest]) -> set[Digest]:
        """These objects, and those that are needed to read them."""
        found: set[Digest] = set()
        left = list(digests)
        while left:
            digest = left.pop()
            if digest not in found:
                found.add(digest)
                left.extend(self.inputs(digest))
        return found

    def inputs(self, digest: Digest) -> tuple[Digest, ...]:
        """The objects that one is a residual of; none where it is not in the store. Raises DamagedObject."""
        try:
            status = os.lstat(self._store.path(digest))
        except FileNotFoundError:
            return ()
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        known = self._inputs.get(digest)
        if known is None or known[0] != identity:
            try:
                known = (identity, self._store.envelope(digest).inputs)
            except MissingObject:
                return ()
            self._inputs[digest] = known
        return known[1]


def _digests(value: Any) -> Iterator[Digest]:
    """Every digest anywhere in a payload: the names of objects, and of versions, which name none."""
    if isinstance(value, str):
        if is_digest(value):
            yield Digest(value)
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _digests(name)
            yield from _digests(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _digests(one)
