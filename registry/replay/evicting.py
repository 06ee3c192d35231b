"""evict: the weights of a version that a replay has proved to come out again are taken out of the store.

What goes are its tensors and GGUF files that nothing else needs. Its manifest, config, tokenizer and the like stay, so
a version whose weights come out again comes out whole, byte for byte, and the steps after it can still be planned.

The event comes first: then the objects are needed by nothing, and should we die before they are deleted, gc does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.files import disk_errors
from mreg.registry.log import queries
from mreg.registry.log.events import VersionEvicted
from mreg.registry.replay import plan as replay_plan
from mreg.registry.store.holding import alone
from mreg.registry.store.needs import Needs
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

PROVED = ("bytes", "tensors")


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last time that a step was done again on the inputs that it had: what it came to, in which replay."""

    replay: str
    verdict: str
    at: str


@dataclass(frozen=True, slots=True)
class Eviction:
    """What an eviction takes: `going` objects of so many `bytes` on disk. `proof` says that they can be made again.

    `shared` tensors stay since other versions have them, `rested_on` since other versions are stored against them. With
    `is_done` the version is evicted already, and only what a stopped eviction left would go.
    """

    version: Version
    proof: Attempt
    going: tuple[Digest, ...]
    bytes: int
    shared: int
    rested_on: int
    is_done: bool
    event: int | None = None


def last_attempt(replays: Iterable[Mapping[str, Any]], step: Step) -> Attempt | None:
    """The last replay that did a step on its recorded inputs and data; `replays` in the order in which they ended.

    Pure. A replay in which an input or a dataset had come out otherwise says nothing about the step.
    """
    found = None
    for row in replays:
        verdicts = {one["version"]: one["verdict"] for one in row["steps"]}
        verdict = verdicts.get(step.version, "not-attempted")
        inputs_differ = any(verdicts.get(digest, "bytes") not in PROVED for _, digest in step.inputs)
        remade = {digest: again for one in row["steps"] for digest, again in (one.get("made") or {}).items()}
        data_differs = any(remade.get(digest, digest) != digest for digest in step.datasets)
        if verdict != "not-attempted" and not inputs_differ and not data_differs:
            found = Attempt(row["id"], verdict, row["ended_at"])
    return found


def plan(registry: Registry, version: Version) -> Eviction:
    """What `evict` would take. Raises Refused for what cannot be made again, or where nothing would go."""
    needs = Needs(registry)
    needs.refresh()
    return _plan(registry, version, needs)


def evict(registry: Registry, version: Version, *, message: str = "") -> Eviction:
    """Take the weights of a version out of the store. Raises as `plan` does, and Busy."""
    needs = Needs(registry)
    needs.refresh()
    # What is refused is refused before anybody is held up, and what is read now is not read again.
    _plan(registry, version, needs)
    with alone(registry):
        needs.refresh()
        planned = _plan(registry, version, needs)
        event = None
        if not planned.is_done:
            recorded = registry.log.append(
                VersionEvicted(
                    version=version.digest,
                    replay=planned.proof.replay,
                    verdict=_proved(planned.proof),
                    objects=len(planned.going),
                    bytes=planned.bytes,
                    message=message,
                )
            )
            event = recorded.seq
        for digest in planned.going:
            path = registry.store.path(digest)
            with disk_errors(path):
                path.unlink(missing_ok=True)
    fields = {name: getattr(planned, name) for name in planned.__dataclass_fields__}
    return Eviction(**{**fields, "event": event})


def _plan(registry: Registry, version: Version, needs: Needs) -> Eviction:
    step, replays, evicted = registry.log.ask(
        lambda reader: (
            queries.step(reader, version.digest),
            reader.rows("SELECT id, steps, ended_at FROM replay WHERE verdict IS NOT NULL ORDER BY ended_seq"),
            queries.evicted(reader),
        )
    )
    proof = _prove(registry, version, step, replays)
    needed = needs.needed(without=version.digest)
    store = registry.store
    mine = {digest for digest in needs.listed(version.manifest).weights if store.has(digest)}
    going = sorted(mine - needed)
    others = {
        digest
        for row in needs.tables["version"].values()
        if row["digest"] != version.digest and row["digest"] not in evicted
        for digest in needs.listed(row["manifest"]).weights
    }
    planned = Eviction(
        version=version,
        proof=proof,
        going=tuple(going),
        bytes=sum(map(store.disk_size, going)),
        shared=len(mine & others),
        rested_on=len((mine & needed) - others),
        is_done=version.digest in evicted,
    )
    if not going and not planned.is_done:
        raise _nothing_goes(planned)
    return planned


def _prove(registry: Registry, version: Version, step: Step, replays: Sequence[Mapping[str, Any]]) -> Attempt:
    """The attempt that proves that a version can be made again. Raises Refused where it cannot, or none does."""
    if not step.inputs:
        raise Refused(f"{version} was imported, and nothing here can make it again", fix="evict what was made from it")
    again = replay_plan.plan(registry, version, from_base=False)
    for digest, why in again.missing.items():
        at = "" if digest == version.digest else f"{again.names[digest]}, "
        raise Refused(f"{version} could not be made again: {at}{why}", fix="only what can be done again is evicted")
    attempt = last_attempt(replays, step)
    how = f"run `mreg replay {version}` first; it must come to bytes or tensors"
    if attempt is None:
        raise Refused(f"no replay has proved that {version} can be made again", fix=how)
    if attempt.verdict not in PROVED:
        raise Refused(f"the last time that {version} was made again, it came out {attempt.verdict}", fix=how)
    return attempt


def _proved(attempt: Attempt) -> Literal["bytes", "tensors"]:
    return "bytes" if attempt.verdict == "bytes" else "tensors"


def _nothing_goes(planned: Eviction) -> Refused:
    version = planned.version
    if planned.rested_on:
        return Refused(
            f"evicting {version} would free nothing: other versions are stored against its tensors",
            fix="evict those first; `mreg du` shows who shares what",
        )
    return Refused(f"evicting {version} would free nothing: other versions have all its tensors", fix="let it be")
