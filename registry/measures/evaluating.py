"""Evaluating: a version is measured in a child process as a transform works, and its scores are an event.

A score is known by its question: metric, version, data and settings. What the log knows is not measured again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.log.events import EvaluationRecorded, InputUsed
from mreg.registry.log.events import Score as Measured
from mreg.registry.measures import metrics, scores
from mreg.registry.measures.scores import Score, key_of
from mreg.registry.models import datasets
from mreg.registry.models.datasets import Dataset
from mreg.registry.runs.applying import Interrupted, lay_out_job
from mreg.registry.runs.steps import Ready, Request, prepare
from mreg.registry.store.holding import shared
from mreg.registry.transform import BadParams, Outcome, Report
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

EVALUATION = "_evaluation"
"""The job that measures. It is run as a transform is, but no model comes out, so it is none of those one can apply."""

BESIDES = ("samples", "differences")
"""Options that ask for rows besides scores."""

TASK_SETTINGS = ("num_fewshot", "apply_chat_template", "max_rows", "dtype", "task_files")


class EvaluationFailed(MregError):
    """The measuring itself failed; nothing was recorded."""

    exit_code = 6


@dataclass(frozen=True)
class Question:
    """What is asked of a version. Without `metrics` and `tasks`, what suits the model; `options` are the settings.

    `against` is the version that `kl` and `agreement` compare with, by default the first parent.
    """

    version: Version
    data: str | Path | None = None
    metrics: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    against: Version | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    portable: bool = False


@dataclass(frozen=True)
class Evaluated:
    """The answers, in the order asked. `cached` are the keys of those that the log knew; `made` came out besides."""

    version: Version
    scores: tuple[Score, ...]
    cached: frozenset[Digest]
    made: tuple[Dataset, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A question that was checked as far as it can be without weights. `keys` has the key of each metric asked for."""

    question: Question
    ready: Ready | None
    against: Version | None
    keys: dict[str, Digest]
    settings: dict[str, dict[str, Any]]

    @property
    def dataset(self) -> Digest | None:
        """The data that it is asked on."""
        return self.ready.datasets[0].digest if self.ready is not None and self.ready.datasets else None


def evaluate(registry: Registry, question: Question, *, fresh: bool, message: str, report: Report) -> Evaluated:
    """Answer a question from the log, or measure what it does not know and record that.

    Raises EvaluationFailed, Interrupted, or what is wrong with the question.
    """
    prepared = prepare_question(registry, question)
    found = {} if fresh else _known(registry, prepared)
    made: tuple[Dataset, ...] = ()
    missing = tuple(name for name in prepared.keys if name not in metrics.KNOWN and prepared.keys[name] not in found)
    tasks = tuple(task for task in question.tasks if not any(s.metric.startswith(f"{task}/") for s in found.values()))
    cached = frozenset(found)
    besides = any(prepared.ready.params[name] for name in BESIDES) if prepared.ready is not None else False
    if besides and not fresh and not missing and not tasks:
        made = _made_before(registry, prepared)
        besides = not made
    if missing or tasks or besides:
        assert prepared.ready is not None
        # What belongs to the rows that come out besides is measured with them.
        asked = _measured_by_job(prepared) if besides else missing
        fields = {"metrics": list(asked), "tasks": list(question.tasks if besides else tasks)}
        evaluation = _measure(registry, prepared, fields, message, report)
        new, made = registry.log.ask(lambda reader: _recorded(reader, evaluation))
        found |= {score.key: score for score in new}
        cached -= {score.key for score in new}
    answers = [found[key] for name, key in prepared.keys.items() if name not in metrics.KNOWN]
    answers += [score for task in question.tasks for score in found.values() if score.metric.startswith(f"{task}/")]
    names = [name for name in prepared.keys if name in metrics.KNOWN]
    counted = registry.log.ask(lambda reader: [scores.counted(reader, question.version, name) for name in names])
    everything = [*counted, *answers]
    return Evaluated(question.version, tuple(everything), cached | {one.key for one in counted}, made)


def from_log(registry: Registry, question: Question) -> Evaluated | None:
    """The answer to a question where the log has all of it; None where something would have to be measured."""
    prepared = prepare_question(registry, question)
    found = _known(registry, prepared)
    asked = [key for name, key in prepared.keys.items() if name not in metrics.KNOWN]
    tasks = [score for score in found.values() if score.metric.partition("/")[0] in question.tasks]
    missing = [task for task in question.tasks if not any(score.metric.startswith(f"{task}/") for score in tasks)]
    besides = prepared.ready is not None and any(prepared.ready.params[name] for name in BESIDES)
    made = _made_before(registry, prepared) if besides else ()
    if missing or any(key not in found for key in asked) or (besides and not made):
        return None
    return Evaluated(question.version, (*(found[key] for key in asked), *tasks), frozenset(found), made)


