"""restore: weights that are missing or damaged are made again by the steps that led to them, and kept if equal.

It is a replay from the nearest versions that are there. What comes out is stored if it has the recorded digest, of all
files or of the weights, and every object of the version is there then; otherwise nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.files import disk_errors
from mreg.registry.log import queries
from mreg.registry.log.events import StepJudged, VersionRestored
from mreg.registry.models.folder import look
from mreg.registry.models.manifest import FileEntry, Manifest, TensorEntry
from mreg.registry.replay import plan as replay_plan
from mreg.registry.replay.evicting import PROVED
from mreg.registry.replay.kept import KeptReplay
from mreg.registry.replay.plan import ReplayPlan
from mreg.registry.replay.resuming import Asked, Remade
from mreg.registry.replay.work import Heard, Work
from mreg.registry.runs.applying import Interrupted, reap
from mreg.registry.store import candidates
from mreg.registry.store.holding import shared
from mreg.registry.store.spans import Span
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from mreg.registry.store.batch import Batch


SMALL_FILE = 1 << 16
"""A file of fewer bytes stays as it is."""


class NotRestored(MregError):
    """What came out is not what the version was."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Restored:
    """How a restoration came out. Without an `event` the version was there already, and nothing was done.

    `steps` are those that were done again; `objects` came back into the store, and take `bytes` on disk.
    """

    version: Version
    verdict: str | None
    steps: tuple[StepJudged, ...]
    names: dict[Digest, str]
    objects: int
    bytes: int
    event: int | None


def plan(registry: Registry, version: Version) -> ReplayPlan | None:
    """The steps that `restore` would do; None when the version is whole. Raises Refused where they cannot be done."""
    if all(registry.store.check(digest) is None for digest in registry.manifest(version).objects()):
        return None
    planned = replay_plan.plan(registry, version, from_base=False)
    for digest, why in planned.missing.items():
        at = "" if digest == version.digest else f"{planned.names[digest]}, "
        raise Refused(
            f"{version} cannot be made again: {at}{why}",
            fix=f"`mreg replay {version} --from-base --dry-run` shows all that is missing",
        )
    return planned


def restore(registry: Registry, version: Version, *, jobs: int = 1, message: str = "", report: Heard) -> Restored:
    """Make a version's missing weights again and store them. Raises Refused, NotRestored, Interrupted and Busy."""
    reap(registry)
    planned = plan(registry, version)
    if planned is None:
        return _was_there(registry, version, message)
    identity = registry.log.new_id()
    with registry.scratch(identity) as folder:
        asked = Asked(tolerance=0.0, jobs=jobs)
        last = frozenset({version.digest})
        work = Work(
            registry, planned, asked, KeptReplay(identity, {}), folder=folder, remade={}, heard=report, keep=last
        )
        try:
            work.do()
        except KeyboardInterrupt as error:
            raise Interrupted("the restoration was stopped", fix="nothing was stored; run it again") from error
        judged = work.judged
        verdict = _proved(registry, version, work)
        with shared(registry, patiently=True):
            with registry.store.batch() as batch:
                _put(registry, batch, version, planned.steps[-1], work.remade[version.digest])
            _check_whole(registry, version)
            recorded = registry.log.append(
                VersionRestored(
                    version=version.digest,
                    verdict=verdict,
                    steps=tuple(step.version for step in planned.steps),
                    environment=work.environment,
                    wall_s=round(sum(step.wall_s or 0.0 for step in judged), 3),
                    message=message,
                )
            )
    return Restored(version, verdict, judged, planned.names, batch.objects_added, batch.bytes_added, recorded.seq)


def _was_there(registry: Registry, version: Version, message: str) -> Restored:
    """A version all of whose objects are there; one that is evicted in the log alone is so no more."""
    event = None
    with shared(registry):
        if version.digest in registry.log.ask(queries.evicted):
            _check_whole(registry, version)
            event = registry.log.append(
                VersionRestored(
                    version=version.digest, verdict="bytes", steps=(), environment={}, wall_s=0.0, message=message
                )
            ).seq
    return Restored(version, "bytes" if event else None, (), {}, 0, 0, event)


