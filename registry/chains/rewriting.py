"""Algebra on recipes: drop, change, insert or re-base steps, and see which of the rest that touches. Pure.

A rewritten step names its inputs by `Place`: a version that is there, or what another step of the new chain will make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NewType

from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest

Key = NewType("Key", str)
"""Names a step of the new chain: the digest of the version it once made, or that and a number for an inserted one."""


@dataclass(frozen=True)
class Place:
    """Where an input comes from: the stored version `given`, or the new output of the step `made`."""

    given: Digest | None = None
    made: Key | None = None


@dataclass(frozen=True)
class Insert:
    """A step to put in: one input, the source, and no data."""

    transform: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What to do to a recipe, by the digest of the version that a step made.

    `drop` takes steps out; `settings` overrules params; `onto` puts other versions in place of imported ones; `inserts`
    puts steps in after a version.
    """

    drop: frozenset[Digest] = frozenset()
    settings: Mapping[Digest, Mapping[str, Any]] = field(default_factory=dict)
    onto: Mapping[Digest, Digest] = field(default_factory=dict)
    inserts: Mapping[Digest, tuple[Insert, ...]] = field(default_factory=dict)

    @property
    def mentioned(self) -> list[Digest]:
        """Every version that something is to be done to."""
        return [*self.drop, *self.settings, *self.onto, *self.inserts]


@dataclass(frozen=True)
class NewStep:
    """A step of the new chain. `old` is the recorded step that it does again; an inserted one has none."""

    key: Key
    kind: Literal["redo", "insert"]
    transform: str
    params: Mapping[str, Any]
    inputs: tuple[tuple[str, Place], ...]
    old: Step | None


@dataclass(frozen=True)
class Rewritten:
    """The new chain: the steps to do, each after its inputs, and where its result comes from.

    `kept` are the versions of steps that nothing touches, `dropped` those that are taken out.
    """

    steps: tuple[NewStep, ...]
    result: Place
    kept: tuple[Digest, ...]
    dropped: tuple[Digest, ...]


def rewrite(recipe: Sequence[Step], changes: Changes) -> Rewritten:
    """The recipe with the changes made. `recipe` ends with its target, and has every step after its inputs.

    A dropped step is passed through: what took its output takes its source instead.
    """
    stands: dict[Digest, Place] = {}
    steps: list[NewStep] = []
    kept: list[Digest] = []
    dropped: list[Digest] = []
    for step in recipe:
        if not step.inputs:
            assert step.version not in {*changes.drop, *changes.settings}, "an import is no step"
            there = Place(given=changes.onto.get(step.version, step.version))
        elif step.version in changes.drop:
            dropped.append(step.version)
            there = stands[next((digest for role, digest in step.inputs if role == "source"), step.inputs[0][1])]
        else:
            inputs = tuple((role, stands[digest]) for role, digest in step.inputs)
            settings = changes.settings.get(step.version, {})
            if not settings and all(
                place.given == digest for (_, place), (_, digest) in zip(inputs, step.inputs, strict=True)
            ):
                kept.append(step.version)
                there = Place(given=step.version)
            else:
                key = Key(step.version)
                params = {**step.params, **settings}
                steps.append(NewStep(key, "redo", step.transform, params, inputs, step))
                there = Place(made=key)
        for number, insert in enumerate(changes.inserts.get(step.version, ())):
            key = Key(f"{step.version}+{number}")
            steps.append(NewStep(key, "insert", insert.transform, insert.params, (("source", there),), None))
            there = Place(made=key)
        stands[step.version] = there
    return _needed(Rewritten(tuple(steps), stands[recipe[-1].version], tuple(kept), tuple(dropped)))


def settle(steps: Sequence[NewStep], made: Key, version: Digest) -> tuple[NewStep, ...]:
    """The steps with `version` in the place of what the step `made` would make."""
    there = Place(given=version)
    return tuple(
        replace(step, inputs=tuple((role, there if place.made == made else place) for role, place in step.inputs))
        for step in steps
    )


def _needed(rewritten: Rewritten) -> Rewritten:
    """Without the steps that nothing on the way to the result asks for any more."""
    asked = {rewritten.result.made}
    steps = []
    for step in reversed(rewritten.steps):
        if step.key in asked:
            steps.append(step)
            asked |= {place.made for _, place in step.inputs}
    return replace(rewritten, steps=tuple(reversed(steps)))
