"""The events: what can happen to a registry, as frozen facts. Pure; the only vocabulary that the log knows.

A kind ends in its revision (`ref-moved/1`). A shape once written is never changed: a new revision is added, and
`upcast` turns the old payload into the new one for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from mreg.registry import canonical
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log.recorded import Recorded, seal
from pydantic import BaseModel, ConfigDict, ValidationError


class Value(BaseModel):
    """A frozen value inside an event."""

    # Kept as they are, NaN and infinities are refused where an event is recorded; by default they would become null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Event(Value):
    """A fact that somebody decided to record. `message` is what they said about it."""

    kind: str
    message: str = ""


class Content(Value):
    """One model content, summed up so that listing versions reads no manifest. `manifest` names the stored object."""

    digest: Digest
    manifest: Digest
    weights: Digest
    files: int
    tensors: int
    parameters: int
    bytes: int
    adapter: bool
    architecture: str


class InputUsed(Value):
    """A version that went into a step, in the role that it played."""

    role: str
    digest: Digest


class RegistryCreated(Event):
    """The first event of every log."""

    kind: Literal["registry-created/1"] = "registry-created/1"
    registry: str


class VersionImported(Event):
    """Content came from outside. `base` is the version that an adapter fits; `marks` are risks that were accepted."""

    kind: Literal["version-imported/1"] = "version-imported/1"
    content: Content
    source: str
    base: Digest | None = None
    marks: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    origin: dict[str, Any] = {}


class VersionRecorded(Event):
    """A step that was done elsewhere: its inputs and output are known, its execution is claimed."""

    kind: Literal["version-recorded/1"] = "version-recorded/1"
    content: Content
    transform: str
    inputs: tuple[InputUsed, ...]
    datasets: tuple[Digest, ...] = ()
    params: dict[str, Any] = {}
    base: Digest | None = None
    marks: tuple[str, ...] = ()


class DatasetAdded(Event):
    """Rows became known. `digest` is that of their canonical JSON Lines; the same rows have the same digest."""

    kind: Literal["dataset-added/1"] = "dataset-added/1"
    digest: Digest
    name: str
    rows: int
    bytes: int
    columns: tuple[str, ...]
    format: str
    source: str


class RunStarted(Event):
    """An attempt at a transform began: everything that is needed to attempt it again. `run` is the event's own id."""

    kind: Literal["run-started/2"] = "run-started/2"
    run: str
    key: Digest
    transform: str
    transform_version: int
    code: Digest
    determinism: str
    params: dict[str, Any]
    inputs: tuple[InputUsed, ...]
    datasets: tuple[Digest, ...] = ()
    seed: int
    threads: int
    device: str
    portable: bool
    processes: int = 1


class WorkStarted(Event):
    """Somebody's own code began to make a model, in a process of theirs: a run that cannot be done again from here.

    It ends as any other run does.
    """

    kind: Literal["work-started/1"] = "work-started/1"
    run: str
    transform: str
    params: dict[str, Any] = {}
    inputs: tuple[InputUsed, ...]
    datasets: tuple[Digest, ...] = ()


class RunFinished(Event):
    """The attempt gave a model. `disproves` names earlier output of the very same step that had other weights.

    `made` are datasets that came out besides, `log` is the object that holds what the run printed.
    """

    kind: Literal["run-finished/1"] = "run-finished/1"
    run: str
    content: Content
    base: Digest | None = None
    marks: tuple[str, ...] = ()
    facts: dict[str, Any]
    environment: dict[str, Any]
    wall_s: float
    disproves: Digest | None = None
    made: tuple[Digest, ...] = ()
    log: Digest | None = None


class RunFailed(Event):
    """The attempt gave nothing. `interrupted` tells a stop from outside from a failure of the work."""

    kind: Literal["run-failed/1"] = "run-failed/1"
    run: str
    error: str
    interrupted: bool = False
    environment: dict[str, Any] = {}
    wall_s: float | None = None
    log: Digest | None = None


