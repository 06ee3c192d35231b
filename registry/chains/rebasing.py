"""Rebase: a new chain from an old one. What a change does not touch is kept, what the log knows is reused, the rest is
run again; the old chain stays as it is.

All that can be known to fail is found in the plan, before any work starts: an adapter that a later step needs, a step
that nothing here can run, and whatever the transforms themselves refuse. An input that is not made yet is judged by
what stands in for it: where a step once left names, shapes and config as they were, it will again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.chains.recipe import Step
from mreg.registry.chains.rewriting import Changes, Key, NewStep, Place, rewrite, settle
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.models import datasets
from mreg.registry.runs import applying, steps
from mreg.registry.runs.steps import Request
from mreg.registry.transform import Material, Progress, Transform
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

Action = Literal["keep", "reuse", "run", "insert", "drop"]


@dataclass(frozen=True)
class PlannedStep:
    """One line of the plan. `old` is the version of the old chain, `version` that of the new one where it is known.

    `checked` says whether the transform could be asked already if it would work.
    """

    key: Key
    action: Action
    transform: str
    old: Version | None
    version: Version | None
    params: Mapping[str, Any]
    inputs: tuple[str, ...]
    checked: bool
    wall_s: float | None


@dataclass(frozen=True)
class RebasePlan:
    """What a rebase would do: `lines` for people in the order of the chain, `todo` for the machine."""

    target: Version
    lines: tuple[PlannedStep, ...]
    todo: tuple[NewStep, ...]
    result: Place

    @property
    def estimated_s(self) -> float:
        """What the runs that must be done again took when they were recorded, in seconds."""
        return sum(line.wall_s or 0.0 for line in self.lines if line.action == "run")


@dataclass(frozen=True)
class Rebased:
    """How it came out: the new version, and what every step that was done gave."""

    version: Version
    plan: RebasePlan
    made: Mapping[Key, applying.Applied]


def plan(registry: Registry, target: Version, changes: Changes) -> RebasePlan:
    """What the changed chain needs. Raises Refused for a conflict, naming the steps, and what the transforms refuse."""
    recipe = registry.recipe(target)
    known = {step.version for step in recipe}
    versions = {version.digest: version for version in registry.versions()}
    for digest in changes.mentioned:
        if digest not in known:
            raise Refused(
                f"{versions[digest]} is not on the way to {target}",
                fix=f"`mreg lineage {target} --up` shows the steps that are",
            )
    for base in (one.version for one in recipe if not one.inputs):
        if base in changes.drop or base in changes.settings:
            raise Refused(f"{versions[base]} was imported, no step made it", fix="put another in its place with --onto")
    settings = {step.version: _settled(registry, step, changes, versions) for step in recipe}
    rewritten = rewrite(recipe, replace(changes, settings={one: told for one, told in settings.items() if told}))
    planner = _Planner(registry, versions, changes)
    todo, result, planned = list(rewritten.steps), rewritten.result, {}
    for place in range(len(todo)):
        step = todo[place]
        line = planned[step.key] = planner.step(step)
        if line.version is not None:
            todo = list(settle(todo, step.key, line.version.digest))
            result = Place(given=line.version.digest) if result.made == step.key else result
    return RebasePlan(
        target, tuple(_lines(recipe, rewritten.kept, rewritten.dropped, planned, versions)), tuple(todo), result
    )


def rebase(
    registry: Registry,
    target: Version,
    changes: Changes,
    *,
    ref: str | None,
    message: str,
    report: Callable[[str, Progress], None],
) -> Rebased:
    """Do what the plan says, and point `ref` at the result when one is given. Raises as `plan` and `apply` do."""
    planned = plan(registry, target, changes)
    todo, result = planned.todo, planned.result
    done: dict[Key, applying.Applied] = {}
    for place in range(len(todo)):
        step = todo[place]
        applied = applying.apply(
            registry,
            _request(registry, step),
            ref=None,
            fresh=False,
            message=message or f"rebase of {target}",
            report=partial(report, step.transform),
        )
        done[step.key] = applied
        todo = settle(todo, step.key, applied.version.digest)
        if result.made == step.key:
            result = Place(given=applied.version.digest)
    assert result.given is not None
    version = _version(registry, result.given)
    if ref is not None:
        from mreg.registry.references import set_ref

        set_ref(registry, ref, version, message=message or f"rebase of {target}")
    return Rebased(version, planned, done)


def _settled(
    registry: Registry, step: Step, changes: Changes, versions: Mapping[Digest, Version]
) -> Mapping[str, Any] | None:
    """The params of a step that is changed, complete. Raises what is wrong with the new ones.

    The log has them with all defaults, some of which hang on others, such as the method. What is as it would be if it
    had not been given is therefore left to the defaults again; so is what is set to null.
    """
    told = changes.settings.get(step.version)
    if not told or step.mode != "apply":
        return told
    transform = registry.engine.find(step.transform)
    try:
        given = {**steps.said(transform, step.params), **told}
        params = steps.validate(transform, {name: value for name, value in given.items() if value is not None})
    except MregError as error:
        error.message = f"{versions[step.version]} would not work: {error.message}"
        error.fix = f"{error.fix}; null leaves an option to its default, as in --set {versions[step.version]}:NAME=null"
        raise
    return dict(params.model_dump(mode="json"))


class _Planner:
    """Steps looked at one after another; remembers what each output will be like."""

    def __init__(self, registry: Registry, versions: Mapping[Digest, Version], changes: Changes) -> None:
        self.registry = registry
        self.versions = versions
        self.changes = changes
        self.likeness: dict[Key, Material | None] = {}

    def step(self, step: NewStep) -> PlannedStep:
        """What doing it would mean. Raises what is wrong with it."""
        old = None if step.old is None else self.versions[step.old.version]
        if step.old is not None and step.old.mode != "apply":
            raise Refused(
                f"{old} was made elsewhere, by {step.transform}, and nothing here can make it again on another input",
                fix=f"drop it too: --drop {old}",
            )
        transform = self.registry.engine.find(step.transform)
        answer = None
        checked = all(place.given is not None for _, place in step.inputs)
        try:
            if checked:
                planned = applying.plan(self.registry, _request(self.registry, step))
                answer = planned.answer
            else:
                self._takes(transform, step)
                checked = self._check(transform, step)
        except MregError as error:
            error.message = f"{self._name(step)} would not work: {error.message}"
            raise
        self.likeness[step.key] = self._like(step)
        return PlannedStep(
            key=step.key,
            action="reuse" if answer else "insert" if step.kind == "insert" else "run",
            transform=step.transform,
            old=old,
            version=answer,
            params=step.params,
            inputs=tuple(self._input(place) for _, place in step.inputs),
            checked=checked,
            wall_s=step.old.wall_s if step.old else None,
        )

    def _takes(self, transform: Transform[Any], step: NewStep) -> None:
        """Whether an adapter is where one is needed. Raises Refused."""
        given = {one.role: one for one in transform.inputs}
        for role, place in step.inputs:
            material = self._material(role, place)
            if role in given and given[role].takes == "adapter" and material is not None and not material.adapter:
                raise Refused(
                    f"it takes an adapter as {role}, and would get {self._input(place)}, a whole model",
                    fix=f"drop {self._name(step)} too",
                )

    def _check(self, transform: Transform[Any], step: NewStep) -> bool:
        """Ask the transform, if what its inputs will be like is known; return whether it is."""
        params = steps.validate(transform, step.params)
        materials = [self._material(role, place) for role, place in step.inputs]
        told = tuple(material for material in materials if material is not None)
        if len(told) < len(materials):
            return False
        if transform.check is not None:
            data = [datasets.find(self.registry, digest) for digest in (step.old.datasets if step.old else ())]
            transform.check(params, told, steps.rows_of(self.registry, data))
        return True

    def _like(self, step: NewStep) -> Material | None:
        """What the output will be like; None when that cannot be told."""
        source = next((place for role, place in step.inputs if role == "source"), None)
        if step.old is None or source is None or self.changes.settings.get(step.old.version):
            return None
        before = self._stored("source", dict(step.old.inputs)["source"])
        after = self._stored("source", step.old.version)
        now = self._material("source", source)
        if now is None:
            return None
        return after if _shape(now) == _shape(before) else _carried(now, before, after)

    def _material(self, role: str, place: Place) -> Material | None:
        if place.given is not None:
            return self._stored(role, place.given)
        assert place.made is not None
        material = self.likeness.get(place.made)
        return None if material is None else replace(material, role=role)

    def _stored(self, role: str, digest: Digest) -> Material:
        return steps.material(self.registry, role, self.versions[digest])

    def _input(self, place: Place) -> str:
        if place.given is not None:
            return self.versions[place.given].name
        assert place.made is not None
        digest, _, inserted = str(place.made).partition("+")
        name = self.versions[Digest(digest)].name
        return f"{name}+" if inserted else f"{name}'"

    def _name(self, step: NewStep) -> str:
        return f"the inserted {step.transform}" if step.old is None else str(self.versions[step.old.version])


def _lines(
    recipe: Sequence[Step],
    kept: Sequence[Digest],
    dropped: Sequence[Digest],
    planned: Mapping[Key, PlannedStep],
    versions: Mapping[Digest, Version],
) -> list[PlannedStep]:
    """Every step of both chains, in the order of the old one."""
    lines = []
    for step in recipe:
        old = versions[step.version]
        inputs = tuple(versions[digest].name for _, digest in step.inputs)
        if step.version in (*dropped, *kept):
            action: Action = "drop" if step.version in dropped else "keep"
            new = None if action == "drop" else old
            about = (step.transform, old, new, step.params, inputs)
            lines.append(PlannedStep(Key(step.version), action, *about, checked=True, wall_s=step.wall_s))
        lines += [line for key, line in planned.items() if key.partition("+")[0] == step.version]
    return lines


def _request(registry: Registry, step: NewStep) -> Request:
    """The step as something to apply; every input is there."""
    transform = registry.engine.find(step.transform)
    derived = {given.role for given in transform.inputs if given.derived}
    given = [(role, _version(registry, place.given)) for role, place in step.inputs if place.given is not None]
    source = next(version for role, version in given if role == "source")
    rest = list(given)
    rest.remove(("source", source))
    # What a param names may be another version in the new chain.
    at = dict(given)
    renamed = {one.named: at[one.role].digest for one in transform.inputs if one.named and one.role in at}
    old = step.old
    return Request(
        transform=step.transform,
        source=source,
        others=tuple(one for one in rest if one[0] not in derived),
        data=tuple(old.datasets) if old else (),
        params={**step.params, **renamed},
        seed=(old.seed if old else None) or 0,
        threads=old.threads if old else None,
        device=(old.device if old else None) or "auto",
        portable=old.portable if old else False,
        processes=old.processes if old else 1,
        launcher=old.environment.get("launcher") if old else None,
    )


def _version(registry: Registry, digest: Digest) -> Version:
    return registry.log.ask(lambda reader: queries.version(reader, digest))


def _carried(now: Material, before: Material, after: Material) -> Material | None:
    """What `now` becomes by a step that made `after` of `before`; None when it left other names or shapes."""
    shapes = [{name: shape for name, (_, shape) in one.tensors.items()} for one in (before, after)]
    if before.adapter != after.adapter or shapes[0] != shapes[1]:
        return None
    became = {(before.tensors[name][0], dtype) for name, (dtype, _) in after.tensors.items()}
    dtypes = dict(became)
    if len(dtypes) < len(became):
        return None
    changed = {key: value for key, value in after.config.items() if before.config.get(key) != value}
    kept = {key: value for key, value in now.config.items() if key in after.config or key not in before.config}
    tensors = {name: (dtypes.get(dtype, dtype), shape) for name, (dtype, shape) in now.tensors.items()}
    return replace(now, name=after.name, tensors=tensors, config={**kept, **changed})


def _shape(material: Material) -> tuple[Any, ...]:
    """What must be equal for two models to take the same steps: names, shapes and config, not the values."""
    return (material.adapter, dict(material.tensors), dict(material.config))
