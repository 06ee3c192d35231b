"""du: what versions take in the store, by how their objects are stored, and what they share.

Only names, sizes and envelopes are read. An object counts for the first version that has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.digests import Digest
from mreg.registry.log import queries
from mreg.registry.store.listed import Listed, listed
from mreg.registry.store.objects import QUARANTINE, MissingObject, ObjectStore

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from mreg.registry.versions import Version

ENCODINGS = ("raw", "solo", "delta", "recipe")
"""As it is, packed by itself, as what differs from another tensor, as what differs from a prediction of some."""


@dataclass(frozen=True, slots=True)
class Amount:
    """So many objects, and what they take on disk."""

    objects: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one version takes. `logical` are the bytes of its files.

    `own` are the objects that no version before it has, `shared` those that one has, `shared_with` in how many objects
    it meets each other version. `encodings` has all of them by how they are stored. `evicted` says since when its
    weights are gone.
    """

    version: Version
    logical: int
    own: Amount
    shared: Amount
    shared_with: tuple[tuple[str, int], ...]
    encodings: Mapping[str, Amount]
    evicted: str | None


@dataclass(frozen=True, slots=True)
class Costs:
    """What versions take, and all of the store: every object, and those that wait in quarantine.

    `logical` are the bytes of the files of every version that is not evicted.
    """

    versions: tuple[Cost, ...]
    store: Amount
    quarantined: Amount
    logical: int

    @property
    def ratio(self) -> float | None:
        """The bytes on disk for each byte of a version's files; None where there is no version."""
        return self.store.bytes / self.logical if self.logical else None


def costs(registry: Registry, chosen: Iterable[Version] = ()) -> Costs:
    """What the `chosen` versions take, by default all. Raises MissingObject and DamagedObject for a manifest."""
    versions, evicted = registry.log.ask(lambda reader: (queries.versions(reader), queries.evicted(reader)))
    wanted = list(chosen) or versions
    store = registry.store
    sizes = _sizes(store)
    held = {version.digest: listed(store, version.manifest) for version in versions}
    first: dict[Digest, Digest] = {}
    for version in versions:
        for digest in (version.manifest, *held[version.digest].all):
            first.setdefault(digest, version.digest)
    ways: dict[Digest, str] = {}
    found = []
    for version in wanted:
        mine = [digest for digest in (version.manifest, *held[version.digest].all) if digest in sizes]
        own = [digest for digest in mine if first[digest] == version.digest]
        found.append(
            Cost(
                version=version,
                logical=version.bytes,
                own=_amount(own, sizes),
                shared=_amount([digest for digest in mine if first[digest] != version.digest], sizes),
                shared_with=_shared_with(version, versions, held),
                encodings=_by_encoding(store, mine, sizes, ways),
                evicted=evicted.get(version.digest),
            )
        )
    waiting = [path for path in (store.root / QUARANTINE).glob("*/??/*") if path.is_file()]
    return Costs(
        versions=tuple(found),
        store=Amount(len(sizes), sum(sizes.values())),
        quarantined=Amount(len(waiting), sum(os.lstat(path).st_size for path in waiting)),
        logical=sum(version.bytes for version in versions if version.digest not in evicted),
    )


def _sizes(store: ObjectStore) -> dict[Digest, int]:
    sizes = {}
    for digest in store.names():
        # Somebody may take away what nothing needs meanwhile.
        try:
            sizes[digest] = store.disk_size(digest)
        except MissingObject:
            continue
    return sizes


def _amount(digests: Sequence[Digest], sizes: Mapping[Digest, int]) -> Amount:
    return Amount(len(digests), sum(sizes[digest] for digest in digests))


def _shared_with(
    version: Version, versions: Sequence[Version], held: Mapping[Digest, Listed]
) -> tuple[tuple[str, int], ...]:
    mine = held[version.digest].weights
    met = [(other.name, len(mine & held[other.digest].weights)) for other in versions if other.digest != version.digest]
    return tuple((name, count) for name, count in met if count)


def _by_encoding(
    store: ObjectStore, digests: Iterable[Digest], sizes: Mapping[Digest, int], known: dict[Digest, str]
) -> dict[str, Amount]:
    by: dict[str, list[Digest]] = {name: [] for name in ENCODINGS}
    for digest in digests:
        if digest not in known:
            envelope = store.envelope(digest)
            is_recipe = envelope.prediction is not None and envelope.prediction.operation != "same"
            known[digest] = "recipe" if is_recipe else "delta" if envelope.prediction is not None else envelope.encoding
        by[known[digest]].append(digest)
    return {name: _amount(found, sizes) for name, found in by.items() if found}