class RefMoved(Event):
    """A name now points at `new`. `old` is what the writer believed it pointed at; `forced` are guards overruled."""

    kind: Literal["ref-moved/2"] = "ref-moved/2"
    ref: str
    old: Digest | None
    new: Digest | None
    reason: Literal["set", "import", "apply", "record", "rollback", "delete"] = "set"
    forced: tuple[str, ...] = ()


class Score(Value):
    """One measurement: `value` of `metric` over `n` of what `unit_of_n` names; `low` to `high` is its 95 % interval.

    `key` is equal for equal questions: metric, version, other version, data and settings. A value that is no number
    (NaN, infinity) is None. `machine` says that it tells as much of this machine as of the model.
    """

    key: Digest
    metric: str
    value: float | None
    unit: str
    n: int
    unit_of_n: str
    low: float | None
    high: float | None
    interval: str
    settings: dict[str, Any]
    against: Digest | None
    dataset: Digest | None
    machine: bool
    details: dict[str, Any]


class EvaluationRecorded(Event):
    """A version was measured. `made` are datasets that came out, such as samples; `log` is what it printed."""

    kind: Literal["evaluation-recorded/1"] = "evaluation-recorded/1"
    evaluation: str
    version: Digest
    inputs: tuple[InputUsed, ...]
    dataset: Digest | None
    params: dict[str, Any]
    scores: tuple[Score, ...]
    code: Digest
    seed: int
    threads: int
    device: str
    portable: bool
    environment: dict[str, Any]
    wall_s: float
    made: tuple[Digest, ...] = ()
    log: Digest | None = None


class GuardJudged(Event):
    """A guard was held against scores. `source` is what the word means in it, `other` the version compared with.

    With a `ref`, it is that name's policy which asked; without, the version itself holds or fails.
    """

    kind: Literal["guard-judged/1"] = "guard-judged/1"
    guard: str
    version: Digest
    source: Digest | None
    other: Digest | None
    dataset: Digest | None
    value: float | None
    reference: float | None
    holds: bool
    words: str
    ref: str | None = None
    scores: tuple[Digest, ...] = ()


class PolicySet(Event):
    """What a name demands of every version that it moves to, from now on; nothing where there are no guards."""

    kind: Literal["policy-set/1"] = "policy-set/1"
    ref: str
    guards: tuple[str, ...]


class VersionRecalled(Event):
    """A version, or every version that a dataset went into, is not to be used any more, nor is what came of it.

    One of the two is told. `message` says why.
    """

    kind: Literal["version-recalled/1"] = "version-recalled/1"
    version: Digest | None = None
    dataset: Digest | None = None


class RecallLifted(Event):
    """What was recalled may be used again."""

    kind: Literal["recall-lifted/1"] = "recall-lifted/1"
    version: Digest | None = None
    dataset: Digest | None = None


class ReplayStarted(Event):
    """A chain is about to be done again. `tolerance` was fixed before any work."""

    kind: Literal["replay-started/1"] = "replay-started/1"
    replay: str
    version: Digest
    from_base: bool
    tolerance: float
    steps: tuple[Digest, ...]


class StepJudged(Value):
    """What one step of a replay came to. `environment` maps what differed to (recorded, now).

    `first_tensor` is the first that differs, in the order of the manifest, and `worst_tensor` the one farthest off.
    `inherited` are inputs that had come out otherwise before it. `made` maps the datasets that the recorded run made
    besides to what came of them, `note` says what else to know of how it was done. `behaviour` has the KL divergence
    and the agreement with the recorded version, where they were asked for.
    """

    version: Digest
    transform: str
    verdict: Literal["bytes", "tensors", "close", "different", "failed", "not-attempted"]
    reason: str = ""
    weights: Digest | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    max_ulps: int | None = None
    rel_l2: float | None = None
    first_tensor: str | None = None
    worst_tensor: str | None = None
    changed_tensors: int | None = None
    inherited: tuple[Digest, ...] = ()
    made: dict[Digest, Digest | None] = {}
    behaviour: dict[str, Any] | None = None
    note: str = ""
    environment: dict[str, tuple[Any, Any]] = {}
    wall_s: float | None = None


