"""What a replay is going to do: which steps, in what order, on what that is there, and what cannot be done and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mreg.registry.chains.recipe import Step, chain
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.models import datasets
from mreg.registry.models.datasets import Dataset
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry


@dataclass(frozen=True)
class ReplayPlan:
    """The steps to do again, each after its inputs; `given` are versions that are taken as they are.

    `missing` maps a step's version to why it cannot be done again, `names` a version to what it is called. `made` has
    the datasets that runs made besides, by version, and `makers` the version beside which a dataset is made again;
    `data` are all datasets that are read. `absent` are versions and datasets that are not whole in the store, with what
    is missing: steps on them are in `missing`, and where one was only to be compared with, that cannot be done.
    """

    target: Version
    from_base: bool
    steps: tuple[Step, ...]
    given: tuple[Version, ...]
    missing: dict[Digest, str]
    names: dict[Digest, str]
    made: Mapping[Digest, tuple[Digest, ...]] = field(default_factory=dict)
    makers: Mapping[Digest, Digest] = field(default_factory=dict)
    data: Mapping[Digest, Dataset] = field(default_factory=dict)
    absent: Mapping[Digest, str] = field(default_factory=dict)

    def comes_after(self, step: Step) -> tuple[Digest, ...]:
        """The steps, by version, whose output or data this one works on."""
        own = {one.version for one in self.steps}
        before = [digest for _, digest in step.inputs] + [
            self.makers[digest] for digest in step.datasets if digest in self.makers
        ]
        return tuple(dict.fromkeys(digest for digest in before if digest in own))

    @property
    def blocked(self) -> dict[Digest, str]:
        """Why each step will not be done: what is in `missing`, and what comes after that."""
        found: dict[Digest, str] = {}
        for step in self.steps:
            behind = next((digest for digest in self.comes_after(step) if digest in found), None)
            if step.version in self.missing:
                found[step.version] = self.missing[step.version]
            elif behind is not None:
                found[step.version] = f"comes after {self.names[behind]}"
        return found

    @property
    def estimated_s(self) -> float:
        """What the recorded runs took together, in seconds."""
        return self.estimate(1)

    def estimate(self, jobs: int) -> float:
        """How long it takes when so many steps are done at once and each as long as it was recorded to, in seconds."""
        left = [step for step in self.steps if step.version not in self.blocked]
        ends: dict[Digest, float] = {}
        now = 0.0
        while left:
            busy = sum(end > now for end in ends.values())
            ready = [s for s in left if all(ends.get(b, now + 1) <= now for b in self.comes_after(s))]
            for step in ready[: max(0, jobs - busy)]:
                ends[step.version] = now + (step.wall_s or 0.0)
                left.remove(step)
            now = min((end for end in ends.values() if end > now), default=now)
        return max(ends.values(), default=0.0)


def plan(registry: Registry, target: Version, *, from_base: bool) -> ReplayPlan:
    """Which steps a replay of `target` does: all of them from the imported bases, or only the last one.

    Without `from_base` it starts from the nearest versions and datasets that are whole in the store. Raises Refused for
    an import.
    """
    if target.run is None:
        raise Refused(f"{target} was imported, no step led to it", fix="replay a version that was made from it")
    recipe, makers, made, known = registry.log.ask(lambda reader: _read(reader, target))
    by_version = {step.version: step for step in recipe}
    versions = {version.digest: version for version in registry.versions()}
    seen: dict[Digest, str | None] = {}

    def lacks(digest: Digest) -> str | None:
        if digest not in seen:
            seen[digest] = absence(registry, versions[digest])
        return seen[digest]

    read = dict.fromkeys(digest for step in recipe for digest in step.datasets)
    remade = {one: makers[one] for one in read if one in makers and (from_base or not registry.store.has(one))}

    def to_make(step: Step) -> list[Digest]:
        return [remade[digest] for digest in step.datasets if digest in remade]

    def is_given(step: Step) -> bool:
        needed = from_base or step.version == target.digest or step.version in remade.values()
        return not needed and lacks(step.version) is None

    walked = chain(target.digest, by_version.__getitem__, stop=is_given, besides=to_make)
    steps = tuple(step for step in walked if step.inputs and not is_given(step))
    own = {step.version for step in steps}
    inputs = dict.fromkeys(digest for step in steps for _, digest in step.inputs)
    given = tuple(versions[digest] for digest in inputs if digest not in own)
    data = dict.fromkeys(digest for step in steps for digest in step.datasets)
    again = {one: remade[one] for one in data if one in remade and remade[one] in own}
    absent = {version.digest: why for version in given if (why := lacks(version.digest)) is not None}
    absent |= {one: "it is not in the store" for one in data if one not in again and not registry.store.has(one)}
    absent |= {digest: why for digest in own if (why := lacks(digest)) is not None}
    planned = ReplayPlan(
        target=target,
        from_base=from_base,
        steps=steps,
        given=given,
        missing={},
        names={digest: versions[digest].name for digest in {*inputs, *own}},
        made={digest: made[digest] for digest in own if digest in made},
        makers=again,
        data={dataset.digest: dataset for dataset in known if dataset.digest in data},
        absent=absent,
    )
    for step in steps:
        if (why := _why_not(registry, planned, step)) is not None:
            planned.missing[step.version] = why
    return planned


def _read(
    reader: Reader, target: Version
) -> tuple[list[Step], dict[Digest, Digest], dict[Digest, tuple[Digest, ...]], list[Dataset]]:
    makers = queries.makers(reader)

    def besides(step: Step) -> list[Digest]:
        return [makers[digest] for digest in step.datasets if digest in makers]

    recipe = chain(target.digest, lambda digest: queries.step(reader, digest), besides=besides)
    return recipe, makers, queries.made_besides(reader), datasets.known(reader)


def absence(registry: Registry, version: Version) -> str | None:
    """What the store lacks of a version; None when every object is there."""
    try:
        manifest = registry.manifest(version)
    except MregError as error:
        return error.message
    gone = sorted(digest for digest in manifest.objects() if not registry.store.has(digest))
    if not gone:
        return None
    more = f", nor are {len(gone) - 1} more" if len(gone) > 1 else ""
    return f"object {gone[0][:12]} of {version} is not in the store{more}"


def _why_not(registry: Registry, planned: ReplayPlan, step: Step) -> str | None:
    """Why a step cannot be attempted; None when it can."""
    if step.mode == "recorded":
        return "made elsewhere: nothing here can run it"
    if step.mode == "work":
        return "made by code of somebody's own, while it ran: nothing here can run it"
    try:
        transform = registry.engine.find(step.transform)
        if transform.version == step.transform_version and transform.restore is not None:
            transform.restore(transform.params.model_validate(dict(step.params)), None)
    except (MregError, ValueError) as error:
        return str(error)
    if transform.version != step.transform_version:
        return f"{step.transform} is now version {transform.version}, it was {step.transform_version}"
    own = {one.version for one in planned.steps}
    for _, digest in step.inputs:
        if digest in planned.absent and digest not in own:
            return planned.absent[digest]
    for digest in step.datasets:
        if digest in planned.absent:
            return f"its dataset {planned.data[digest].name} is missing from the store"
    return None
