"""Content-addressed objects on disk, `ab/cdef…`: written once, named by digest, checked whenever they are read.

Nothing but a digest becomes a path in here, and no link is followed below the store's own folder. What writes objects
durably is in batch.py; what an object looks like inside, in envelope.py.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mreg.registry.digests import Buffer, Digest, is_digest
from mreg.registry.errors import MregError
from mreg.registry.files import StorageFailed, disk_errors, sync_directory
from mreg.registry.store import envelope, framed
from mreg.registry.store.batch import Batch
from mreg.registry.store.contents import BadContent, Content, Predicted, RawContent, ResidualContent, SoloContent
from mreg.registry.store.envelope import BadEnvelope, Envelope
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import Span

TEMPORARY = "tmp"
"""The folder in the store where batches write before they commit."""

QUARANTINE = "quarantine"
"""The folder in the store where objects that nothing needs wait to be deleted."""


class MissingObject(MregError):
    """The store has no object of this name."""

    exit_code = 7


class DamagedObject(MregError):
    """What is stored under a digest is something else."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in memory: mapped and not verified where it is stored as it is, otherwise decoded and verified.

    `payload` is its content, and lives as long as it is referred to.
    """

    envelope: Envelope
    payload: memoryview
    _map: mmap.mmap | None

    def drop_pages(self) -> None:
        """Let the operating system take back the pages that were read so far; they are read again when needed."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


_State = tuple[int, int, int, int, int]
"""Device, inode, size, and when content and inode changed last, in ns: another one for each file that is written to."""

_HEADER = 1 << 10
"""Bytes read at once of an object; the headers of most are shorter."""

_SETTLED = 10**9
"""Nanoseconds after which a change of a folder gives it another time than the last one did."""

_MOST_KNOWN = 1 << 16
"""Objects that are remembered."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What this process has seen of an object's file. `sound`: it was as it was written."""

    state: _State
    envelope: Envelope
    sound: bool


