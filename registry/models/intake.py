"""A listed model read once, file by file and tensor by tensor: its manifest, and its objects if there is a store.

Memory does not grow with the model: a tensor of moderate size is held while it is hashed and written, a larger one goes
through in chunks, and so does the file when it is hashed whole.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from blake3 import blake3
from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.files import disk_errors
from mreg.registry.models import safetensors_header
from mreg.registry.models.folder import FolderListing, FoundFile
from mreg.registry.models.manifest import FileEntry, Manifest, TensorEntry
from mreg.registry.models.safetensors_header import TensorSlot
from mreg.registry.store.batch import Batch, SourceChanged
from mreg.registry.store.candidates import NOTHING, Guesses
from mreg.registry.store.spans import Data, Held, Span

_WORKERS = min(8, os.cpu_count() or 1)

_HELD = 1 << 23
"""A tensor of no more bytes is read once and held, by each worker, while it is hashed, encoded and written."""

_AHEAD = 1 << 22
"""Bytes read ahead of the hash of a whole file."""

_SMALL_FILE = 1 << 16
"""A file of fewer bytes stays as it is: those are the ones that commands look into."""

Done = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

Twin = Callable[[Digest], Manifest | None]
"""Called with a weights digest; gives the manifest of some model that is known to have these weights."""


def unheard(_done: int, _total: int) -> None:
    """For who does not want to know how far it is."""


class ModelChanged(MregError):
    """A file of the model was written to while it was being read."""

    exit_code = 5


def store_folder(
    listing: FolderListing,
    batch: Batch | None,
    report: Done = unheard,
    guesses: Guesses = NOTHING,
    twin: Twin | None = None,
) -> Manifest:
    """Read a model whole and return its manifest, which is stored too.

    Without a batch nothing is stored: that is how an output is judged without keeping it. `guesses` are what its
    tensors may be stored against; `twin` spares hashing a file whose header and tensors are all known, as a rollback's.
    Raises MalformedSafetensors, ModelChanged, or what the batch raises.
    """
    manifest = Manifest(tuple(_Intake(listing, batch, report, guesses, twin).files()))
    if batch is not None:
        batch.put_bytes(manifest.to_bytes())
    return manifest


_NOT_YET = Digest("")
"""Of a file that need not be hashed if there is one with the same header and tensors."""


class _Intake:
    def __init__(
        self, listing: FolderListing, batch: Batch | None, report: Done, guesses: Guesses, twin: Twin | None
    ) -> None:
        self._listing = listing
        self._batch = batch
        self._report = report
        self._guesses = guesses
        self._twin = twin if batch is not None else None
        self._total = listing.size
        self._done = 0

    def files(self) -> list[FileEntry]:
        """Every file, read once, those of tensors a second time to be hashed whole."""
        found = []
        for file in self._listing.files:
            with _unchanged(file) as fd:
                found.append(
                    self._safetensors(file, fd) if file.path.endswith(".safetensors") else self._plain(file, fd)
                )
        if not any(entry.digest is _NOT_YET for entry in found):
            return found
        known = self._like(Manifest(tuple(found)).weights_digest)
        return [
            replace(entry, digest=known.get((entry.header, entry.tensors)) or _hash_again(file))
            if entry.digest is _NOT_YET
            else entry
            for file, entry in zip(self._listing.files, found, strict=True)
        ]

    def _like(self, weights: Digest) -> dict[tuple[str | None, tuple[TensorEntry, ...]], Digest]:
        """The digests of files of tensors, by what they hold, in a known model with these weights."""
        twin = self._twin(weights) if self._twin is not None else None
        return {} if twin is None else {(file.header, file.tensors): file.digest for file in twin.files if file.header}

    def _plain(self, file: FoundFile, fd: int) -> FileEntry:
        content = Span(fd, 0, file.size)
        digest = _hash(content, digests.file_hasher())
        if self._batch is not None:
            self._batch.put_file(content, digest, small=file.size >= _SMALL_FILE)
        self._progress(file.size)
        return FileEntry(file.path, file.size, digest)

    def _safetensors(self, file: FoundFile, fd: int) -> FileEntry:
        prefix = os.pread(fd, 8, 0)
        length = safetensors_header.header_length(prefix, file_size=file.size, file=file.path)
        raw = os.pread(fd, length, 8)
        header = safetensors_header.parse(raw, file_size=file.size, file=file.path)
        self._progress(8 + length)
        tensors = []
        # The file is hashed beside its tensors, and one tensor beside another.
        with ThreadPoolExecutor(1) as beside, ThreadPoolExecutor(_WORKERS) as pool:

            def begin() -> Future[Digest]:
                return beside.submit(_hash_whole, Span(fd, 0, file.size))

            whole = begin() if self._twin is None else None
            try:
                for entry in pool.map(lambda slot: self._tensor(slot, fd, file.path), header.tensors):
                    tensors.append(entry)
                    self._progress(entry.size)
                    if whole is None and self._is_new(entry.digest):
                        whole = begin()
            except BaseException:
                # Ctrl-C or a full disk: what has not begun need not be read any more.
                pool.shutdown(cancel_futures=True)
                raise
            digest = _NOT_YET if whole is None else whole.result()
        return FileEntry(file.path, file.size, digest, header.text, tuple(tensors))

    def _is_new(self, digest: Digest) -> bool:
        return self._batch is not None and self._batch.has_written(digest)

    def _tensor(self, slot: TensorSlot, fd: int, file: str) -> TensorEntry:
        content: Data = Span(fd, slot.start, slot.end - slot.start)
        if self._batch is not None and content.size <= _HELD:
            content = Held(_read(fd, slot.start, slot.end))
        digest = _hash(content, digests.tensor_hasher(slot.dtype, slot.shape))
        if self._batch is not None:
            predictions = self._guesses.of(file, slot.name, slot.dtype, slot.shape)
            self._batch.put_tensor(slot.dtype, slot.shape, content, digest, small=True, predictions=predictions)
        return TensorEntry(slot.name, slot.dtype, slot.shape, digest)

    def _progress(self, count: int) -> None:
        self._done += count
        self._report(self._done, self._total)


def _hash_again(file: FoundFile) -> Digest:
    """The digest of a file all of whose parts were read before."""
    with _unchanged(file) as fd:
        return _hash_whole(Span(fd, 0, file.size))


def _hash_whole(content: Span) -> Digest:
    """The digest of a file, hashed by all threads and read ahead meanwhile."""
    hasher = digests.file_hasher(threads=_WORKERS)
    buffers = [memoryview(bytearray(min(_AHEAD, content.size))) for _ in range(2)]
    with ThreadPoolExecutor(1) as ahead:

        def read(start: int) -> memoryview:
            piece = buffers[start // _AHEAD % 2][: content.size - start]
            content.read_into(piece, start)
            return piece

        coming = ahead.submit(read, 0)
        for start in range(_AHEAD, content.size + _AHEAD, _AHEAD):
            piece = coming.result()
            if start < content.size:
                coming = ahead.submit(read, start)
            hasher.update(piece)
    return Digest(hasher.hexdigest())


_memory = threading.local()


def _read(fd: int, start: int, stop: int) -> memoryview:
    """Part of a file, in memory that the thread uses again for the next. Raises EOFError."""
    held: bytearray = getattr(_memory, "held", bytearray())
    if len(held) < stop - start:
        held = _memory.held = bytearray(min(_HELD, 2 * (stop - start)))
    view = memoryview(held)[: stop - start]
    Span(fd, start, stop - start).read_into(view, 0)
    return view


def _hash(content: Data, hasher: blake3) -> Digest:
    for chunk in content.chunks():
        hasher.update(chunk)
    return Digest(hasher.hexdigest())


@contextmanager
def _unchanged(file: FoundFile) -> Iterator[int]:
    """The file, open. Raises ModelChanged unless it was left alone since it was listed and until the block ends."""
    with disk_errors(file.location):
        fd = os.open(file.location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_state(file, fd)
        with disk_errors(file.location):
            yield fd
        _check_state(file, fd)
    except (EOFError, SourceChanged) as error:
        raise _changed(file) from error
    finally:
        os.close(fd)


def _check_state(file: FoundFile, fd: int) -> None:
    status = os.fstat(fd)
    if (status.st_size, status.st_mtime_ns) != (file.size, file.changed_ns):
        raise _changed(file)


def _changed(file: FoundFile) -> ModelChanged:
    return ModelChanged(f"{file.path} changed while it was being read", fix="wait until it is written, then try again")
