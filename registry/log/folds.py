"""The folds: how each event changes the projections. Pure; the same function serves append, rebuild and fsck.

`changes` asks a `State` for the few rows that a decision needs and yields rows to put or drop. In memory the state is a
dict of tables, in a transaction it is the database itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mreg.registry.log import events as e
from mreg.registry.log.recorded import Recorded

Row = dict[str, Any]
Key = tuple[Any, ...]

KEYS: Mapping[str, tuple[str, ...]] = {
    "version": ("digest",),
    "run": ("id",),
    "edge": ("run", "role", "position"),
    "ref": ("name",),
    "ref_move": ("seq",),
    "dataset": ("digest",),
    "dataset_name": ("name",),
    "run_dataset": ("run", "position"),
    "replay": ("id",),
    "evaluation": ("id",),
    "score": ("evaluation", "position"),
    "judgement": ("seq",),
    "policy": ("ref",),
    "recall": ("digest",),
    "eviction": ("version",),
}
"""Every projection with its primary key."""


@dataclass(frozen=True, slots=True)
class Put:
    """Insert the row, or replace the one with its key."""

    table: str
    row: Row


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete the row with this key."""

    table: str
    key: Key


Change = Put | Drop


class State(Protocol):
    """What a fold may look at."""

    def get(self, table: str, key: Key) -> Row | None:
        """The row with this key."""

    def count(self, table: str) -> int:
        """How many rows there are."""


class Tables(dict[str, dict[Key, Row]]):
    """All projections in memory."""

    def __init__(self) -> None:
        super().__init__({table: {} for table in KEYS})

    def get(self, table: str, key: Key) -> Row | None:  # type: ignore[override]  # a State, not a dict lookup
        """The row with this key."""
        return self[table].get(key)

    def count(self, table: str) -> int:
        """How many rows there are."""
        return len(self[table])

    def apply(self, change: Change) -> None:
        """Carry out one change."""
        if isinstance(change, Put):
            self[change.table][key_of(change.table, change.row)] = change.row
        else:
            self[change.table].pop(change.key, None)


def key_of(table: str, row: Row) -> Key:
    """The primary key of a row."""
    return tuple(row[column] for column in KEYS[table])


def fold(history: Iterable[Recorded]) -> Tables:
    """All projections of a history, from nothing."""
    tables = Tables()
    for recorded in history:
        for change in changes(recorded, tables):
            tables.apply(change)
    return tables


def changes(recorded: Recorded, state: State) -> Iterator[Change]:
    """What an event does to the projections. Each change may be applied before the next is asked for."""
    event = e.event_of(recorded)
    yield from _FOLDS[type(event)](recorded, event, state)


def _registry_created(_at: Recorded, _event: e.RegistryCreated, _state: State) -> Iterator[Change]:
    yield from ()


def _version(at: Recorded, content: e.Content, state: State, **more: Any) -> Iterator[Change]:
    """A content seen for the first time gets the next number; one seen before keeps its row."""
    if state.get("eviction", (content.digest,)) is not None:
        # What was taken out has come in again by itself.
        yield Drop("eviction", (content.digest,))
    if state.get("version", (content.digest,)) is None:
        number = state.count("version") + 1
        yield Put("version", {"number": number, **content.model_dump(), "seq": at.seq, "recorded_at": at.at, **more})


def _version_imported(at: Recorded, event: e.VersionImported, state: State) -> Iterator[Change]:
    yield from _version(
        at,
        event.content,
        state,
        base=event.base,
        marks=list(event.marks),
        origin="import",
        transform=None,
        run=None,
        source=event.source,
        message=event.message,
    )


def _version_recorded(at: Recorded, event: e.VersionRecorded, state: State) -> Iterator[Change]:
    yield Put(
        "run",
        {
            "id": at.id,
            "mode": "recorded",
            "status": "finished",
            "key": None,
            "transform": event.transform,
            "transform_version": None,
            "code": None,
            "determinism": None,
            "params": event.params,
            "inputs": [used.model_dump() for used in event.inputs],
            "datasets": list(event.datasets),
            "seed": None,
            "threads": None,
            "device": None,
            "portable": None,
            "processes": None,
            "output": event.content.digest,
            "error": None,
            "facts": {},
            "environment": {},
            "wall_s": None,
            "made": [],
            "log": None,
            "actor": at.actor,
            "message": event.message,
            "started_seq": at.seq,
            "started_at": at.at,
            "ended_seq": at.seq,
            "ended_at": at.at,
        },
    )
    step = (event.transform, event.inputs, event.datasets)
    yield from _output(at, at.id, *step, event, state, origin="record", message=event.message)


