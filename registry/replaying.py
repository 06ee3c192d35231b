"""Replay: the work is done again, in fresh child processes, and every step is judged against what was recorded.

Each step works on what the replay itself made of its inputs, so that a replay from the base proves the whole chain.
What a replay makes is judged and thrown away: it never becomes a version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import queries
from mreg.registry.applying import BAD_MODEL, Interrupted, lay_out_job, reap
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.events import ReplayFinished, ReplayStarted, StepJudged
from mreg.registry.folder import look
from mreg.registry.importing import take_in
from mreg.registry.recipe import Step
from mreg.registry.steps import Ready, Request, prepare
from mreg.registry.transform import Progress
from mreg.registry.verdict import differences, judge, same, unattempted, weakest
from mreg.registry.versions import Version
from mreg.registry.weight_sources import FolderTensors, StoredTensors, compare

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

Heard = Callable[[Step, Progress | StepJudged], None]
"""Told of every step's progress and, at its end, of its judgement."""


@dataclass(frozen=True)
class ReplayPlan:
    """The steps to do again, each after its inputs; `given` are versions that are taken as they are.

    `missing` maps a step's version to why it cannot be done again.
    """

    target: Version
    from_base: bool
    steps: tuple[Step, ...]
    given: tuple[Version, ...]
    missing: dict[Digest, str]
    names: dict[Digest, str]

    @property
    def estimated_s(self) -> float:
        """What the recorded runs took together, in seconds."""
        return sum(step.wall_s or 0.0 for step in self.steps)


@dataclass(frozen=True)
class Replay:
    """How a replay came out."""

    plan: ReplayPlan
    verdict: str
    steps: tuple[StepJudged, ...]
    event: int


def plan(registry: Registry, target: Version, *, from_base: bool) -> ReplayPlan:
    """Which steps a replay of `target` does: all of them from the imported bases, or only the last one.

    A version whose content is in the store is the nearest one that is there. Raises Refused for an import.
    """
    recipe = registry.recipe(target)
    if len(recipe) == 1:
        raise Refused(f"{target} was imported, no step led to it", fix="replay a version that was made from it")
    if not from_base:
        recipe = [step for step in recipe if step.version == target.digest]
    steps = tuple(step for step in recipe if step.inputs)
    made = {step.version for step in steps}
    inputs = dict.fromkeys(digest for step in steps for _, digest in step.inputs)
    versions = {version.digest: version for version in registry.versions()}
    missing = {step.version: why for step in steps if (why := _why_not(registry, step)) is not None}
    return ReplayPlan(
        target=target,
        from_base=from_base,
        steps=steps,
        given=tuple(versions[digest] for digest in inputs if digest not in made),
        missing=missing,
        names={digest: versions[digest].name for digest in {*inputs, *made}},
    )


def _why_not(registry: Registry, step: Step) -> str | None:
    """Why a step cannot be attempted; None when it can."""
    if step.mode == "recorded":
        return "made elsewhere: nothing here can run it"
    if step.mode == "work":
        return "made by code of somebody's own, while it ran: nothing here can run it"
    try:
        transform = registry.engine.find(step.transform)
    except MregError as error:
        return str(error)
    if transform.version != step.transform_version:
        return f"{step.transform} is now version {transform.version}, it was {step.transform_version}"
    for digest in step.datasets:
        if not registry.store.has(digest):
            return f"its dataset {digest[:12]} is missing from the store"
    return None


def replay(
    registry: Registry,
    target: Version,
    *,
    from_base: bool,
    tolerance: float,
    threads: int | None,
    message: str,
    report: Heard,
) -> Replay:
    """Do the chain to `target` again, judge every step, and record it. Raises Refused, and Interrupted on Ctrl-C."""
    reap(registry)
    planned = plan(registry, target, from_base=from_base)
    identity = registry.log.new_id()
    registry.log.append(
        ReplayStarted(
            replay=identity,
            version=target.digest,
            from_base=from_base,
            tolerance=tolerance,
            steps=tuple(step.version for step in planned.steps),
            message=message,
        )
    )
    with registry.scratch(identity) as folder:
        work = _Work(registry, planned, folder, tolerance, threads, report)
        try:
            judged = tuple(work.steps())
        except KeyboardInterrupt as error:
            raise Interrupted("the replay was stopped", fix="no verdict was recorded; run it again") from error
    verdict = weakest(step.verdict for step in judged)
    recorded = registry.log.append(
        ReplayFinished(
            replay=identity, version=target.digest, verdict=verdict, steps=judged, environment=work.environment
        )
    )
    return Replay(planned, verdict, judged, recorded.seq)


