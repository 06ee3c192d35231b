"""repack: every object stored as its use asks: quick to read where it is read often, small otherwise.

Imported models and versions that a name points at are read often: their tensors are stored by themselves. Those of all
other versions are stored as what a prediction from the versions they were made from gets wrong, where that is smaller.

One object after the other is replaced by a rename, each decoded and hashed before, so it can be stopped at any moment.
Nobody else stores objects meanwhile, but between a few of them others are let in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from mreg.registry.digests import Buffer, Digest
from mreg.registry.log import queries
from mreg.registry.models.weight_sources import StoredTensors
from mreg.registry.store import candidates
from mreg.registry.store.batch import SourceChanged
from mreg.registry.store.choosing import DEEPEST, SMALLEST, choose
from mreg.registry.store.contents import Content, Predicted, bounds
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.framed import frame_count
from mreg.registry.store.holding import alone
from mreg.registry.store.needs import Needs
from mreg.registry.store.objects import DamagedObject, ObjectStore
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import CHUNK
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

AT_ONCE = 1 << 26
"""Bytes of content after which others are let in."""


@dataclass
class Repacked:
    """What a repacking did, or would do: `objects` are stored otherwise, by the encodings before and after.

    `before` and `after` are the bytes that all objects it looked at take; of a dry run, `after` is None. `left` counts
    those that are stored as they should be.
    """

    changes: dict[tuple[str, str], int] = field(default_factory=dict)
    before: int = 0
    after: int | None = 0
    left: int = 0

    @property
    def objects(self) -> int:
        """How many objects are stored otherwise now."""
        return sum(self.changes.values())


@dataclass(frozen=True, slots=True)
class _Task:
    """An object to look at: whether it is to be quick to read, and what it may be like."""

    digest: Digest
    size: int
    is_fast: bool
    predictions: Sequence[Prediction]


def repack(registry: Registry, *, dry_run: bool = False, report: Callable[[int, int], None]) -> Repacked:
    """Store objects anew where another encoding suits their use. Raises Busy and DamagedObject."""
    needs = Needs(registry)
    needs.refresh()
    done = Repacked(after=None if dry_run else 0)
    work = _Work(registry, needs)
    total, seen = work.size, 0
    for tasks in work.by_version():
        waiting = list(tasks)
        while waiting:
            with nullcontext() if dry_run else alone(registry):
                packer = _Packer(registry.store, needs, done)
                room = AT_ONCE
                while waiting and room > 0:
                    task = waiting.pop(0)
                    packer.look(task)
                    room -= task.size
                    seen += task.size
                    report(seen, total)
    return done


class _Work:
    """What there is to look at: every tensor and large file of a version that is there, once."""

    def __init__(self, registry: Registry, needs: Needs) -> None:
        self._registry = registry
        evicted = {version for (version,) in needs.tables["eviction"]}
        named = {row["digest"] for row in needs.tables["ref"].values()}
        versions = [version for version in registry.versions() if version.digest not in evicted]
        fast = [version for version in versions if version.run is None or version.digest in named]
        # The quick ones first: what others are stored against is then as near as can be.
        self._versions = fast + [version for version in versions if version not in fast]
        self._manifests = {version.digest: registry.manifest(version) for version in self._versions}
        self._fast = {version.digest for version in fast}
        self._whole = {version.digest: version for version in versions}
        sizes = {digest: size for version in self._versions for digest, size in self._sizes(version).items()}
        self.size = sum(sizes.values())

    def by_version(self) -> Iterator[Sequence[_Task]]:
        """The objects that a version is the first to have, and what each may be like."""
        seen: set[Digest] = set()
        for version in self._versions:
            is_fast = version.digest in self._fast
            new = {digest: size for digest, size in self._sizes(version).items() if digest not in seen}
            seen |= new.keys()
            like = {} if is_fast else self._like(version, new)
            yield [_Task(digest, size, is_fast, like.get(digest, ())) for digest, size in new.items()]

    def _sizes(self, version: Version) -> dict[Digest, int]:
        """The content of each object that is not small, in bytes."""
        manifest = self._manifests[version.digest]
        sizes = {tensor.digest: tensor.size for tensor in manifest.tensors()}
        sizes |= {file.digest: file.size for file in manifest.files if file.header is None}
        return {digest: size for digest, size in sizes.items() if size >= SMALLEST}

    def _like(self, version: Version, new: Mapping[Digest, int]) -> dict[Digest, list[Prediction]]:
        """Guesses for the tensors among these that are not stored as a residual of others yet."""
        store, manifest = self._registry.store, self._manifests[version.digest]
        if not any(store.has(digest) and not store.envelope(digest).inputs for digest in new):
            return {}
        step = self._registry.log.ask(lambda reader: queries.step(reader, version.digest))
        if not all(digest in self._whole for _, digest in step.inputs):
            return {}
        inputs = [(role, self._whole[digest]) for role, digest in step.inputs]
        made = candidates.Done(step.transform, step.params, step.facts, inputs, step.seed)
        guesses = candidates.of_step(self._registry, made, StoredTensors(manifest, store))
        return {
            tensor.digest: guesses.of(file.path, tensor.name, tensor.dtype, tensor.shape)
            for file in manifest.files
            for tensor in file.tensors
        }


class _Packer:
    """The store while nobody else has objects in hand, and how deep what rests on an object lies."""

    def __init__(self, store: ObjectStore, needs: Needs, done: Repacked) -> None:
        self._store = store
        self._done = done
        self._inputs = {digest: needs.inputs(digest) for digest in store.names()}
        self._above: dict[Digest, set[Digest]] = {}
        for digest, inputs in self._inputs.items():
            for each in inputs:
                self._above.setdefault(each, set()).add(digest)

    def look(self, task: _Task) -> None:
        """Store an object otherwise, if that suits it. Raises DamagedObject."""
        if not self._store.has(task.digest):
            return
        now, size = self._store.envelope(task.digest), self._store.disk_size(task.digest)
        self._done.before += size
        if now.inputs and not task.is_fast:
            self._stays(size)
            return
        plain = now.encoded("raw")
        predictions = self._fitting(task)
        with closing(StoredData(self._store, task.digest)) as data:
            wanted = self._chosen(plain, data, predictions)
            if wanted.encoding == now.encoding:
                self._stays(size)
                return
            change = (now.encoding, wanted.encoding)
            self._done.changes[change] = self._done.changes.get(change, 0) + 1
            if self._done.after is None:
                return
            try:
                with self._store.batch() as batch:
                    batch.put(plain, data, task.digest, small=True, predictions=predictions, again=True)
            except (SourceChanged, EOFError, ValueError) as error:
                raise DamagedObject(
                    f"object {task.digest[:12]} is damaged and was left as it is", fix="`mreg fsck` says what is wrong"
                ) from error
        self._done.after += batch.bytes_added
        self._moved(task.digest, self._store.envelope(task.digest).inputs)

    def _stays(self, size: int) -> None:
        self._done.left += 1
        if self._done.after is not None:
            self._done.after += size

    def _fitting(self, task: _Task) -> list[Prediction]:
        """The predictions under which nothing that rests on the object comes to lie too deep."""
        height = self._height(task.digest)
        found = []
        for prediction in task.predictions:
            within = self._store.within_reach(prediction, task.digest)
            if within is not None and 1 + max(map(self._store.depth, within.inputs)) + height <= DEEPEST:
                found.append(within)
        return found

    def _height(self, digest: Digest) -> int:
        return max((1 + self._height(each) for each in self._above.get(digest, ())), default=0)

    def _moved(self, digest: Digest, inputs: tuple[Digest, ...]) -> None:
        for each in self._inputs[digest]:
            self._above[each].discard(digest)
        for each in inputs:
            self._above.setdefault(each, set()).add(digest)
        self._inputs[digest] = inputs

    def _chosen(self, plain: Envelope, data: StoredData, predictions: Sequence[Prediction]) -> Envelope:
        with ExitStack() as opened:
            tried = [
                (one, opened.enter_context(closing(Predicted(plain, one, self._store.content)))) for one in predictions
            ]
            return choose(plain, data, tried)


class StoredData:
    """The content of a stored object, as `spans.Data`. To be closed; one thread at a time may read it."""

    may_change: ClassVar[bool] = True

    def __init__(self, store: ObjectStore, digest: Digest) -> None:
        self._content: Content = store.content(digest)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._content.envelope.size

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order. A chunk is valid until the next one is asked for."""
        for number in range(frame_count(self.size)):
            yield memoryview(self._content.chunk(number)).cast("B")

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes from `start` to before `stop`."""
        parts = bytearray()
        for number in range(start // CHUNK, frame_count(stop)):
            first, last = bounds(self.size, number)
            chunk = memoryview(self._content.chunk(number)).cast("B")
            parts += chunk[max(start, first) - first : min(stop, last) - first]
        return parts

    def close(self) -> None:
        """Let go of the files."""
        self._content.close()
