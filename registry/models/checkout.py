"""A version put back on disk: every file byte for byte as it came in, or no folder at all."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate
from pathlib import Path

from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.files import disk_errors
from mreg.registry.models.intake import Done, unheard
from mreg.registry.models.manifest import FileEntry, Manifest
from mreg.registry.plain import shown
from mreg.registry.store.contents import Content
from mreg.registry.store.objects import DamagedObject, ObjectStore
from mreg.registry.store.spans import Span, write_all_at

_WORKERS = min(8, os.cpu_count() or 1)

_OPEN = 96
"""Objects that are open, and read from the disk, ahead of those that are done."""


class DestinationTaken(MregError):
    """Something is already where the checkout should go."""

    exit_code = 2


def check_out(
    manifest: Manifest,
    store: ObjectStore,
    destination: Path,
    report: Done = unheard,
) -> None:
    """Write a version's files into `destination`, which must not exist or be an empty folder.

    It appears whole or not at all: the files are written beside it, verified and renamed into place. When they reach
    the disk is left to the system, as `cp` and `git checkout` do: the store has what a power cut takes. Raises
    DestinationTaken, MissingObject, DamagedObject or StorageFailed.
    """
    if os.path.lexists(destination) and not _is_empty_folder(destination):
        raise DestinationTaken(f"{shown(str(destination))} is already there", fix="name a new or an empty folder")
    with disk_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{destination.name[:100]}.{secrets.token_hex(4)}.part")
        temporary.mkdir()
    try:
        _write_files(manifest, store, temporary, report)
        with disk_errors(destination):
            temporary.rename(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_files(manifest: Manifest, store: ObjectStore, folder: Path, report: Done) -> None:
    done, total = 0, manifest.size
    counting = threading.Lock()
    for file in manifest.files:
        path = folder / file.path

        def progress(count: int) -> None:
            nonlocal done
            with counting:
                done += count
                report(done, total)

        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                _write_file(file, store, fd, path, progress)
            finally:
                os.close(fd)


def _write_file(file: FileEntry, store: ObjectStore, fd: int, path: Path, progress: Callable[[int], None]) -> None:
    if file.header is None:
        store.copy_to(file.digest, _writer(fd, 0, path, progress))
        return
    header = file.header.encode()
    head = len(header).to_bytes(8, "little") + header
    _writer(fd, 0, path, progress)(memoryview(head))
    starts = list(accumulate((tensor.size for tensor in file.tensors), initial=len(head)))[:-1]
    whole = digests.file_hasher()
    whole.update(head)
    # Tensors are decoded beside each other, each to its own place; the file is hashed behind them, as it was written,
    # which proves where they lie too.
    with ThreadPoolExecutor(_WORKERS) as pool:
        begun: deque[tuple[Span, Content, Future[None]]] = deque()

        def finish() -> None:
            span, _, done = begun[0]
            done.result()
            with disk_errors(path):
                for chunk in span.chunks():
                    whole.update(chunk)
            begun.popleft()

        try:
            for tensor, start in zip(file.tensors, starts, strict=True):
                content = store.content(tensor.digest)
                content.expect()
                write = _writer(fd, start, path, progress)
                done = pool.submit(_decode, store, tensor.digest, content, write)
                begun.append((Span(fd, start, content.envelope.size), content, done))
                while sum(content.files for _, content, _ in begun) > _OPEN:
                    finish()
            while begun:
                finish()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            for _, content, done in begun:
                if done.cancelled():
                    content.close()
            raise
    if whole.hexdigest() != file.digest:
        for tensor in file.tensors:
            store.copy_to(tensor.digest, lambda _chunk: None)
        raise DamagedObject(
            f"the parts of {file.path} are sound, but together they are not the file that was recorded",
            fix="`mreg fsck` says what is wrong; import the model again",
        )


def _decode(store: ObjectStore, digest: Digest, content: Content, write: Callable[[memoryview], None]) -> None:
    with closing(content):
        for chunk in store.chunks(digest, content):
            write(chunk)


def _writer(fd: int, start: int, path: Path, progress: Callable[[int], None]) -> Callable[[memoryview], None]:
    """What writes one chunk after another into an open file, from `start` on."""
    at = start

    def write(chunk: memoryview) -> None:
        nonlocal at
        with disk_errors(path):
            write_all_at(fd, chunk, at)
        at += len(chunk)
        progress(len(chunk))

    return write


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
