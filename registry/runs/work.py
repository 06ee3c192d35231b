"""Work of the caller's own that is recorded while it is done: `with registry.record("my-sft", source=v) as run:`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import canonical
from mreg.registry.chains.recalling import warn
from mreg.registry.log import queries
from mreg.registry.log.events import InputUsed, RunFinished, WorkStarted
from mreg.registry.models import datasets
from mreg.registry.models.checkout import check_out
from mreg.registry.models.datasets import Dataset
from mreg.registry.models.folder import Mark
from mreg.registry.references import move_ref
from mreg.registry.revs import check_ref_name
from mreg.registry.runs import curves, surroundings
from mreg.registry.runs.applying import BAD_MODEL, Applied, TransformFailed, keep, reap, record_failure
from mreg.registry.runs.recording import Other, check_name, resolved
from mreg.registry.store.candidates import Done, of_step
from mreg.registry.store.holding import shared
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from transformers import TrainerCallback


class Work:
    """A run whose work the caller does. It has a folder for the model to come; what is measured is given to `log`.

    `result` is what it came to, once the block has ended well.
    """

    def __init__(
        self,
        registry: Registry,
        id: str,
        folder: Path,
        inputs: tuple[tuple[str, Version], ...],
        used: tuple[Dataset, ...],
    ) -> None:
        self.id = id
        self.inputs = inputs
        self.result: Applied | None = None
        self._registry = registry
        self._folder = folder
        self._datasets = used
        self._facts: dict[str, Any] = {}
        self._curves: dict[str, list[curves.Point]] = {}
        for made in (self.output, self.scratch, self.made):
            made.mkdir()

    @property
    def output(self) -> Path:
        """An empty folder: what is in it when the block ends is the new version."""
        return self._folder / "output"

    @property
    def scratch(self) -> Path:
        """A folder for checkpoints and the like, removed at the end."""
        return self._folder / "scratch"

    @property
    def made(self) -> Path:
        """A folder for datasets that are made besides the model: each `NAME.jsonl` is recorded."""
        return self._folder / "made"

    @property
    def input(self) -> Path:
        """The folder of the source, to be read and not changed."""
        return self.paths("source")[0]

    def paths(self, role: str) -> list[Path]:
        """The folders of the inputs with this role, in the order given."""
        return [path for given, path in self._laid_out if given == role]

    @cached_property
    def data(self) -> list[Path]:
        """The datasets, each a JSON Lines file in its recorded order."""
        paths = []
        for place, dataset in enumerate(self._datasets):
            paths.append(self._folder / f"data-{place}.jsonl")
            datasets.lay_out(self._registry, dataset.digest, paths[-1])
        return paths

    def log(self, step: int | None = None, /, **facts: Any) -> None:
        """Keep facts (JSON) about the run; after a step, numbers as the next points of curves by these names."""
        if step is None:
            canonical.dumps(facts)  # Raises NotCanonical now, not after hours of work.
            self._facts |= facts
        else:
            self.log_points(step, facts)

    def log_points(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep numbers as the next points of curves by these names; one that is not finite is left out."""
        for name, value in numbers.items():
            if math.isfinite(float(value)):
                self._curves.setdefault(name, []).append((step, round(float(value), 6)))

    def facts(self) -> dict[str, Any]:
        """All that was logged, the curves with their first and last value."""
        drawn: dict[str, Any] = {}
        for name, curve in self._curves.items():
            drawn |= curves.facts_of(name, curve)
        return {**drawn, **self._facts}

    def trainer_callback(self) -> TrainerCallback:
        """What to give to a transformers Trainer: it logs the arguments and the curves here, and saves the model."""
        from mreg.registry.runs.callback import recording

        return recording(self)

    @cached_property
    def _laid_out(self) -> list[tuple[str, Path]]:
        found = []
        for place, (role, version) in enumerate(self.inputs):
            path = self._folder / "inputs" / f"{place}-{role}"
            check_out(self._registry.manifest(version), self._registry.store, path)
            found.append((role, path))
        return found


@contextmanager
def record(
    registry: Registry,
    transform: str,
    *,
    source: str | Version,
    others: tuple[Other, ...],
    data: tuple[str | Path, ...],
    params: dict[str, Any],
    ref: str | None,
    exclude: tuple[str, ...],
    trust: frozenset[Mark],
    message: str,
) -> Iterator[Work]:
    """A run from the beginning of the block to its end; an exception makes it a failed one and goes on.

    Raises TransformFailed when the block leaves no model, and what is wrong with the arguments.
    """
    check_name(transform)
    if ref is not None:
        check_ref_name(ref)
    reap(registry)
    code = surroundings.code()
    inputs = resolved(registry, source, others)
    used = tuple(datasets.find(registry, item) for item in data)
    warn(registry, [version for _, version in inputs], used)
    run = registry.log.new_id()
    with registry.scratch(run) as folder, ExitStack() as held:
        work = Work(registry, run, folder, inputs, used)
        started = WorkStarted(
            run=run,
            transform=transform,
            params=params,
            inputs=tuple(InputUsed(role=role, digest=version.digest) for role, version in inputs),
            datasets=tuple(dataset.digest for dataset in used),
            message=message,
        )
        registry.log.append(started, id=run)
        began = time.monotonic()
        try:
            yield work
            wall_s = time.monotonic() - began
            if not any(work.output.iterdir()):
                raise TransformFailed(f"{transform} wrote no model", fix="save it into `run.output` inside the block")
            held.enter_context(shared(registry, patiently=True))
            try:
                trusted = {*trust, *(mark for _, version in inputs for mark in version.marks)}
                by = f"{transform}, run {run}"
                guess = None if ref else partial(of_step, registry, Done(transform, params, work.facts(), inputs))
                kept = keep(registry, work.output, by=by, made=work.made, trust=trusted, exclude=exclude, guess=guess)
            except BAD_MODEL as error:
                saved = registry.root / "failed" / run
                saved.parent.mkdir(exist_ok=True)
                shutil.move(work.output, saved)
                raise TransformFailed(
                    f"{transform} left no sound model: {error.message}",
                    fix=f"what it wrote is in {saved}; see `mreg record`",
                ) from error
        except BaseException as error:
            environment = {**surroundings.described(), "code": code}
            record_failure(registry, run, error, time.monotonic() - began, environment)
            raise
        # Still inside the scratch folder: a reaper would take a started run without one for dead.
        base = inputs[0][1].base or inputs[0][1].digest
        recorded = registry.log.append(
            RunFinished(
                run=run,
                content=kept.content,
                base=base if kept.content.adapter else None,
                marks=kept.marks,
                facts=work.facts(),
                environment={**surroundings.described(), "code": code},
                wall_s=round(wall_s, 3),
                made=kept.made,
            )
        )
    version = registry.log.ask(lambda reader: queries.version(reader, kept.content.digest))
    if ref is not None:
        move_ref(registry, ref, version, reason="record", message=message)
    work.result = Applied(
        version=version,
        is_new=version.seq == recorded.seq,
        parents=tuple(parent for _, parent in inputs),
        transform=transform,
        params=params,
        facts=work.facts(),
        cached=False,
        unchanged=version.weights == inputs[0][1].weights and not version.adapter,
        disproves=None,
        event=recorded.seq,
        wall_s=wall_s,
        bytes_added=kept.bytes_added,
    )
