"""Revert: one step's effect taken out of a later version. By weights where that is exact, by another chain otherwise.

By weights nothing is run again: what the step changed must be in the later version as the step left it. Where a later
step changed it too, the chain is made again without the step, if it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mreg.registry.chains import rebasing, reversion
from mreg.registry.chains.graph import reach
from mreg.registry.chains.recipe import Step
from mreg.registry.chains.reversion import NotExact, Reversion
from mreg.registry.chains.rewriting import Changes
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.runs import applying
from mreg.registry.runs.steps import Request
from mreg.registry.transform import Progress
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.chains.rebasing import Rebased, RebasePlan
    from mreg.registry.measures.judging import GuardFailed
    from mreg.registry.registry import Registry

Way = Literal["weights", "rebase"]

TRANSFORM = "revert"
"""The transform that puts back what a step changed."""


@dataclass(frozen=True)
class RevertPlan:
    """How `version`'s step would be taken out of `target`, and why that way.

    `step` is the version that is taken back by weights: `version` itself, or for an adapter what it was fused into.
    `put_back` is what changes; `answer` is the version that the log knows to come out. `chain` is the plan of a rebase.
    """

    version: Version
    target: Version
    way: Way
    reason: str
    step: Version
    changes: Changes
    put_back: Reversion | None = None
    answer: Version | None = None
    chain: RebasePlan | None = None


@dataclass(frozen=True)
class Reverted:
    """What came out. By weights `applied` is the step that was done, by rebase `rebased` are the steps.

    `refused` says why the ref that was asked for did not move.
    """

    version: Version
    plan: RevertPlan
    applied: applying.Applied | None = None
    rebased: Rebased | None = None
    refused: GuardFailed | None = None


def plan(registry: Registry, version: Version, target: Version, *, way: Way | None) -> RevertPlan:
    """How it would be done; `way` forbids the other. Raises Refused with the reasons where it cannot be."""
    recipe = registry.recipe(target)
    step = next((one for one in recipe if one.version == version.digest), None)
    if step is None:
        raise Refused(
            f"{version} is not on the way to {target}", fix=f"`mreg lineage {target} --up` shows the steps that are"
        )
    if not step.inputs:
        raise Refused(f"{version} was imported, no step made it", fix="`mreg rebase --onto` puts another in its place")
    both = reversion.through(recipe, step)
    changes = Changes(drop=frozenset(one.version for one in both))
    done = registry.log.ask(lambda reader: queries.version(reader, both[-1].version))
    not_by_weights = ""
    if way != "rebase":
        try:
            put_back = _put_back(registry, recipe, both[-1], target)
        except NotExact as error:
            if way == "weights":
                error.message = f"{version} cannot be taken out of {target} by weights: {error.message}"
                raise
            not_by_weights = error.message
        else:
            planned = applying.plan(registry, _request(done, target))
            reason = f"{target} holds what {done} changed as {done} left it"
            return RevertPlan(version, target, "weights", reason, done, changes, put_back, planned.answer)
    try:
        chain = registry.rebase_plan(target, changes)
    except MregError as error:
        if not_by_weights:
            error.message = (
                f"{version} cannot be taken out of {target}: not by weights, since {not_by_weights}; "
                f"not by rebase, since {error.message}"
            )
        raise
    return RevertPlan(version, target, "rebase", not_by_weights or "as asked", done, changes, chain=chain)


def revert(
    registry: Registry,
    version: Version,
    target: Version,
    *,
    way: Way | None,
    ref: str | None,
    message: str,
    force: bool,
    report: Callable[[str, Progress], None],
) -> Reverted:
    """Do what the plan says, and point `ref` at what comes out. Raises as `plan` and `apply` do."""
    planned = plan(registry, version, target, way=way)
    said = message or f"revert of {version}"
    if planned.chain is None:
        applied = applying.apply(
            registry,
            _request(planned.step, target),
            ref=ref,
            fresh=False,
            message=said,
            report=lambda progress: report(TRANSFORM, progress),
            force=force,
        )
        return Reverted(applied.version, planned, applied=applied, refused=applied.refused)
    rebased = rebasing.rebase(registry, target, planned.changes, ref=None, message=said, report=report)
    if ref is not None:
        from mreg.registry.measures.judging import GuardFailed
        from mreg.registry.references import set_ref

        try:
            set_ref(registry, ref, rebased.version, message=said, force=force)
        except GuardFailed as refused:
            return Reverted(rebased.version, planned, rebased=rebased, refused=refused)
    return Reverted(rebased.version, planned, rebased=rebased)


def _request(version: Version, target: Version) -> Request:
    return Request(TRANSFORM, target, params={"version": version.digest})


def _put_back(registry: Registry, recipe: Sequence[Step], step: Step, target: Version) -> Reversion:
    """What would be put back by weights. Raises NotExact, naming the step that is in the way."""
    source = reversion.before_of(step)
    if source is None:
        raise NotExact(f"{step.transform} has no source")
    versions = {version.digest: version for version in registry.versions()}
    contents = {
        digest: reversion.content_of(registry.manifest(versions[digest]))
        for digest in (target.digest, step.version, source)
    }
    try:
        return reversion.revert(contents[target.digest], contents[step.version], contents[source])
    except NotExact as error:
        culprit = _changer(registry, recipe, step, error.name, versions)
        if culprit is not None:
            error.message = f"{error.name} was changed again by {versions[culprit.version]} ({culprit.transform})"
        raise


def _changer(
    registry: Registry, recipe: Sequence[Step], step: Step, name: str, versions: dict[Digest, Version]
) -> Step | None:
    """The first step on the way after `step` that has something else under `name`; None when none has."""
    parents = {one.version: [digest for _, digest in one.inputs] for one in recipe}
    left = reversion.content_of(registry.manifest(versions[step.version]))
    for one in recipe:
        if step.version in reach(one.version, lambda digest: parents.get(digest, ())):
            content = reversion.content_of(registry.manifest(versions[one.version]))
            held = (content.tensors.get(name), content.files.get(name))
            if held != (left.tensors.get(name), left.files.get(name)):
                return one
    return None
