"""Applying a transform: a run is recorded as started, done in a child process, and recorded as finished or failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.chains.recalling import warn
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log import queries
from mreg.registry.log.events import Content, InputUsed, RunFailed, RunFinished, RunStarted
from mreg.registry.models import datasets
from mreg.registry.models.checkout import check_out
from mreg.registry.models.folder import FolderListing, IncompleteModel, NoModel, UnsafeModel, look
from mreg.registry.models.importing import take_in
from mreg.registry.models.safetensors_header import MalformedSafetensors
from mreg.registry.references import move_ref
from mreg.registry.revs import check_ref_name
from mreg.registry.runs import checkpoints, scratch
from mreg.registry.runs.checkpoints import Checkpoint
from mreg.registry.runs.steps import Ready, Request, prepare
from mreg.registry.store.candidates import NOTHING, Done, Guesses, of_step
from mreg.registry.store.holding import shared
from mreg.registry.transform import Checkpointing, Facts, Job, JobDataset, JobInput, Outcome, Report
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader
    from mreg.registry.measures.judging import GuardFailed, Judgement
    from mreg.registry.registry import Registry


class TransformFailed(MregError):
    """The work itself failed; the run is recorded as failed and left no version."""

    exit_code = 6


BAD_MODEL = (NoModel, UnsafeModel, IncompleteModel, MalformedSafetensors)
"""What is wrong with an output folder that is no model."""


class Interrupted(MregError):
    """Somebody stopped the work; the run is recorded as interrupted and left no version."""

    exit_code = 130


@dataclass(frozen=True)
class Applied:
    """What a step came to. `unchanged` says that the output is its own source, `cached` that nothing was run.

    `disproves` is an earlier output of the very same step that had other weights: its determinism class is wrong.
    `fused` are the steps before it that made whole models of adapters; `parents` has what they gave. `judged` is what
    the guards said of the version, and `refused` says why the ref that was asked for did not move to it.
    """

    version: Version
    is_new: bool
    parents: tuple[Version, ...]
    transform: str
    params: dict[str, Any]
    facts: dict[str, Any]
    cached: bool
    unchanged: bool
    disproves: Version | None
    event: int
    wall_s: float | None
    bytes_added: int
    fused: tuple[Applied, ...] = ()
    judged: tuple[Judgement, ...] = ()
    refused: GuardFailed | None = None


@dataclass(frozen=True)
class Planned:
    """What a step would do; `answer` is the version that the log would answer it with, without running anything.

    `first` are the steps that would come before it. `checkpoint` is what it left when it was stopped.
    """

    step: Ready
    answer: Version | None
    first: tuple[Planned, ...] = ()
    checkpoint: Checkpoint | None = None


def plan(registry: Registry, request: Request) -> Planned:
    """Every check that `apply` makes before it runs, and whether the log knows the answer."""
    return _planned(registry, prepare(registry, request))


def _planned(registry: Registry, ready: Ready) -> Planned:
    first = tuple(_planned(registry, step) for step in ready.fuse_first)
    fused = {before.step.source.digest: before.answer for before in first if before.answer is not None}
    if len(fused) < len(first):
        return Planned(ready, None, first)
    whole = ready.on(fused)
    known = _known(registry, whole)
    if known is not None:
        return Planned(ready, known[0], first)
    going_on = checkpoints.to_go_on if ready.resume else checkpoints.of_step
    return Planned(ready, None, first, going_on(registry, whole))


def apply(
    registry: Registry,
    request: Request,
    *,
    ref: str | None,
    fresh: bool,
    message: str,
    report: Report,
    guards: Sequence[str] = (),
    force: bool = False,
) -> Applied:
    """Run a step and record it, or answer it from the log. Raises TransformFailed, Interrupted, or what is wrong.

    `guards` are held against what came of it. A version that fails one is recorded as any other, and marked; `ref`
    does not move to it, nor to one that fails the policy of `ref`, unless with `force`.
    """
    from mreg.registry.measures import judging

    if ref is not None:
        check_ref_name(ref)
    reap(registry)
    ready = prepare(registry, request)
    warn(registry, [version for _, version in ready.inputs], ready.datasets)
    source, bench = ready.source, judging.Bench(request.seed, request.threads, request.device, request.portable)
    asked = judging.parse_all(registry, guards, source=source, bench=bench)
    fused = [(step.source, _do(registry, step, False, _before(ready), report)) for step in ready.fuse_first]
    ready = ready.on({adapter.digest: done.version for adapter, done in fused})
    applied = replace(
        _do(registry, ready, fresh, message, report, ref is not None), fused=tuple(done for _, done in fused)
    )
    judged = judging.judge(registry, asked, applied.version, source, ref=None, bench=bench, report=report)
    applied = replace(applied, judged=judged)
    if ref is not None:
        try:
            move_ref(registry, ref, applied.version, reason="apply", message=message, force=force, report=report)
        except judging.GuardFailed as refused:
            return replace(applied, refused=refused)
    return applied


def _do(registry: Registry, ready: Ready, fresh: bool, message: str, report: Report, named: bool = False) -> Applied:
    """Answer a step from the log, or run it."""
    known = _known(registry, ready)
    return _answer(ready, known) if known and not fresh else _run(registry, ready, known, message, report, named)


def _before(ready: Ready) -> str:
    return f"before {ready.transform.name}, which takes a whole model"


def reap(registry: Registry) -> list[str]:
    """Record as interrupted the runs whose process is gone without a word; return their ids."""
    # What may take long comes before the database is asked: who called may keep it open for more questions.
    scratch.sweep(registry.root)
    registry.store.sweep(before=time.time() - 3600)
    started = registry.log.ask(lambda reader: reader.rows("SELECT id FROM run WHERE status = 'started'"))
    dead = [row["id"] for row in started if not scratch.is_alive(registry.root, row["id"])]
    for run in dead:
        registry.log.decide(partial(_reaped, run=run))
    return dead


def _reaped(reader: Reader, *, run: str) -> RunFailed | None:
    """The end of a run whose process is gone, unless it ended properly, or was reaped, since somebody looked."""
    row = reader.one("SELECT status FROM run WHERE id = ?", [run])
    if row is None or row["status"] != "started":
        return None
    return RunFailed(run=run, error="the process that ran it ended without a word", interrupted=True)


def lay_out_job(
    registry: Registry,
    ready: Ready,
    run: str,
    folder: Path,
    *,
    given: Mapping[Digest, Path] | None = None,
    given_data: Mapping[Digest, JobDataset] | None = None,
    cache: Path | None = None,
) -> Job:
    """Check out a step's inputs and data into `folder`, as a job.

    `given` and `given_data` have inputs and data that are laid out already.
    """
    inputs = []
    for place, (role, version) in enumerate(ready.inputs):
        path = (given or {}).get(version.digest)
        if path is None:
            path = folder / "inputs" / f"{place}-{role}"
            check_out(registry.manifest(version), registry.store, path)
        inputs.append(JobInput(role=role, digest=version.digest, path=path, adapter=version.adapter))
    rows = []
    for place, dataset in enumerate(ready.datasets):
        if (there := (given_data or {}).get(dataset.digest)) is not None:
            rows.append(there)
            continue
        path = folder / f"data-{place}.jsonl"
        datasets.lay_out(registry, dataset.digest, path)
        rows.append(
            JobDataset(name=dataset.name, digest=dataset.digest, path=path, rows=dataset.rows, columns=dataset.columns)
        )
    output = folder / "output"
    output.mkdir()
    return Job(
        id=run,
        transform=ready.transform.name,
        params=ready.params,
        inputs=tuple(inputs),
        datasets=tuple(rows),
        output=output,
        seed=ready.seed,
        threads=ready.threads,
        device=ready.device,
        portable=ready.portable,
        processes=ready.processes,
        launcher=ready.launcher,
        place=ready.place,
        cache=cache,
    )


def _done(ready: Ready, facts: Facts) -> Done:
    return Done(ready.transform.name, ready.params, facts, ready.inputs, ready.seed)


def _run(
    registry: Registry,
    ready: Ready,
    known: tuple[Version, dict[str, Any]] | None,
    message: str,
    report: Report,
    named: bool = False,
) -> Applied:
    run = registry.log.new_id()
    start = checkpoints.to_go_on(registry, ready) if ready.resume else None
    with registry.scratch(run) as folder, ExitStack() as held:
        # Nor does a replay get one: work that is done again is done wholly.
        cache = registry.root / "cache" if known is None else None
        job = _keeping(registry, lay_out_job(registry, ready, run, folder, cache=cache), ready, start)
        registry.log.append(_started(ready, run, message), id=run)
        began = time.monotonic()
        resumed = {} if start is None else {"resumed": {"run": start.run, "step": start.step, "steps": start.steps}}
        try:
            outcome = registry.engine.run(job, report)
            if outcome.error is not None:
                raise _failure(registry, ready, run, outcome, outcome.error)
            held.enter_context(shared(registry, patiently=True))
            try:
                kept = keep(
                    registry,
                    job.output,
                    by=f"{ready.transform.name}, run {run}",
                    made=job.made,
                    trust={mark for _, version in ready.inputs for mark in version.marks},
                    printed=outcome.log,
                    # A version that a name will point at is made to be read, not to be small.
                    guess=None if named else partial(of_step, registry, _done(ready, outcome.facts)),
                )
            except BAD_MODEL as error:
                raise _failure(registry, ready, run, outcome, f"it gave no sound model: {error.message}") from error
            content = kept.content
        except BaseException as error:
            record_failure(registry, run, error, time.monotonic() - began, resumed)
            if isinstance(error, KeyboardInterrupt):
                name = ready.transform.name
                fix = _how_on(registry, ready) or "nothing was kept; run it again to start over"
                raise Interrupted(f"{name} was stopped", fix=fix) from error
            raise
        # Still inside the scratch folder: a reaper would take a started run without one for dead.
        disproved = known[0] if known and known[0].weights != content.weights else None
        recorded = registry.log.append(
            RunFinished(
                run=run,
                content=content,
                base=ready.base if content.adapter else None,
                marks=kept.marks,
                facts=outcome.facts,
                environment={**outcome.environment, **resumed},
                wall_s=round(outcome.wall_s, 3),
                disproves=disproved.digest if disproved else None,
                made=kept.made,
                log=kept.log,
            )
        )
    checkpoints.forget(registry.root, ready.key)
    version = registry.log.ask(lambda reader: queries.version(reader, content.digest))
    return Applied(
        version=version,
        is_new=version.seq == recorded.seq,
        parents=tuple(parent for _, parent in ready.inputs),
        transform=ready.transform.name,
        params=ready.params,
        facts=outcome.facts,
        cached=False,
        unchanged=version.weights == ready.source.weights and not version.adapter,
        disproves=disproved,
        event=recorded.seq,
        wall_s=outcome.wall_s,
        bytes_added=kept.bytes_added,
    )


def _keeping(registry: Registry, job: Job, ready: Ready, start: Checkpoint | None) -> Job:
    """The job, told where its checkpoints go and from which one it goes on, if it is of a kind that has any."""
    if not ready.transform.resumes:
        return job
    if start is None and (left := checkpoints.of_step(registry, ready)) is not None:
        registry.log.notify(
            f"this starts over, though there is a checkpoint at step {left.step} of {left.steps}: "
            "with --resume it would go on from there"
        )
    chosen = Checkpointing(
        folder=checkpoints.home(registry.root, ready.key),
        code=ready.code,
        save_steps=ready.save_steps,
        resume=None if start is None else start.path,
    )
    return job.model_copy(update={"checkpoints": chosen})


def _how_on(registry: Registry, ready: Ready) -> str:
    """What to do after a run that did not finish, if it left a checkpoint."""
    left = checkpoints.of_step(registry, ready)
    if left is None:
        return ""
    return f"its checkpoint at step {left.step} of {left.steps} is kept, the same again with --resume goes on from it"


@dataclass(frozen=True)
class Kept:
    """What is in the store of a run that went well."""

    content: Content
    marks: tuple[str, ...]
    made: tuple[Digest, ...]
    log: Digest | None
    bytes_added: int


def keep(
    registry: Registry,
    output: Path,
    *,
    by: str,
    made: Path,
    trust: Iterable[str],
    exclude: tuple[str, ...] = (),
    printed: Path | None = None,
    guess: Callable[[FolderListing], Guesses] | None = None,
) -> Kept:
    """Store what a run left in `output` and the datasets in `made`; `by` says which run it was, for people.

    `guess` tells what the output may be stored against.

    Code and pickles that the inputs were trusted with may come out again: `trust` has their marks.
    """
    listing = look(output, exclude=exclude, trust=set(trust))
    with registry.store.batch() as batch:
        guesses = NOTHING if guess is None else guess(listing)
        content = take_in(listing, batch, lambda done, total: None, guesses)
        log = batch.put_bytes(printed.read_bytes()) if printed is not None else None
    found = [
        datasets.add(registry, path, name="", message="", source=f"made by {by}")
        for path in sorted(made.glob("*.jsonl"))
    ]
    return Kept(content, listing.marks, tuple(dataset.digest for dataset in found), log, batch.bytes_added)


def _started(ready: Ready, run: str, message: str) -> RunStarted:
    return RunStarted(
        run=run,
        key=ready.key,
        transform=ready.transform.name,
        transform_version=ready.transform.version,
        code=ready.code,
        determinism=ready.transform.promised(ready.params),
        params=ready.params,
        inputs=tuple(InputUsed(role=role, digest=version.digest) for role, version in ready.inputs),
        datasets=tuple(dataset.digest for dataset in ready.datasets),
        seed=ready.seed,
        threads=ready.threads,
        device=ready.device,
        portable=ready.portable,
        processes=ready.processes,
        message=message,
    )


def _failure(registry: Registry, ready: Ready, run: str, outcome: Outcome, why: str) -> TransformFailed:
    """The error of a run that gave nothing; what the run printed is kept where it can be read."""
    fix = "nothing was recorded but the failure"
    if outcome.log is not None and outcome.log.exists():
        kept = registry.root / "failed" / f"{run}.log"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(outcome.log.read_bytes())
        fix = f"what it printed is in {kept}"
    fix = "; ".join(filter(None, [fix, _how_on(registry, ready)]))
    return TransformFailed(f"{ready.transform.name} failed: {why}", fix=fix)


def record_failure(
    registry: Registry, run: str, error: BaseException, wall_s: float, environment: dict[str, Any] | None = None
) -> None:
    """Record that a run gave nothing, and why."""
    interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
    said = "interrupted" if interrupted else str(error) or type(error).__name__
    registry.log.append(
        RunFailed(
            run=run,
            error=said,
            interrupted=interrupted,
            environment=environment or {},
            wall_s=round(wall_s, 3),
        )
    )


def _known(registry: Registry, ready: Ready) -> tuple[Version, dict[str, Any]] | None:
    """The newest finished run of the very same step, with its output."""

    def look_up(reader: Any) -> tuple[Version, dict[str, Any]] | None:
        sql = "SELECT * FROM run WHERE key = ? AND status = 'finished' ORDER BY ended_seq DESC LIMIT 1"
        row = reader.one(sql, [ready.key])
        return None if row is None else (queries.version(reader, row["output"]), row)

    return registry.log.ask(look_up)


def _answer(ready: Ready, known: tuple[Version, dict[str, Any]]) -> Applied:
    version, row = known
    return Applied(
        version=version,
        is_new=False,
        parents=tuple(parent for _, parent in ready.inputs),
        transform=ready.transform.name,
        params=ready.params,
        facts=row["facts"],
        cached=True,
        unchanged=version.weights == ready.source.weights and not version.adapter,
        disproves=None,
        event=row["ended_seq"],
        wall_s=row["wall_s"],
        bytes_added=0,
    )
