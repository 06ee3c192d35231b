"""Durable file operations: what is written stays written, and a failure of the disk is said in the user's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mreg.registry.errors import MregError


class StorageFailed(MregError):
    """The operating system refused a read or a write: no space, no permission, a failing disk."""

    exit_code = 9


_FIXES = {
    errno.ENOSPC: "free some space and run it again; nothing was recorded",
    errno.EDQUOT: "free some of your quota and run it again; nothing was recorded",
    errno.EFBIG: "the file system or a limit allows no file of that size",
    errno.EACCES: "check the owner and the mode of that path",
    errno.EPERM: "check the owner and the mode of that path",
    errno.EROFS: "the file system is mounted read-only",
}


@contextmanager
def disk_errors(where: Path | str | None = None) -> Iterator[None]:
    """Turn an OSError inside into StorageFailed, naming the path (`where`, when the error has none) and what to do."""
    try:
        yield
    except OSError as error:
        path = error.filename or where
        what = f"{path}: {error.strerror}" if path else f"{error.strerror or error}"
        raise StorageFailed(what, fix=_FIXES.get(error.errno or 0, "check the disk and run it again")) from error


def sync_directory(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, and make it durable. Only one writer at a time may do so.

    What a killed writer left is written over by the next.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
