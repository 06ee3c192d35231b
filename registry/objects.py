"""Content-addressed objects on disk, `ab/cdef…`: written once, named by digest, checked whenever they are read.

Nothing but a digest becomes a path in here, and no link is followed below the store's own folder. What writes objects
durably is in batch.py; what an object looks like inside, in envelope.py.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mreg.registry import envelope
from mreg.registry.batch import Batch
from mreg.registry.digests import Digest, is_digest
from mreg.registry.envelope import BadEnvelope, Envelope
from mreg.registry.errors import MregError
from mreg.registry.files import StorageFailed, disk_errors
from mreg.registry.spans import Span

TEMPORARY = "tmp"
"""The folder in the store where batches write before they commit."""


class MissingObject(MregError):
    """The store has no object of this name."""

    exit_code = 7


class DamagedObject(MregError):
    """What is stored under a digest is something else."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object mapped into memory. `payload` is its content, not verified, and lives as long as it is referred to."""

    envelope: Envelope
    payload: memoryview
    _map: mmap.mmap

    def drop_pages(self) -> None:
        """Let the operating system take back the pages that were read so far; they are read again when needed."""
        self._map.madvise(mmap.MADV_DONTNEED)


class ObjectStore:
    """The objects under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        """Where the object called `digest` lies, or would."""
        if not is_digest(digest):
            raise MissingObject(f"{digest!r} is not the name of an object", fix="`mreg fsck` says what refers to it")
        return self.root / digest[:2] / digest[2:]

    def batch(self) -> Batch:
        """A context that writes objects durably, all or none. Use it once."""
        return Batch(self.root, self.root / TEMPORARY, self.verify)

    def has(self, digest: Digest) -> bool:
        """Whether there is an object of this name; says nothing about its content."""
        return os.path.lexists(self.path(digest))

    def size(self, digest: Digest) -> int:
        """The bytes of its content. Raises MissingObject or DamagedObject."""
        with self._opened(digest) as (header, _):
            return header.size

    def disk_size(self, digest: Digest) -> int:
        """The bytes that it takes in the store. Raises MissingObject."""
        try:
            return os.lstat(self.path(digest)).st_size
        except FileNotFoundError as error:
            raise _missing(digest) from error

    def open(self, digest: Digest) -> StoredObject:
        """Map an object into memory; only its header is checked. Raises MissingObject or DamagedObject."""
        with self._opened(digest) as (header, data):
            mapped = mmap.mmap(data.fd, 0, prot=mmap.PROT_READ)
            return StoredObject(header, memoryview(mapped)[data.start :], mapped)

    def copy_to(self, digest: Digest, write: Callable[[memoryview], object]) -> int:
        """Hand the content to `write`, chunk by chunk, and return its size.

        Raises DamagedObject after the last chunk when the content is not what the name says: what `write` was given
        must then be thrown away.
        """
        with self._opened(digest) as (header, data):
            hasher = header.hasher()
            for chunk in self._chunks(digest, data):
                hasher.update(chunk)
                write(chunk)
            if hasher.hexdigest() != digest:
                raise self._damaged(digest, "its content does not hash to its name")
            return header.size

    def read_bytes(self, digest: Digest) -> bytes:
        """The whole content, verified. For small objects. Raises MissingObject or DamagedObject."""
        content = bytearray()
        self.copy_to(digest, content.extend)
        return bytes(content)

    def verify(self, digest: Digest) -> str | None:
        """What is wrong with an object, in one line; None when every bit of it is right."""
        try:
            self.copy_to(digest, _forget)
        except (MissingObject, DamagedObject, StorageFailed) as error:
            return error.message
        return None

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
            if shard.name == TEMPORARY:
                continue
            if shard.is_dir() and not shard.is_symlink():
                yield from shard.iterdir()
            else:
                yield shard

    @contextmanager
    def _opened(self, digest: Digest) -> Iterator[tuple[Envelope, Span]]:
        """The checked header of an object and where its payload lies."""
        fd = self._open_file(digest)
        try:
            with disk_errors(self.path(digest)):
                header = self._read_header(digest, fd)
            yield header
        finally:
            os.close(fd)

    def _chunks(self, digest: Digest, data: Span) -> Iterator[memoryview]:
        try:
            with disk_errors(self.path(digest)):
                yield from data.chunks()
        except EOFError as error:
            raise self._damaged(digest, "it got shorter while being read") from error

    def _open_file(self, digest: Digest) -> int:
        path = self.path(digest)
        try:
            shard = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _missing(digest) from error
        except OSError as error:
            raise self._damaged(digest, f"its folder cannot be opened ({error.strerror})") from error
        try:
            return os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=shard)
        except FileNotFoundError as error:
            raise _missing(digest) from error
        except OSError as error:
            raise self._damaged(digest, f"it cannot be opened ({error.strerror})") from error
        finally:
            os.close(shard)

    def _read_header(self, digest: Digest, fd: int) -> tuple[Envelope, Span]:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise self._damaged(digest, "it is not a regular file")
        try:
            start = envelope.PREFIX + envelope.header_length(os.pread(fd, envelope.PREFIX, 0))
            header = envelope.parse(os.pread(fd, start, 0))
        except BadEnvelope as error:
            raise self._damaged(digest, f"it {error}") from error
        if status.st_size != start + header.size:
            raise self._damaged(digest, f"it holds {status.st_size - start} bytes instead of {header.size}")
        return header, Span(fd, start, header.size)

    def _damaged(self, digest: Digest, problem: str) -> DamagedObject:
        return DamagedObject(
            f"object {digest[:12]} is damaged: {problem} ({self.path(digest)})",
            fix="import the model that it belongs to again, which replaces it, or replay the version",
        )


def _missing(digest: Digest) -> MissingObject:
    return MissingObject(
        f"object {digest[:12]} is not in the store",
        fix="import the model that it belongs to again, or replay the version",
    )


def _forget(_chunk: memoryview) -> None:
    pass
