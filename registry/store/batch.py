"""Objects written durably and together: temp files, fsync, rename, fsync of the folders; all of them or none.

As restic and git do it. The syncs run on other threads while the next object is hashed and written, and each folder is
synced once for the whole batch, so that a model of hundreds of tensors costs hardly more than its bytes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mreg.registry.digests import Buffer, Digest
from mreg.registry.files import StorageFailed, disk_errors, sync_directory
from mreg.registry.store import framed
from mreg.registry.store.contents import Content, Predicted
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import CHUNK, Data, Held, write_all

_SYNCING = 4
_PENDING = 32
"""Files that may wait for their sync: each holds a descriptor open."""


class SourceChanged(ValueError):
    """The bytes to store were not the same when they were gone through again."""


class Store(Protocol):
    """What a batch asks of the store that it writes into."""

    root: Path

    def check(self, digest: Digest) -> str | None:
        """What is wrong with an object; None when it is there and as it was written."""

    def wrote(self, digest: Digest, header: Envelope) -> None:
        """Hear that an object is in its place."""

    def sync_shard(self, shard: str) -> None:
        """Make the names of the objects that begin so durable."""

    def content(self, digest: Digest) -> Content:
        """An object, to be read. Raises MissingObject or DamagedObject."""

    def within_reach(self, prediction: Prediction, of: Digest) -> Prediction | None:
        """A prediction of an object that makes no chain too long, as near to the one given as there is."""


class Batch:
    """Objects on their way into a store. Leaving the `with` block commits; an exception drops everything.

    An object that is already there is checked before it is relied upon, and replaced if it is damaged. Two batches may
    write the same object at once: both write the same bytes, and a rename replaces one by the other. Several threads
    may put into one batch.
    """

    def __init__(self, store: Store, temporary: Path) -> None:
        self.objects_added = 0
        self.bytes_added = 0
        """What the new objects take on disk."""
        self._store = store
        self._root = store.root
        self._temporary = temporary
        self._folder: Path | None = None
        self._lock = -1
        self._seen: set[Digest] = set()
        self._guard = threading.Lock()
        self._written: dict[Digest, Envelope] = {}
        self._pool = ThreadPoolExecutor(_SYNCING, thread_name_prefix="sync")
        self._syncs: deque[Future[None]] = deque()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with disk_errors(self._root):
                    self._commit()
        finally:
            self._pool.shutdown()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                os.close(self._lock)

    def put_bytes(self, data: Buffer) -> Digest:
        """Store bytes as a file object."""
        return self.put_file(Held(data))

    def put_file(self, data: Data, digest: Digest | None = None, *, small: bool = False) -> Digest:
        """Store the content of a file; see `put`."""
        return self.put(Envelope("file", data.size), data, digest, small=small)

    def put_tensor(
        self,
        dtype: str,
        shape: tuple[int, ...],
        data: Data,
        digest: Digest | None = None,
        *,
        small: bool = False,
        predictions: Sequence[Prediction] = (),
    ) -> Digest:
        """Store the raw bytes of a tensor; see `put`."""
        return self.put(Envelope.of_tensor(dtype, shape), data, digest, small=small, predictions=predictions)

    def put(
        self,
        envelope: Envelope,
        data: Data,
        digest: Digest | None = None,
        *,
        small: bool = False,
        predictions: Sequence[Prediction] = (),
        again: bool = False,
    ) -> Digest:
        """Store `data` unless it is there already, and return its name.

        As it is, or `small`: in planes of its own or as what one of the `predictions` gets wrong, if that pays. With
        `again` it is written in any case, in the place of what is there.

        A caller that knows the digest gives it and saves one reading; if `data` may change it is checked while the
        object is written, and SourceChanged is raised when the bytes are other ones. EOFError comes through when `data`
        ends early.
        """
        assert envelope.size == data.size, "an envelope says how large its content is"
        if digest is None:
            hasher = envelope.hasher()
            for chunk in data.chunks():
                hasher.update(chunk)
            digest = Digest(hasher.hexdigest())
        with self._guard:
            is_new = digest not in self._seen
            self._seen.add(digest)
        if is_new and (again or self._store.check(digest) is not None):
            with disk_errors(self._temporary), ExitStack() as opened:
                if not small:
                    self._write(envelope, data, digest, None)
                    return digest
                # Loaded with numpy, which nothing needs that only puts away a few lines.
                from mreg.registry.store.choosing import choose

                reachable: dict[Predicted, Prediction] = {}
                for prediction in predictions:
                    within = self._store.within_reach(prediction, digest)
                    if within is not None and within not in reachable.values():
                        predicted = Predicted(envelope, within, self._store.content)
                        reachable[opened.enter_context(closing(predicted))] = within
                chosen = choose(envelope, data, [(within, predicted) for predicted, within in reachable.items()])
                best = next((one for one, within in reachable.items() if within == chosen.prediction), None)
                self._write(chosen, data, digest, best)
        return digest

    def has_written(self, digest: Digest) -> bool:
        """Whether an object was not there, or not sound, and came in with this batch."""
        return digest in self._written

    def _write(self, envelope: Envelope, data: Data, digest: Digest, predicted: Predicted | None) -> None:
        path = self._own_folder() / digest
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
        try:
            hasher = envelope.hasher() if data.may_change else None

            def hashed() -> Iterator[memoryview]:
                for chunk in data.chunks():
                    if hasher is not None:
                        hasher.update(chunk)
                    yield chunk

            if envelope.encoding == "raw":
                write_all(fd, envelope.to_bytes())
                for chunk in hashed():
                    write_all(fd, chunk)
            else:
                framed.write(fd, envelope.to_bytes(), _frames(envelope, hashed(), predicted))
            if hasher is not None and hasher.hexdigest() != digest:
                raise SourceChanged(f"expected {digest}")
            size = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        with self._guard:
            self.objects_added += 1
            self.bytes_added += size
            self._written[digest] = envelope
            self._syncs.append(self._pool.submit(_sync, fd))
            late = self._syncs.popleft() if len(self._syncs) > _PENDING else None
        if late is not None:
            late.result()

    def _own_folder(self) -> Path:
        with self._guard:
            if self._folder is None:
                self._temporary.mkdir(parents=True, exist_ok=True)
                self._folder = Path(tempfile.mkdtemp(dir=self._temporary))
                self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            return self._folder

    def _commit(self) -> None:
        for sync in self._syncs:
            sync.result()
        made_folder = False
        for digest, envelope in self._written.items():
            shard = self._root / digest[:2]
            if not shard.is_dir():
                shard.mkdir(exist_ok=True)
                made_folder = True
            if shard.is_symlink():
                raise StorageFailed(f"{shard} is a link, and objects are not written through links", fix="remove it")
            (self._own_folder() / digest).rename(shard / digest[2:])
            self._store.wrote(digest, envelope)
        # Objects found in place are synced too: whoever renamed them there may not have come to it yet.
        for prefix in sorted({digest[:2] for digest in self._seen}):
            self._store.sync_shard(prefix)
        if made_folder:
            sync_directory(self._root)

    @staticmethod
    def discard(folder: Path) -> bool:
        """Remove the temp folder of a batch whose process is gone. False when somebody is still writing it."""
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
            return True
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True


def _frames(envelope: Envelope, chunks: Iterator[memoryview], predicted: Predicted | None) -> Iterator[Buffer]:
    """The content, encoded chunk by chunk; each frame is decoded again before it is trusted."""
    from mreg.registry.store import deltas, planes

    for number, chunk in enumerate(_regular(chunks)):
        if predicted is None:
            yield planes.encode_proved(chunk, envelope.dtype or "U8")
        else:
            yield deltas.encode_proved(chunk, predicted.chunk(number), envelope.dtype)


def _regular(chunks: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same bytes in chunks of full size, but for the last."""
    held = bytearray()
    for chunk in chunks:
        if not held and len(chunk) == CHUNK:
            yield chunk
            continue
        held += chunk
        while len(held) >= CHUNK:
            yield memoryview(bytes(held[:CHUNK]))
            del held[:CHUNK]
    if held:
        yield memoryview(held)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