def prepare_question(registry: Registry, question: Question) -> Prepared:
    """Check a question as far as can be done without measuring. Raises what is wrong with it."""
    names = tuple(dict.fromkeys(question.metrics or _suitable(question)))
    for name in names:
        _check(name, question)
    if question.data is not None and names and not any(metrics.METRICS[name].data for name in names):
        besides = any(question.options.get(name) for name in BESIDES)
        if not besides and not question.tasks:
            raise BadParams(f"{', '.join(names)} is not measured on data", fix="leave --data out, or add a --metric")
    against = _against(registry, question) if any(metrics.METRICS[name].against for name in names) else None
    ready: Ready | None = None
    if set(names) - metrics.KNOWN or question.tasks or any(question.options.get(name) for name in BESIDES):
        ready = _ready(registry, question, names, against)
    settings = {name: _settings(name, ready) for name in names}
    dataset = ready.datasets[0].digest if ready is not None and ready.datasets else None
    keys = {name: key_of(name, question.version, against, dataset, settings[name]) for name in names}
    return Prepared(question, ready, against, keys, settings)


def _suitable(question: Question) -> tuple[str, ...]:
    if question.tasks or any(question.options.get(name) for name in BESIDES):
        return ()
    if question.data is None:
        return ("size", "parameters")
    kind = metrics.kind_of(question.version.architecture)
    suitable = metrics.DEFAULTS.get(kind, metrics.DEFAULTS["causal"])
    return (*suitable, "kl", "agreement") if question.against is not None else suitable


def _check(name: str, question: Question) -> None:
    metric = metrics.metric(name)
    if name not in metrics.METRICS:
        raise metrics.UnknownMetric(f"{name!r} is what a task measures", fix="ask for the task with --task")
    if metric.data and question.data is None:
        raise BadParams(f"{name} is measured on rows", fix="name a file or a dataset with --data")
    kind = metrics.kind_of(question.version.architecture)
    if kind != "other" and kind not in metric.of:
        told = {"causal": "a language model"}.get(kind, f"a {kind}")
        fitting = ", ".join(other for other, one in metrics.METRICS.items() if kind in one.of)
        raise Refused(f"{name} is not defined for {question.version}, which is {told}", fix=f"there are: {fitting}")


def _against(registry: Registry, question: Question) -> Version:
    if question.against is not None:
        return question.against
    version = question.version
    if version.base is not None:
        return registry.log.ask(lambda reader: queries.version(reader, version.base or version.digest))
    parents = registry.log.ask(lambda reader: queries.Lookup(reader).parents(version.digest))
    if not parents:
        raise Refused(f"{version} was imported and has no parent to compare with", fix="name a version with --against")
    return registry.log.ask(lambda reader: queries.version(reader, parents[0]))


def _ready(registry: Registry, question: Question, names: tuple[str, ...], against: Version | None) -> Ready:
    others: list[tuple[str, str | Version]] = []
    if (base := registry.log.ask(lambda reader: scores.base_of(reader, question.version))) is not None:
        others.append(("base", base))
    if against is not None:
        others.append(("against", against))
        if (base := registry.log.ask(lambda reader: scores.base_of(reader, against))) is not None:
            others.append(("against_base", base))
    asked = {"metrics": [name for name in names if name not in metrics.KNOWN], "tasks": list(question.tasks)}
    return prepare(
        registry,
        Request(
            EVALUATION,
            question.version,
            tuple(others),
            () if question.data is None else (question.data,),
            {**_with_task_files(question.options), **asked},
            question.seed,
            question.threads,
            question.device,
            question.portable,
        ),
    )