class ObjectStore:
    """The objects under one folder.

    It remembers the headers of objects and which were found sound, for as long as their files are left alone; whoever
    is told that one is damaged finds everything checked anew.
    """

    def __init__(self, root: Path, explain: Callable[[Digest], MregError | None] = lambda digest: None) -> None:
        """`explain` may know why an object that somebody wants to read is not there."""
        self.root = root
        self._explain = explain
        self._base = f"{root}/"
        self._known: dict[Digest, _Known] = {}
        self._synced: dict[str, _State] = {}

    def path(self, digest: Digest) -> Path:
        """Where the object called `digest` lies, or would."""
        return Path(self._file(digest))

    def _file(self, digest: Digest) -> str:
        if not is_digest(digest):
            raise MissingObject(f"{digest!r} is not the name of an object", fix="`mreg fsck` says what refers to it")
        return self._name(digest)

    def batch(self) -> Batch:
        """A context that writes objects durably, all or none. Use it once."""
        return Batch(self, self.root / TEMPORARY)

    def has(self, digest: Digest) -> bool:
        """Whether there is an object of this name; says nothing about its content."""
        return os.path.lexists(self._file(digest))

    def size(self, digest: Digest) -> int:
        """The bytes of its content. Raises MissingObject or DamagedObject."""
        with self._opened(digest) as (header, _):
            return header.size

    def disk_size(self, digest: Digest) -> int:
        """The bytes that it takes in the store. Raises MissingObject."""
        try:
            return os.lstat(self._file(digest)).st_size
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def envelope(self, digest: Digest) -> Envelope:
        """What an object is and how it is stored. Raises MissingObject or DamagedObject."""
        known = self._known.get(digest)
        if known is not None and known.state == self._state(digest):
            return known.envelope
        with self._opened(digest) as (header, data):
            self._remember(digest, header, os.fstat(data.fd), sound=False)
            return header

    def open(self, digest: Digest) -> StoredObject:
        """Have an object in memory. Raises MissingObject or DamagedObject."""
        with self._explained(digest), self._opened(digest) as (header, data):
            if header.encoding == "raw":
                mapped = mmap.mmap(data.fd, 0, prot=mmap.PROT_READ)
                return StoredObject(header, memoryview(mapped)[data.start :], mapped)
        decoded = bytearray()
        self.copy_to(digest, decoded.extend)
        return StoredObject(header, memoryview(decoded), None)

    def content(self, digest: Digest) -> Content:
        """An object, to be read in parts and closed; not verified. Raises MissingObject or DamagedObject.

        One thread at a time may read it.
        """
        with self._explained(digest):
            return self._content(digest, ())

    def _content(self, digest: Digest, of: tuple[Digest, ...]) -> Content:
        if digest in of:
            raise self._damaged(of[0], "it is a residual of itself")
        fd = self._open_file(digest)
        try:
            with disk_errors(self._name(digest)):
                header, start = self._read_header(digest, fd)
                if header.encoding == "raw":
                    return RawContent(header, fd, start)
                if header.encoding == "solo":
                    return SoloContent(header, fd, start)
                assert header.prediction is not None, "a residual has a prediction"
                predicted = Predicted(header, header.prediction, lambda each: self._input(each, (digest, *of)))
                try:
                    return ResidualContent(header, fd, start, predicted)
                except BaseException:
                    predicted.close()
                    raise
        except BadEnvelope as error:
            os.close(fd)
            raise self._damaged(digest, f"it {error}") from error
        except BaseException:
            os.close(fd)
            raise

    def _input(self, digest: Digest, of: tuple[Digest, ...]) -> Content:
        try:
            return self._content(digest, of)
        except MissingObject as error:
            raise self._damaged(of[0], f"it is a residual of {digest[:12]}, which is not in the store") from error

    def copy_to(self, digest: Digest, write: Callable[[memoryview], object]) -> int:
        """Hand the content to `write`, chunk by chunk, and return its size.

        Raises DamagedObject after the last chunk when the content is not what the name says: what `write` was given
        must then be thrown away.
        """
        with closing(self.content(digest)) as content:
            hasher = content.envelope.hasher()
            for chunk in self.chunks(digest, content):
                hasher.update(chunk)
                write(chunk)
            if hasher.hexdigest() != digest:
                raise self._damaged(digest, "its content does not hash to its name")
            return content.envelope.size

    def chunks(self, digest: Digest, content: Content) -> Iterator[memoryview]:
        """What an opened object holds, chunk by chunk; not verified. Raises DamagedObject."""
        for number in range(framed.frame_count(content.envelope.size)):
            yield memoryview(self._chunk(digest, content, number)).cast("B")

    def read_bytes(self, digest: Digest) -> bytes:
        """The whole content, verified. For small objects. Raises MissingObject or DamagedObject."""
        content = bytearray()
        self.copy_to(digest, content.extend)
        return bytes(content)

    def check(self, digest: Digest) -> str | None:
        """What is wrong with an object, in one line; None when it and all that it needs are as they were written.

        Nothing is decoded: what an object was decoded to when it was written has the digest of its name.
        """
        try:
            return self._check(digest, ())
        except (MissingObject, DamagedObject, StorageFailed) as error:
            return error.message

    def _check(self, digest: Digest, of: tuple[Digest, ...]) -> str | None:
        known = self._known.get(digest)
        if known is not None and known.sound and known.state == self._state(digest):
            header = known.envelope
        else:
            with self._opened(digest) as (header, data):
                before = os.fstat(data.fd)
                if header.encoding == "raw":
                    hasher = header.hasher()
                    for chunk in self._chunks(digest, data):
                        hasher.update(chunk)
                    if hasher.hexdigest() != digest:
                        raise self._damaged(digest, "its content does not hash to its name")
                elif not framed.is_as_written(data.fd):
                    raise self._damaged(digest, "its checksum is another")
                self._remember(digest, header, before, sound=True)
        for each in header.inputs:
            if each in of or (wrong := self._check(each, (digest, *of))) is not None:
                return wrong if each not in of else f"object {digest[:12]} is a residual of itself"
        return None

    def wrote(self, digest: Digest, header: Envelope) -> None:
        """Remember an object that a batch has just put in its place: each frame of it was proved."""
        self._remember(digest, header, os.lstat(self._name(digest)), sound=True)

    def sync_shard(self, shard: str) -> None:
        """Make the names of the objects that begin so durable, if the folder has changed since this process did so."""
        folder = self.root / shard
        state = _state(folder.stat())
        if self._synced.get(shard) == state:
            return
        sync_directory(folder)
        if state[3] < time.time_ns() - _SETTLED:
            self._synced[shard] = state

    def _remember(self, digest: Digest, header: Envelope, status: os.stat_result, *, sound: bool) -> None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[digest] = _Known(_state(status), header, sound)

    def _state(self, digest: Digest) -> _State | None:
        try:
            return _state(os.lstat(self._name(digest)))
        except OSError:
            return None

    def _name(self, digest: Digest) -> str:
        return f"{self._base}{digest[:2]}/{digest[2:]}"

    def verify(self, digest: Digest) -> str | None:
        """What is wrong with an object, in one line; None when every bit of it is right and it decodes to its name."""
        try:
            with self._opened(digest) as (header, data):
                if header.encoding != "raw" and not framed.is_as_written(data.fd):
                    raise self._damaged(digest, "its checksum is another")
            self.copy_to(digest, _forget)
        except (MissingObject, DamagedObject, StorageFailed) as error:
            return error.message
        return None

    def closure(self, digests: Iterable[Digest]) -> set[Digest]:
        """These objects and all that are needed to read them. Objects that are not there need none."""
        found: set[Digest] = set()
        left = list(digests)
        while left:
            digest = left.pop()
            if digest not in found:
                found.add(digest)
                if self.has(digest):
                    left.extend(self.envelope(digest).inputs)
        return found

    def depth(self, digest: Digest) -> int:
        """How many residuals have to be decoded one after another to read an object. Raises MissingObject."""
        return max((1 + self.depth(each) for each in self.envelope(digest).inputs), default=0)

    def within_reach(self, prediction: Prediction, of: Digest) -> Prediction | None:
        """A prediction of the object `of` that makes no chain too long or closed; None where there is none.

        Where the tensor that `of` is to be like is itself at the end of a chain, what that one was predicted to be
        will do.
        """
        from mreg.registry.store.choosing import DEEPEST

        try:
            while max(map(self.depth, prediction.inputs), default=0) >= DEEPEST:
                if prediction.operation != "same":
                    return None
                further = self.envelope(prediction.inputs[0]).prediction
                if further is None:
                    return None
                prediction = further
            if of in self.closure(prediction.inputs) or any(self.check(each) for each in prediction.inputs):
                return None
        except (MissingObject, DamagedObject, RecursionError):
            return None
        return prediction

    def names(self) -> Iterator[Digest]:
        """The name of every object, sorted."""
        for path in sorted(self._entries()):
            name = "".join(path.relative_to(self.root).parts)
            if is_digest(name):
                yield Digest(name)

    def strays(self) -> Iterator[Path]:
        """What lies in the store and is no object, sorted. Batches in progress are not counted."""
        for path in sorted(self._entries()):
            if not is_digest("".join(path.relative_to(self.root).parts)):
                yield path

    def sweep(self, *, before: float) -> int:
        """Remove what killed batches left, if last touched before this time (seconds since 1970); return how many.

        A batch that is still being written is never taken, however old.
        """
        swept = 0
        with disk_errors(self.root / TEMPORARY):
            for folder in sorted((self.root / TEMPORARY).glob("*")):
                if os.lstat(folder).st_mtime < before and Batch.discard(folder):
                    swept += 1
        return swept

    def _entries(self) -> Iterator[Path]:
        if not self.root.is_dir():
            return
        for shard in self.root.iterdir():
            if shard.name in (TEMPORARY, QUARANTINE):
                continue
            if shard.is_dir() and not shard.is_symlink():
                yield from shard.iterdir()
            else:
                yield shard

    @contextmanager
    def _explained(self, digest: Digest) -> Iterator[None]:
        try:
            yield
        except MissingObject as error:
            raise (self._explain(digest) or error) from error

    @contextmanager
    def _opened(self, digest: Digest) -> Iterator[tuple[Envelope, Span]]:
        """The checked header of an object and where its payload lies, encoded or not."""
        fd = self._open_file(digest)
        try:
            with disk_errors(self._name(digest)):
                header, start = self._read_header(digest, fd)
                size = os.fstat(fd).st_size
            yield header, Span(fd, start, size - start)
        finally:
            os.close(fd)

    def _chunks(self, digest: Digest, data: Span) -> Iterator[memoryview]:
        try:
            with disk_errors(self._name(digest)):
                yield from data.chunks()
        except EOFError as error:
            raise self._damaged(digest, "it got shorter while being read") from error

    def _chunk(self, digest: Digest, content: Content, number: int) -> Buffer:
        try:
            with disk_errors(self._name(digest)):
                return content.chunk(number)
        except EOFError as error:
            raise self._damaged(digest, "it got shorter while being read") from error
        except BadContent as error:
            raise self._damaged(digest, f"it {error}") from error

    def _open_file(self, digest: Digest) -> int:
        shard, name = os.path.split(self._file(digest))
        try:
            folder = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _missing(digest) from error
        except OSError as error:
            raise self._damaged(digest, f"its folder cannot be opened ({error.strerror})") from error
        try:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError as error:
            raise _missing(digest) from error
        except OSError as error:
            raise self._damaged(digest, f"it cannot be opened ({error.strerror})") from error
        finally:
            os.close(folder)

    def _read_header(self, digest: Digest, fd: int) -> tuple[Envelope, int]:
        """The envelope of an open object, and where it ends."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise self._damaged(digest, "it is not a regular file")
        try:
            raw = os.pread(fd, _HEADER, 0)
            start = envelope.PREFIX + envelope.header_length(raw[: envelope.PREFIX])
            header = envelope.parse(raw[:start] if start <= _HEADER else os.pread(fd, start, 0))
        except BadEnvelope as error:
            raise self._damaged(digest, f"it {error}") from error
        if header.encoding == "raw" and status.st_size != start + header.size:
            raise self._damaged(digest, f"it holds {status.st_size - start} bytes instead of {header.size}")
        return header, start

    def _damaged(self, digest: Digest, problem: str) -> DamagedObject:
        self._known.clear()
        return DamagedObject(
            f"object {digest[:12]} is damaged: {problem} ({self.path(digest)})",
            fix="import the model that it belongs to again, which replaces it, or `mreg restore` the version",
        )


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _missing(digest: Digest) -> MissingObject:
    return MissingObject(
        f"object {digest[:12]} is not in the store",
        fix="import the model that it belongs to again, or `mreg restore` the version",
    )


def _forget(_chunk: memoryview) -> None:
    pass