def _output(
    at: Recorded,
    run: str,
    transform: str,
    inputs: Iterable[e.InputUsed],
    datasets: Iterable[str],
    event: e.VersionRecorded | e.RunFinished,
    state: State,
    *,
    origin: str,
    message: str,
) -> Iterator[Change]:
    """The version, edges and dataset uses of a step that gave a model."""
    yield from _version(
        at,
        event.content,
        state,
        base=event.base,
        marks=list(event.marks),
        origin=origin,
        transform=transform,
        run=run,
        source=None,
        message=message,
    )
    for position, used in enumerate(inputs):
        yield Put(
            "edge",
            {
                "run": run,
                "role": used.role,
                "position": position,
                "parent": used.digest,
                "child": event.content.digest,
                "transform": transform,
                "seq": at.seq,
            },
        )
    for position, digest in enumerate(datasets):
        yield Put("run_dataset", {"run": run, "position": position, "dataset": digest, "child": event.content.digest})


def _dataset_added(at: Recorded, event: e.DatasetAdded, state: State) -> Iterator[Change]:
    if state.get("dataset", (event.digest,)) is None:
        fields = event.model_dump(include={"digest", "rows", "bytes", "format", "source"})
        yield Put("dataset", {**fields, "columns": list(event.columns), "seq": at.seq, "recorded_at": at.at})
    if event.name:
        yield Put("dataset_name", {"name": event.name, "digest": event.digest, "seq": at.seq})


def _run_started(at: Recorded, event: e.RunStarted, _state: State) -> Iterator[Change]:
    yield _begun(at, event, "apply")


def _work_started(at: Recorded, event: e.WorkStarted, _state: State) -> Iterator[Change]:
    untold = ("key", "transform_version", "code", "determinism", "seed", "threads", "device", "portable", "processes")
    yield _begun(at, event, "work", **dict.fromkeys(untold))


def _begun(at: Recorded, event: e.RunStarted | e.WorkStarted, mode: str, **untold: None) -> Put:
    """The row of a run that is under way."""
    fields = event.model_dump(exclude={"kind", "run", "inputs", "datasets"})
    return Put(
        "run",
        {
            "id": event.run,
            "mode": mode,
            "status": "started",
            **fields,
            **untold,
            "inputs": [used.model_dump() for used in event.inputs],
            "datasets": list(event.datasets),
            "output": None,
            "error": None,
            "facts": {},
            "environment": {},
            "wall_s": None,
            "made": [],
            "log": None,
            "actor": at.actor,
            "started_seq": at.seq,
            "started_at": at.at,
            "ended_seq": None,
            "ended_at": None,
        },
    )


def _ended(at: Recorded, run: str, state: State, **fields: Any) -> Row:
    row = state.get("run", (run,))
    if row is None:
        raise e.UnreadableEvent(f"event {at.seq} ends run {run}, which never started", fix="run `mreg fsck`")
    return {**row, "ended_seq": at.seq, "ended_at": at.at, **fields}


def _run_finished(at: Recorded, event: e.RunFinished, state: State) -> Iterator[Change]:
    row = _ended(
        at,
        event.run,
        state,
        status="finished",
        output=event.content.digest,
        facts=event.facts,
        environment=event.environment,
        wall_s=event.wall_s,
        made=list(event.made),
        log=event.log,
    )
    yield Put("run", row)
    inputs = [e.InputUsed(**used) for used in row["inputs"]]
    step = (row["transform"], inputs, row["datasets"])
    origin = "apply" if row["mode"] == "apply" else "record"
    # What was said about the step was said when it started.
    yield from _output(at, event.run, *step, event, state, origin=origin, message=event.message or row["message"])


def _run_failed(at: Recorded, event: e.RunFailed, state: State) -> Iterator[Change]:
    status = "interrupted" if event.interrupted else "failed"
    yield Put(
        "run",
        _ended(
            at,
            event.run,
            state,
            status=status,
            error=event.error,
            environment=event.environment,
            wall_s=event.wall_s,
            log=event.log,
        ),
    )


def _ref_moved(at: Recorded, event: e.RefMoved, _state: State) -> Iterator[Change]:
    if event.new is None:
        yield Drop("ref", (event.ref,))
    else:
        yield Put("ref", {"name": event.ref, "digest": event.new, "seq": at.seq, "recorded_at": at.at})
    fields = event.model_dump(include={"ref", "old", "new", "reason", "message"})
    more = {"forced": list(event.forced), "recorded_at": at.at, "actor": at.actor}
    yield Put("ref_move", {"seq": at.seq, **fields, **more})