def _with_task_files(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the path of a folder of tasks made absolute, and the digest of what is in it."""
    if options.get("include_path") is None:
        return dict(options)
    folder = Path(options["include_path"]).absolute()
    if not folder.is_dir():
        raise BadParams(f"there is no folder {folder}", fix="give the folder that holds the .yaml files of the tasks")
    held = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    listed = [[path.relative_to(folder).as_posix(), digests.of_bytes(path.read_bytes())] for path in held]
    return {**options, "include_path": str(folder), "task_files": digests.of_json(digests.SCORE, listed)}


def _settings(name: str, ready: Ready | None) -> dict[str, Any]:
    """What the value of a metric depends on, besides the version and the data."""
    if ready is None or name in metrics.KNOWN:
        return {}
    metric = metrics.METRICS[name]
    settings = {one: ready.params[one] for one in metric.settings}
    if metric.machine:
        settings |= {"threads": ready.threads, "device": ready.device, "host": os.uname().nodename}
    return settings


def _task_settings(ready: Ready) -> dict[str, Any]:
    return {name: ready.params[name] for name in TASK_SETTINGS}


def _known(registry: Registry, prepared: Prepared) -> dict[Digest, Score]:
    question = prepared.question
    found = registry.log.ask(lambda reader: scores.known(reader, list(prepared.keys.values())))
    if question.tasks and prepared.ready is not None:
        settings = _task_settings(prepared.ready)
        every = registry.log.ask(lambda reader: scores.of_versions(reader, [question.version.digest]))
        for score in every:
            if score.settings == settings and score.metric.partition("/")[0] in question.tasks:
                found[score.key] = score
    return found


def _measured_by_job(prepared: Prepared) -> tuple[str, ...]:
    return tuple(name for name in prepared.keys if name not in metrics.KNOWN)


def _made_before(registry: Registry, prepared: Prepared) -> tuple[Dataset, ...]:
    """What came out besides the scores when the very same was asked before."""
    ready = prepared.ready
    assert ready is not None
    inputs = [{"role": role, "digest": version.digest} for role, version in ready.inputs]

    def look_up(reader: Any) -> list[Digest]:
        sql = "SELECT params, inputs, dataset, made FROM evaluation WHERE version = ? ORDER BY seq DESC"
        for row in reader.rows(sql, [prepared.question.version.digest]):
            same = (row["params"], row["inputs"], row["dataset"]) == (ready.params, inputs, prepared.dataset)
            if same and row["made"]:
                return list(row["made"])
        return []

    digests_made = registry.log.ask(look_up)
    return tuple(one for one in registry.log.ask(datasets.known) if one.digest in digests_made)


def _recorded(reader: Any, evaluation: str) -> tuple[list[Score], tuple[Dataset, ...]]:
    made = scores.made(reader, evaluation)
    return scores.recorded(reader, evaluation), tuple(one for one in datasets.known(reader) if one.digest in made)


def _measure(
    registry: Registry, prepared: Prepared, fields: Mapping[str, list[str]], message: str, report: Report
) -> str:
    """Run the job that measures, and record what it found; the id of the evaluation."""
    ready, version = prepared.ready, prepared.question.version
    assert ready is not None
    identity = registry.log.new_id()
    with registry.scratch(identity) as folder, ExitStack() as held:
        job = lay_out_job(registry, ready, identity, folder)
        job = job.model_copy(update={"params": {**job.params, **fields}})
        try:
            outcome = registry.engine.run(job, report)
        except KeyboardInterrupt as error:
            raise Interrupted(f"the evaluation of {version} was stopped", fix="nothing was recorded") from error
        if outcome.error is not None:
            raise _failure(registry, version, identity, outcome, outcome.error)
        held.enter_context(shared(registry, patiently=True))
        log: Digest | None = None
        if outcome.log is not None and outcome.log.stat().st_size:
            with registry.store.batch() as batch:
                log = batch.put_bytes(outcome.log.read_bytes())
        source = f"made by evaluation {identity} of {version}"
        made = [
            datasets.add(registry, path, name="", message="", source=source)
            for path in sorted(job.made.glob("*.jsonl"))
        ]
        registry.log.append(
            EvaluationRecorded(
                evaluation=identity,
                version=version.digest,
                inputs=tuple(InputUsed(role=role, digest=one.digest) for role, one in ready.inputs),
                dataset=prepared.dataset,
                params=job.params,
                scores=tuple(_score(prepared, found) for found in outcome.facts["scores"]),
                code=ready.code,
                seed=ready.seed,
                threads=ready.threads,
                device=ready.device,
                portable=ready.portable,
                environment=outcome.environment,
                wall_s=round(outcome.wall_s, 3),
                made=tuple(one.digest for one in made),
                log=log,
                message=message,
            )
        )
    return identity


def _score(prepared: Prepared, found: Mapping[str, Any]) -> Measured:
    name = found["metric"]
    version = prepared.question.version
    metric = metrics.metric(name)
    assert prepared.ready is not None
    settings = prepared.settings.get(name) or (_task_settings(prepared.ready) if "/" in name else {})
    against = prepared.against if metric.against else None
    return Measured(
        key=prepared.keys.get(name) or key_of(name, version, None, None, settings),
        **found,
        settings=settings,
        against=None if against is None else against.digest,
        dataset=prepared.dataset if metric.data else None,
        machine=metric.machine,
    )


def _failure(registry: Registry, version: Version, identity: str, outcome: Outcome, why: str) -> EvaluationFailed:
    """The error of an evaluation that gave nothing; what it printed is kept where it can be read."""
    fix = "nothing was recorded"
    if outcome.log is not None and outcome.log.exists() and outcome.log.stat().st_size:
        kept = registry.root / "failed" / f"{identity}.log"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(outcome.log.read_bytes())
        fix = f"what it printed is in {kept}"
    return EvaluationFailed(f"{version} could not be measured: {why}", fix=fix)
