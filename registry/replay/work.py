"""The work of a replay: each step laid out on what the replay itself made, run, hashed and judged.

What a step makes is kept as long as another step may need it, so that a replay that was stopped can go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log.events import StepJudged
from mreg.registry.models import datasets
from mreg.registry.models.folder import look
from mreg.registry.models.importing import config_of, content_of
from mreg.registry.models.intake import store_folder
from mreg.registry.models.weight_sources import FolderTensors, StoredTensors, compare
from mreg.registry.replay.behaviour import Behaviour
from mreg.registry.replay.branches import Branches, Tell
from mreg.registry.replay.kept import KeptReplay, KeptStep
from mreg.registry.replay.plan import ReplayPlan
from mreg.registry.replay.resuming import Asked, Remade
from mreg.registry.replay.verdict import differences, diverges, judge, same, unattempted
from mreg.registry.runs import steps
from mreg.registry.runs.applying import BAD_MODEL, lay_out_job
from mreg.registry.runs.steps import Ready
from mreg.registry.transform import LAUNCHERS, Job, JobDataset, Material, Outcome, Progress, Rows
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

Heard = Callable[[Step, Progress | StepJudged], None]
"""Told of every step's progress and, in the order of the plan, of its judgement."""


@dataclass(frozen=True)
class _Begun:
    """A step that is under way."""

    job: Job
    ready: Ready
    note: str