def _evaluation_recorded(at: Recorded, event: e.EvaluationRecorded, _state: State) -> Iterator[Change]:
    fields = event.model_dump(exclude={"kind", "evaluation", "scores", "inputs", "made"})
    inputs = [used.model_dump() for used in event.inputs]
    about = {"inputs": inputs, "made": list(event.made), "actor": at.actor, "seq": at.seq, "recorded_at": at.at}
    yield Put("evaluation", {"id": event.evaluation, **fields, **about})
    for position, score in enumerate(event.scores):
        row = {"evaluation": event.evaluation, "position": position, "version": event.version, "seq": at.seq}
        yield Put("score", {**row, **score.model_dump()})


def _guard_judged(at: Recorded, event: e.GuardJudged, _state: State) -> Iterator[Change]:
    fields = event.model_dump(exclude={"kind", "message", "scores"})
    about = {"scores": list(event.scores), "actor": at.actor, "recorded_at": at.at}
    yield Put("judgement", {"seq": at.seq, **fields, **about})


def _policy_set(at: Recorded, event: e.PolicySet, _state: State) -> Iterator[Change]:
    if not event.guards:
        yield Drop("policy", (event.ref,))
        return
    said = {"guards": list(event.guards), "message": event.message, "actor": at.actor}
    yield Put("policy", {"ref": event.ref, **said, "seq": at.seq, "recorded_at": at.at})


def _version_recalled(at: Recorded, event: e.VersionRecalled, _state: State) -> Iterator[Change]:
    kind = "dataset" if event.version is None else "version"
    about = {"message": event.message, "actor": at.actor, "seq": at.seq, "recorded_at": at.at}
    yield Put("recall", {"digest": event.version or event.dataset, "kind": kind, **about})


def _recall_lifted(_at: Recorded, event: e.RecallLifted, _state: State) -> Iterator[Change]:
    yield Drop("recall", (event.version or event.dataset,))


def _replay_started(at: Recorded, event: e.ReplayStarted, _state: State) -> Iterator[Change]:
    yield Put(
        "replay",
        {
            "id": event.replay,
            "version": event.version,
            "from_base": event.from_base,
            "tolerance": event.tolerance,
            "verdict": None,
            "steps": [],
            "environment": {},
            "host": None,
            "resumed": None,
            "actor": at.actor,
            "started_seq": at.seq,
            "started_at": at.at,
            "ended_seq": None,
            "ended_at": None,
        },
    )


def _replay_finished(at: Recorded, event: e.ReplayFinished, state: State) -> Iterator[Change]:
    row = state.get("replay", (event.replay,))
    if row is None:
        raise e.UnreadableEvent(
            f"event {at.seq} ends replay {event.replay}, which never started", fix="run `mreg fsck`"
        )
    steps = [judged.model_dump(mode="json") for judged in event.steps]
    where = {"environment": event.environment, "host": event.host, "resumed": event.resumed}
    ended = {"verdict": event.verdict, "steps": steps, **where}
    yield Put("replay", {**row, **ended, "ended_seq": at.seq, "ended_at": at.at})


def _version_evicted(at: Recorded, event: e.VersionEvicted, _state: State) -> Iterator[Change]:
    about = {"actor": at.actor, "seq": at.seq, "recorded_at": at.at}
    yield Put("eviction", {**event.model_dump(exclude={"kind"}), **about})


def _version_restored(_at: Recorded, event: e.VersionRestored, _state: State) -> Iterator[Change]:
    yield Drop("eviction", (event.version,))


_FOLDS: Mapping[type[e.Event], Callable[..., Iterator[Change]]] = {
    e.RegistryCreated: _registry_created,
    e.VersionImported: _version_imported,
    e.VersionRecorded: _version_recorded,
    e.DatasetAdded: _dataset_added,
    e.RunStarted: _run_started,
    e.WorkStarted: _work_started,
    e.RunFinished: _run_finished,
    e.RunFailed: _run_failed,
    e.RefMoved: _ref_moved,
    e.EvaluationRecorded: _evaluation_recorded,
    e.GuardJudged: _guard_judged,
    e.PolicySet: _policy_set,
    e.VersionRecalled: _version_recalled,
    e.RecallLifted: _recall_lifted,
    e.ReplayStarted: _replay_started,
    e.ReplayFinished: _replay_finished,
    e.VersionEvicted: _version_evicted,
    e.VersionRestored: _version_restored,
}
