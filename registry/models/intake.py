"""A listed model read once, file by file and tensor by tensor: its manifest, and its objects if there is a store.

Memory does not grow with the model: one chunk at a time goes to the hash of the file, that of the tensor and the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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
from mreg.registry.store.spans import Span

_WORKERS = min(8, os.cpu_count() or 1)

_SMALL_FILE = 1 << 16
"""A file of fewer bytes stays as it is: those are the ones that commands look into."""

Done = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def unheard(_done: int, _total: int) -> None:
    """For who does not want to know how far it is."""


class ModelChanged(MregError):
    """A file of the model was written to while it was being read."""

    exit_code = 5


def store_folder(
    listing: FolderListing, batch: Batch | None, report: Done = unheard, guesses: Guesses = NOTHING
) -> Manifest:
    """Read a model whole and return its manifest, which is stored too.

    Without a batch nothing is stored: that is how an output is judged without keeping it. `guesses` are what its
    tensors may be stored against. Raises MalformedSafetensors, ModelChanged, or what the batch raises.
    """
    manifest = Manifest(tuple(_Intake(listing, batch, report, guesses).files()))
    if batch is not None:
        batch.put_bytes(manifest.to_bytes())
    return manifest


class _Intake:
    def __init__(self, listing: FolderListing, batch: Batch | None, report: Done, guesses: Guesses) -> None:
        self._listing = listing
        self._batch = batch
        self._report = report
        self._guesses = guesses
        self._total = listing.size
        self._done = 0

    def files(self) -> Iterator[FileEntry]:
        for file in self._listing.files:
            with _unchanged(file) as fd:
                yield self._safetensors(file, fd) if file.path.endswith(".safetensors") else self._plain(file, fd)

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
        with ThreadPoolExecutor(_WORKERS) as pool:
            try:
                whole = pool.submit(_hash, Span(fd, 0, file.size), digests.file_hasher())
                for entry in pool.map(lambda slot: self._tensor(slot, fd, file.path), header.tensors):
                    tensors.append(entry)
                    self._progress(entry.size)
            except BaseException:
                # Ctrl-C or a full disk: what has not begun need not be read any more.
                pool.shutdown(cancel_futures=True)
                raise
        return FileEntry(file.path, file.size, whole.result(), header.text, tuple(tensors))

    def _tensor(self, slot: TensorSlot, fd: int, file: str) -> TensorEntry:
        content = Span(fd, slot.start, slot.end - slot.start)
        digest = _hash(content, digests.tensor_hasher(slot.dtype, slot.shape))
        if self._batch is not None:
            predictions = self._guesses.of(file, slot.name, slot.dtype, slot.shape)
            self._batch.put_tensor(slot.dtype, slot.shape, content, digest, small=True, predictions=predictions)
        return TensorEntry(slot.name, slot.dtype, slot.shape, digest)

    def _progress(self, count: int) -> None:
        self._done += count
        self._report(self._done, self._total)


def _hash(content: Span, hasher: blake3) -> Digest:
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