class Work:
    """A replay under way in `folder`. `steps` has what was judged so far, `remade` what later steps may need.

    `progress` is what is known of it when it begins, and is kept in the folder from then on. What is made in the place
    of the versions `keep` stays in there to the end.
    """

    def __init__(
        self,
        registry: Registry,
        planned: ReplayPlan,
        asked: Asked,
        progress: KeptReplay,
        *,
        folder: Path,
        remade: Mapping[Digest, Remade],
        heard: Heard,
        keep: frozenset[Digest] = frozenset(),
    ) -> None:
        self.registry = registry
        self.planned = planned
        self.folder = folder
        self.asked = asked
        self.heard = heard
        self.progress = progress
        self.steps = {one.judged.version: one for one in progress.steps}
        self.remade = dict(remade)
        self._keep = keep
        self._versions = {version.digest: version for version in registry.versions()}
        self._places = {step.version: place for place, step in enumerate(planned.steps)}
        self._begun: dict[Digest, _Begun] = {}
        self._told = 0

    @property
    def judged(self) -> tuple[StepJudged, ...]:
        """The verdicts there are, in the order of the plan."""
        return tuple(self.steps[step.version].judged for step in self.planned.steps if step.version in self.steps)

    @property
    def environment(self) -> dict[str, Any]:
        """What the last step that was done ran under."""
        done = [self.steps[step.version].environment for step in self.planned.steps if step.version in self.steps]
        return next((dict(environment) for environment in reversed(done) if environment), {})

    def do(self) -> None:
        """Do every step that is not judged yet, and judge it."""
        left = [step for step in self.planned.steps if step.version not in self.steps]
        self._tell()
        after = {step.version: self.planned.comes_after(step) for step in self.planned.steps}
        by_version = {step.version: step for step in self.planned.steps}
        branches: Branches[Digest, Outcome, Progress] = Branches(
            begin=lambda version: self._begin(by_version[version]),
            done=lambda version, outcome: self._done(by_version[version], outcome),
            heard=lambda version, progress: self.heard(by_version[version], progress),
            # It has processes of its own, enough for the machine, which only our own thread can interrupt.
            is_alone=lambda version: by_version[version].processes > 1,
            interrupt=self.registry.engine.interrupt,
        )
        branches.run([step.version for step in left], after.__getitem__, jobs=self.asked.jobs)

    # Beginning a step

    def _begin(self, step: Step) -> Callable[[Tell[Progress]], Outcome] | None:
        why = self.planned.missing.get(step.version) or self._stuck(step)
        if why is None:
            try:
                begun = self._lay_out(step)
            except MregError as error:
                why = str(error)
        if why is not None:
            self._settle(step, KeptStep(unattempted(step.version, step.transform, why), self._places[step.version]))
            return None
        self._begun[step.version] = begun
        return lambda tell: self.registry.engine.run(begun.job, tell)

    def _stuck(self, step: Step) -> str | None:
        """The input or the data that an earlier step should have made and did not."""
        for digest in self.planned.comes_after(step):
            if digest not in self.remade:
                return f"its input {self.planned.names[digest]} is not there"
        for digest in step.datasets:
            maker = self.planned.makers.get(digest)
            if maker is not None and self.remade[maker].data.get(digest) is None:
                name = self.planned.data[digest].name
                return f"its dataset {name} was not made again by {self.planned.names[maker]}"
        return None

    def _lay_out(self, step: Step) -> _Begun:
        folder = self.folder / str(self._places[step.version])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        transform = self.registry.engine.find(step.transform)
        params, note = steps.validate(transform, step.params), ""
        if transform.restore is not None:
            params, note = transform.restore(params, folder / "code")
        ready = Ready(
            transform=transform,
            code=Digest(self.registry.engine.code(step.transform)),
            params=params.model_dump(mode="json"),
            inputs=tuple((role, self._versions[digest]) for role, digest in step.inputs),
            datasets=tuple(self.planned.data[digest] for digest in step.datasets),
            seed=step.seed or 0,
            threads=self.asked.threads or step.threads or 1,
            device=step.device or "auto",
            portable=step.portable,
            processes=step.processes,
            launcher=step.environment.get("launcher") or (LAUNCHERS[0] if step.processes > 1 else None),
        )
        if transform.check is not None:
            materials = tuple(self._material(role, version) for role, version in ready.inputs)
            transform.check(params, materials, tuple(self._rows(digest) for digest in step.datasets))
        job = lay_out_job(
            self.registry,
            ready,
            self.progress.replay,
            folder,
            given={digest: made.folder for digest, made in self.remade.items()},
            given_data=self._remade_data(),
        )
        return _Begun(job, ready, note)

    def _material(self, role: str, version: Version) -> Material:
        made = self.remade.get(version.digest)
        if made is None:
            return steps.material(self.registry, role, version)
        read = lambda path: (made.folder / path).read_bytes()  # noqa: E731  one line says it
        return steps.material_of(role, version.name, made.manifest, read, adapter=version.adapter)

    def _rows(self, digest: Digest) -> Rows:
        known, again = self.planned.data[digest], self._remade_data().get(digest)
        if again is None:
            (rows,) = steps.rows_of(self.registry, (known,))
            return rows
        return Rows(known.name, again.columns, again.rows, lambda: datasets.read_rows(again.path))

    def _remade_data(self) -> dict[Digest, JobDataset]:
        return {
            digest: again
            for digest, maker in self.planned.makers.items()
            if maker in self.remade and (again := self.remade[maker].data.get(digest)) is not None
        }

    # Judging it

    def _done(self, step: Step, outcome: Outcome) -> None:
        begun, place = self._begun.pop(step.version), self._places[step.version]
        recorded = {**step.environment, "resumed": None, "transform_code": step.code or begun.ready.code}
        about: dict[str, Any] = {
            "version": step.version,
            "transform": step.transform,
            # Whether a run went on from a checkpoint changes nothing, and a replay never does.
            "environment": differences(recorded, {**outcome.environment, "transform_code": begun.ready.code}),
            "wall_s": round(outcome.wall_s, 3),
            "inherited": self._inherited(step),
            "note": begun.note,
        }
        kept: dict[str, Any] = {"place": place, "code": begun.ready.code, "environment": outcome.environment}
        if outcome.error is not None:
            self._settle(step, KeptStep(StepJudged(**about, verdict="failed", reason=outcome.error), **kept))
            return
        trusted = {mark for _, version in begun.ready.inputs for mark in version.marks}
        try:
            listing = look(begun.job.output, trust=trusted)
            manifest = store_folder(listing, None)
            content = content_of(manifest, config_of(listing))
            data = self._data(step, begun.job)
        except (*BAD_MODEL, datasets.BadDataset) as error:
            reason = f"it gave no sound model: {error.message}"
            self._settle(step, KeptStep(StepJudged(**about, verdict="failed", reason=reason), **kept))
            return
        made = {digest: None if again is None else Digest(again.digest) for digest, again in data.items()}
        self.remade[step.version] = Remade(begun.job.output, manifest, data)
        about |= {"weights": content.weights, "made": made}
        verdict = same(self._versions[step.version], content)
        about |= {"verdict": verdict} if verdict is not None else self._compare(step, begun.job.output)
        if diverges(about["verdict"]) and self.asked.behaviour is not None:
            about["behaviour"] = self._behaviour(step, begun)
        shutil.rmtree(begun.job.output.parent / "inputs", ignore_errors=True)
        self._settle(step, KeptStep(StepJudged(**about), **kept, output=manifest.version_digest, data=made))

    def _inherited(self, step: Step) -> tuple[Digest, ...]:
        """The inputs that came out otherwise before this step, which had to work on them."""
        before = [digest for _, digest in step.inputs if digest in self.steps]
        return tuple(dict.fromkeys(digest for digest in before if diverges(self.steps[digest].judged.verdict)))

    def _compare(self, step: Step, output: Path) -> dict[str, Any]:
        version = self._versions[step.version]
        try:
            before = StoredTensors(self.registry.manifest(version), self.registry.store)
            change = compare(before, FolderTensors(output), rank=False)
        except MregError as error:
            return {"verdict": "different", "reason": f"by how much cannot be told: {error.message}"}
        return judge(change, self.asked.tolerance, tuple(before.names()))

    def _behaviour(self, step: Step, begun: _Begun) -> dict[str, Any]:
        assert self.asked.behaviour is not None
        folder = begun.job.output.parent / "behaviour"
        folder.mkdir()
        remade = {digest: made.folder for digest, made in self.remade.items()}
        question = Behaviour(self._versions[step.version], self.asked.behaviour, begun.ready)
        try:
            return question.ask(self.registry, remade, folder, lambda progress: self.heard(step, progress))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _data(self, step: Step, job: Job) -> dict[Digest, JobDataset | None]:
        """What came in the place of each dataset that the recorded run made besides its model."""
        recorded = self.planned.made.get(step.version, ())
        found = []
        for place, path in enumerate(sorted(job.made.glob("*.jsonl"))):
            rows = job.output.with_name(f"made-{place}.jsonl")
            digest, columns, count = datasets.spell_out(path, rows)
            found.append(JobDataset(name=path.stem, digest=digest, path=rows, rows=count, columns=columns))
        by_digest = {again.digest: again for again in found}
        in_place = found if len(found) == len(recorded) else [None] * len(recorded)
        return {digest: by_digest.get(digest) or there for digest, there in zip(recorded, in_place, strict=True)}

    def _settle(self, step: Step, kept: KeptStep) -> None:
        """Write a verdict down, and drop what nothing needs any more."""
        self.steps[step.version] = kept
        for version in [*self.remade]:
            if not self._is_needed(version):
                shutil.rmtree(self.folder / str(self._places[version]), ignore_errors=True)
                del self.remade[version]
                self.steps[version] = replace(self.steps[version], output=None)
        self.progress = replace(self.progress, steps=tuple(self.steps.values()))
        self.progress.save(self.folder)
        self._tell()

    def _is_needed(self, version: Digest) -> bool:
        return version in self._keep or any(
            step.version not in self.steps and version in self.planned.comes_after(step) for step in self.planned.steps
        )

    def _tell(self) -> None:
        """Tell of verdicts in the order of the plan, whichever step ended first."""
        for step in self.planned.steps[self._told :]:
            if step.version not in self.steps:
                return
            self._told += 1
            self.heard(step, self.steps[step.version].judged)