class ReplayFinished(Event):
    """The verdicts of a replay; the weakest step's is the whole's.

    `host` is the machine that did it, as it calls itself. `resumed` counts the steps that were judged before a stop.
    """

    kind: Literal["replay-finished/2"] = "replay-finished/2"
    replay: str
    version: Digest
    verdict: str
    steps: tuple[StepJudged, ...]
    environment: dict[str, Any]
    host: str = ""
    jobs: int = 1
    resumed: int = 0


class VersionEvicted(Event):
    """The weights of a version are taken out of the store: tensors and GGUF files that nothing else needs.

    They can be made again: in the replay `replay` its step came to `verdict`. `objects` and `bytes` are what goes.
    """

    kind: Literal["version-evicted/1"] = "version-evicted/1"
    version: Digest
    replay: str
    verdict: Literal["bytes", "tensors"]
    objects: int
    bytes: int


class VersionRestored(Event):
    """The weights of a version are in the store again, with the digest they had. `steps` are those that were redone."""

    kind: Literal["version-restored/1"] = "version-restored/1"
    version: Digest
    verdict: Literal["bytes", "tensors"]
    steps: tuple[Digest, ...]
    environment: dict[str, Any]
    wall_s: float


AnyEvent = (
    RegistryCreated
    | VersionImported
    | VersionRecorded
    | DatasetAdded
    | RunStarted
    | WorkStarted
    | RunFinished
    | RunFailed
    | RefMoved
    | EvaluationRecorded
    | GuardJudged
    | PolicySet
    | VersionRecalled
    | RecallLifted
    | ReplayStarted
    | ReplayFinished
    | VersionEvicted
    | VersionRestored
)

KINDS: Mapping[str, type[Event]] = {shape.model_fields["kind"].default: shape for shape in get_args(AnyEvent)}

# From a kind that is no longer written to (the kind that took its place, how its payload becomes the new one).
Upcasters = Mapping[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]]
UPCASTERS: Upcasters = {
    # No run was shared by several processes then.
    "run-started/1": ("run-started/2", lambda payload: {**payload, "processes": 1}),
    # Before there were guards, none was overruled.
    "ref-moved/1": ("ref-moved/2", lambda payload: {**payload, "forced": []}),
    # A replay did one step after the other, to its end, and did not say where. What its steps lack has defaults.
    "replay-finished/1": ("replay-finished/2", lambda payload: {**payload, "host": "", "jobs": 1, "resumed": 0}),
}


class UnreadableEvent(MregError):
    """The log holds an event that this mreg does not understand."""

    exit_code = 7


def record(event: Event, *, seq: int, id: str, at: str, actor: str, prev: str) -> Recorded:
    """Put an event in its place: the envelope with its hash. The payload is what reading the line back would give.

    Raises NotCanonical for a number that JSON does not have.
    """
    payload = canonical.loads(canonical.dumps(event.model_dump(mode="json", exclude={"kind"})))
    return seal(Recorded(seq=seq, id=id, kind=event.kind, at=at, actor=actor, payload=payload, prev=prev, hash=""))


def event_of(recorded: Recorded) -> AnyEvent:
    """The event itself, in its newest shape. Raises UnreadableEvent."""
    return decode(recorded.kind, recorded.payload, where=f"event {recorded.seq}")


def decode(
    kind: str, payload: Mapping[str, Any], *, where: str = "an event", upcasters: Upcasters = UPCASTERS
) -> AnyEvent:
    """The typed event of a stored kind and payload, upcast to the newest shape. Raises UnreadableEvent."""
    fields = dict(payload)
    while kind in upcasters:
        kind, upcast = upcasters[kind]
        fields = upcast(fields)
    if kind not in KINDS:
        raise UnreadableEvent(f"{where} is of the unknown kind {kind!r}", fix="it was written by a newer mreg: upgrade")
    try:
        return KINDS[kind].model_validate({"kind": kind, **fields})  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UnreadableEvent(
            f"{where} ({kind}) is malformed at {place}: {first['msg']}", fix="run `mreg fsck`"
        ) from error
