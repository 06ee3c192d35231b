"""Recall: a version, or all that a dataset went into, is not to be used any more, nor is what came of it.

The event names the one thing that was recalled. What came of it is worked out when it is asked for, so that a version
which is made later from it is recalled too. A recall can be lifted again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.registry import revs
from mreg.registry.chains import recalls
from mreg.registry.chains.recalls import Kind, Recall
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.models import datasets
from mreg.registry.revs import MalformedName, UnknownRev
from mreg.registry.transform import BadParams

if TYPE_CHECKING:
    from mreg.registry.log.events import RecallLifted, VersionRecalled
    from mreg.registry.log.reading import Reader
    from mreg.registry.models.datasets import Dataset
    from mreg.registry.registry import Registry
    from mreg.registry.versions import Version


@dataclass(frozen=True)
class Target:
    """What is recalled: a version or a dataset."""

    kind: Kind
    digest: Digest
    name: str

    def __str__(self) -> str:
        return self.name if self.kind == "version" else f"the dataset {self.name}"

    @property
    def fields(self) -> dict[str, Any]:
        """What an event says of it."""
        return {self.kind: self.digest}


@dataclass(frozen=True)
class Reached:
    """A version that a recall reaches. `through` is what it was made of, in the role; None for the recalled itself."""

    row: Mapping[str, Any]
    through: str | None
    role: str


@dataclass(frozen=True)
class Impact:
    """What a recall of `target` reaches, by number; `refs` are the names that point at one of these, and at which.

    `event` is what was recorded, None when nothing was.
    """

    target: Target
    versions: Sequence[Reached]
    refs: Mapping[str, str]
    event: int | None = None


def impact(reader: Reader, target: Target) -> Impact:
    """What a recall would reach, or reaches."""
    ways = recalls.spread([target.digest], recalls.all_ways(reader))
    rows = queries.nodes(reader, list(ways))
    names = {row["digest"]: f"v{row['number']}" for row in rows} | {target.digest: target.name}
    names |= {dataset.digest: dataset.name for dataset in datasets.known(reader)}
    found = []
    for row in rows:
        way = ways[row["digest"]]
        found.append(Reached(row, None if way is None else names[way.of], "" if way is None else way.role))
    pointing = {name: version.name for name, version in queries.refs(reader).items() if version.digest in ways}
    return Impact(target, found, pointing)


def recall(registry: Registry, what: str | Version, *, message: str, dry_run: bool = False) -> Impact:
    """Recall a version, or what a dataset went into. Again, nothing is recorded. Raises BadParams without a message."""
    from mreg.registry.log.events import VersionRecalled

    _said(message or "x" * dry_run, "why it is recalled")
    target = registry.log.ask(lambda reader: find(reader, what))

    def decision(reader: Reader) -> VersionRecalled | None:
        if _standing(reader, target) is not None:
            return None
        return VersionRecalled(**target.fields, message=message)

    recorded = None if dry_run else registry.log.decide(decision)
    found = registry.log.ask(lambda reader: impact(reader, target))
    return Impact(target, found.versions, found.refs, recorded.seq if recorded else None)


def lift(registry: Registry, what: str | Version, *, message: str, dry_run: bool = False) -> Impact:
    """Take a recall back. Raises Refused for what was not recalled itself."""
    from mreg.registry.log.events import RecallLifted

    _said(message or "x" * dry_run, "why it is lifted")
    target = registry.log.ask(lambda reader: find(reader, what))

    def decision(reader: Reader) -> RecallLifted:
        if _standing(reader, target) is None:
            others = recalls.of(reader, target.digest)
            fix = "`mreg recall` lists what is"
            if others:
                fix = f"it came of {others[0].name}, which is: mreg recall --undo {others[0].name}"
            raise Refused(f"{target} was not recalled itself", fix=fix)
        return RecallLifted(**target.fields, message=message)

    if dry_run:
        registry.log.ask(decision)
        return registry.log.ask(lambda reader: impact(reader, target))
    recorded = registry.log.decide(decision)
    assert recorded is not None
    found = registry.log.ask(lambda reader: impact(reader, target))
    return Impact(target, found.versions, found.refs, recorded.seq)


def listed(reader: Reader) -> list[tuple[Recall, Impact]]:
    """Every recall that stands, and what it reaches."""
    return [(one, impact(reader, Target(one.kind, one.digest, one.name))) for one in recalls.standing(reader)]


def find(reader: Reader, what: str | Version) -> Target:
    """The version or the dataset that is meant. Raises UnknownRev, and Refused where it may be either."""
    version: Version | None = None
    unknown: MregError | None = None
    try:
        version = queries.resolve(reader, what)
    except (UnknownRev, MalformedName) as error:
        unknown = error
    dataset = datasets.known_as(reader, str(what)) if isinstance(what, str) else None
    if version is not None and dataset is not None:
        raise Refused(
            f"{what!r} is the name of a version and of a dataset",
            fix=f"give {version.name}, or the dataset as {dataset.digest[:12]}",
        )
    if version is not None:
        return Target("version", version.digest, version.name)
    if dataset is not None:
        return Target("dataset", dataset.digest, dataset.name)
    assert unknown is not None
    if isinstance(unknown, MalformedName):
        raise unknown
    names = [*queries.Lookup(reader).names(), *(name for one in datasets.known(reader) for name in one.names)]
    fix = revs.suggest(str(what), names, "`mreg list` and `mreg data list` show them all")
    raise UnknownRev(f"no version and no dataset is called {what!r}", fix=fix) from unknown


def warn(
    registry: Registry,
    versions: Iterable[Version],
    used: Iterable[Dataset] = (),
    *,
    reached: Mapping[Digest, tuple[Recall, ...]] | None = None,
) -> None:
    """Tell whoever makes something of versions and datasets which of them are recalled; `reached` if that is known."""
    found = registry.log.ask(recalls.reached) if reached is None else reached
    names = {version.digest: version.name for version in versions}
    for digest, name in (names | {dataset.digest: f"the dataset {dataset.name}" for dataset in used}).items():
        if digest in found:
            registry.log.notify(f"warning: {recalls.told(name, digest, found[digest])}")


def _standing(reader: Reader, target: Target) -> Recall | None:
    return next((one for one in recalls.standing(reader) if one.digest == target.digest), None)


def _said(message: str, what: str) -> None:
    if not message.strip():
        raise BadParams(f"say {what}", fix="with -m TEXT; it is kept in the log")
