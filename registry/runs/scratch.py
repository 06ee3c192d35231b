"""Scratch folders: where a run's inputs and output live while it works, held by a lock that dies with its process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from mreg.registry import files


@contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """A new folder `.mreg/tmp/<name>`, ours while inside, removed at the end."""
    folder = root / "tmp" / name
    lock = FileLock(root / "tmp" / f"{name}.lock")
    with files.disk_errors():
        folder.parent.mkdir(exist_ok=True)
        lock.acquire()
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def is_alive(root: Path, name: str) -> bool:
    """Whether a process still holds the scratch folder of this name."""
    path = root / "tmp" / f"{name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def sweep(root: Path) -> list[str]:
    """Remove the scratch folders whose process is gone; return their names."""
    removed = []
    for folder in sorted((root / "tmp").glob("*")):
        if folder.is_dir() and not is_alive(root, folder.name):
            shutil.rmtree(folder, ignore_errors=True)
            (root / "tmp" / f"{folder.name}.lock").unlink(missing_ok=True)
            removed.append(folder.name)
    return removed