class _Work:
    """A replay under way: where each step's new output lies, and what became of it."""

    def __init__(
        self,
        registry: Registry,
        planned: ReplayPlan,
        folder: Path,
        tolerance: float,
        threads: int | None,
        report: Heard,
    ) -> None:
        self.registry = registry
        self.planned = planned
        self.folder = folder
        self.tolerance = tolerance
        self.threads = threads
        self.report = report
        self.outputs: dict[Digest, Path] = {}
        self.environment: dict[str, Any] = {}

    def steps(self) -> list[StepJudged]:
        """Do every step and judge it."""
        judged: dict[Digest, StepJudged] = {}
        for place, step in enumerate(self.planned.steps):
            stuck = next((digest for _, digest in step.inputs if digest in judged and digest not in self.outputs), None)
            if step.version in self.planned.missing:
                verdict = unattempted(step.version, step.transform, self.planned.missing[step.version])
            elif stuck is not None:
                verdict = unattempted(
                    step.version, step.transform, f"its input {self.planned.names[stuck]} is not there"
                )
            else:
                verdict = self._attempt(step, self.folder / str(place))
            judged[step.version] = verdict
            self.report(step, verdict)
        return list(judged.values())

    def _attempt(self, step: Step, folder: Path) -> StepJudged:
        recorded = self.registry.log.ask(lambda reader: queries.version(reader, step.version))
        folder.mkdir()
        try:
            job = lay_out_job(self.registry, self._ready(step), folder.parent.name, folder, given=self.outputs)
        except MregError as error:
            return unattempted(step.version, step.transform, str(error))
        outcome = self.registry.engine.run(job, lambda progress: self.report(step, progress))
        self.environment = outcome.environment
        about: dict[str, Any] = {
            "version": step.version,
            "transform": step.transform,
            # Whether a run went on from a checkpoint changes nothing, and a replay never does.
            "environment": differences({**step.environment, "resumed": None}, outcome.environment),
            "wall_s": round(outcome.wall_s, 3),
        }
        if outcome.error is not None:
            return StepJudged(**about, verdict="failed", reason=outcome.error)
        trusted = {mark for _, digest in step.inputs for mark in self._marks(digest)}
        try:
            content = take_in(look(job.output, trust=trusted), None, lambda done, total: None)  # type: ignore[arg-type]
        except BAD_MODEL as error:
            return StepJudged(**about, verdict="failed", reason=f"it gave no sound model: {error.message}")
        self.outputs[step.version] = job.output
        verdict = same(recorded, content)
        if verdict is not None:
            return StepJudged(**about, verdict=verdict, weights=content.weights)
        before = StoredTensors(self.registry.manifest(recorded), self.registry.store)
        change = compare(before, FolderTensors(job.output), rank=False)
        return StepJudged(**about, weights=content.weights, **judge(change, self.tolerance))

    def _ready(self, step: Step) -> Ready:
        """The step as it was recorded, on the inputs that were recorded."""
        (source, *others) = [(role, self._version(digest)) for role, digest in step.inputs]
        transform = self.registry.engine.find(step.transform)
        derived = {given.role for given in transform.inputs if given.derived}
        request = Request(
            transform=step.transform,
            source=source[1],
            others=tuple(other for other in others if other[0] not in derived),
            data=tuple(step.datasets),
            params=step.params,
            seed=step.seed or 0,
            threads=self.threads or step.threads,
            device=step.device or "auto",
            portable=step.portable,
            processes=step.processes,
            launcher=step.environment.get("launcher"),
        )
        return prepare(self.registry, request)

    def _version(self, digest: Digest) -> Version:
        return self.registry.log.ask(lambda reader: queries.version(reader, digest))

    def _marks(self, digest: Digest) -> tuple[str, ...]:
        return self._version(digest).marks