def _proved(registry: Registry, version: Version, work: Work) -> Literal["bytes", "tensors"]:
    """The verdict on the last step. Raises NotRestored where it, or a step before it, came out otherwise."""
    last = work.judged[-1]
    if last.verdict in PROVED:
        return "bytes" if last.verdict == "bytes" else "tensors"
    first = next(step for step in work.judged if step.verdict not in PROVED)
    said = [f"{first.transform} of {work.planned.names[first.version]} came out {first.verdict}"]
    if first.version == version.digest and (remade := work.remade.get(version.digest)) is not None:
        said.append(_differing(registry.manifest(version), remade.manifest))
    elif first.reason:
        said.append(first.reason)
    said += [f"{name} {_short(then)} → {_short(now)}" for name, (then, now) in first.environment.items()]
    raise NotRestored(
        f"{version} could not be made again as it was: {', '.join(said)}",
        fix="nothing was stored; restore it where it was made, or where a replay proved it",
    )


def _differing(recorded: Manifest, remade: Manifest) -> str:
    """In which tensors two versions differ, from their manifests alone: the weights may be gone."""
    before, after = _placed_tensors(recorded), _placed_tensors(remade)
    differ = [place for place in before | after if before.get(place) != after.get(place)]
    if not differ:
        return "in other files than tensors"
    file, tensor = differ[0]
    return f"{len(differ)} of {len(before | after)} tensors are others, first {tensor} in {file}"


def _placed_tensors(manifest: Manifest) -> dict[tuple[str, str], Digest]:
    """Every tensor by its file and name."""
    return {(file.path, one.name): one.digest for file in manifest.files for one in file.tensors}


def _short(value: object) -> str:
    shown = "none" if value is None or value == "" else str(value)
    return shown[:12] if len(shown) == 64 else shown


def _put(registry: Registry, batch: Batch, version: Version, step: Step, remade: Remade) -> None:
    """Store what was made, as far as it belongs to the version."""
    inputs = [(role, _version(registry, digest)) for role, digest in step.inputs]
    wanted = registry.manifest(version).objects()
    trust = {mark for _, one in inputs for mark in one.marks}
    listing = look(remade.folder, trust=trust)
    guesses = candidates.NOTHING
    if not any(there.digest == version.digest for there in registry.refs().values()):
        guesses = candidates.of_step(
            registry, candidates.Done(step.transform, step.params, step.facts, inputs, step.seed), listing
        )
    for file in remade.manifest.files:
        with _opened(remade.folder / file.path) as fd:
            if file.header is None:
                if file.digest in wanted:
                    batch.put_file(Span(fd, 0, file.size), file.digest, small=file.size >= SMALL_FILE)
                continue
            for tensor, start in _placed(file):
                if tensor.digest in wanted:
                    like = guesses.of(file.path, tensor.name, tensor.dtype, tensor.shape)
                    data = Span(fd, start, tensor.size)
                    batch.put_tensor(tensor.dtype, tensor.shape, data, tensor.digest, small=True, predictions=like)


def _placed(file: FileEntry) -> Iterator[tuple[TensorEntry, int]]:
    """The tensors of a safetensors file, each with where it begins."""
    assert file.header is not None
    starts = accumulate((tensor.size for tensor in file.tensors), initial=8 + len(file.header.encode()))
    yield from zip(file.tensors, starts, strict=False)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with disk_errors(path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _check_whole(registry: Registry, version: Version) -> None:
    """Whether every object of a version is there. Raises NotRestored, naming what is not."""
    manifest = registry.manifest(version)
    gone = sorted(digest for digest in manifest.objects() if not registry.store.has(digest))
    if gone:
        named = {file.digest: file.path for file in manifest.files} | {
            one.digest: one.name for one in manifest.tensors()
        }
        raise NotRestored(
            f"{named[gone[0]]} of {version} is lost and did not come out as it was",
            fix="nothing was recorded; import the model again if there is a copy of it",
        )


def _version(registry: Registry, digest: Digest) -> Version:
    return registry.log.ask(lambda reader: queries.version(reader, digest))
