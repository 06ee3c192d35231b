"""Where else a version could be put: a copy and its checksum, and git-lfs, DVC and borg where they are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

BORG = {**os.environ, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}


class Keeper(Protocol):
    """Something that keeps versions. `add` and `check_out` are what is timed; `lay` is not."""

    name: str

    def lay(self, version: str, folder: Path) -> None:
        """Put a version where it must lie to be added, for those that do not take it from anywhere."""

    def add(self, version: str, folder: Path) -> None:
        """Keep what lies in `folder` as a version."""

    def check_out(self, version: str, folder: Path) -> None:
        """Bring a version back into a new folder."""

    def stored(self) -> int:
        """The bytes that all versions take so far."""


def size_of(folder: Path) -> int:
    """The bytes of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(words: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a command to its end; it must succeed."""
    subprocess.run([str(word) for word in words], cwd=cwd, env=env, check=True, capture_output=True)


class Copies:
    """`cp` and `sha256sum`: what one does without any tool."""

    name = "cp + sha256sum"

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["cp", "-r", folder, self.root / version], self.root)
        run(["sha256sum", *sorted(path for path in folder.iterdir() if path.is_file())], self.root)

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["cp", "-r", self.root / version, folder], self.root)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.root)


class GitLfs:
    """A commit for each version, its weights in git-lfs."""

    name = "git-lfs"

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        for words in (["init", "-q"], ["lfs", "install", "--local"], ["lfs", "track", "*.safetensors"]):
            run(["git", *words], root)
        run(["git", "add", ".gitattributes"], root)
        self._commit("begin")

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        for path in self.root.iterdir():
            if path.is_file() and path.name != ".gitattributes":
                path.unlink()
        run(["cp", "-r", f"{folder}/.", self.root], self.root)

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["git", "add", "-A"], self.root)
        self._commit(version)
        run(["git", "tag", version], self.root)

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["git", "worktree", "add", "-f", folder, version], self.root)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.root / ".git")

    def _commit(self, message: str) -> None:
        who = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        run(["git", *who, "commit", "-q", "--allow-empty", "-m", message], self.root)


class Dvc:
    """`dvc add` of each version's folder, as it comes, which copies where the file system has no reflinks."""

    name = "DVC"

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        run(["dvc", "init", "-q", "--no-scm"], root)

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["cp", "-r", folder, self.root / version], self.root)

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["dvc", "add", "-q", version], self.root)

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        shutil.rmtree(self.root / version, ignore_errors=True)
        run(["dvc", "checkout", "-q", f"{version}.dvc"], self.root)
        (self.root / version).rename(folder)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.root / ".dvc" / "cache")


class DvcLinks(Dvc):
    """The same, told to make hard links into its cache: nothing is copied, and who edits a file edits the cache."""

    name = "DVC, hard links"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        run(["dvc", "config", "cache.type", "hardlink"], root)


class Borg:
    """`borg create` with zstd."""

    name = "borg, zstd-3"

    def __init__(self, root: Path) -> None:
        self.root = root
        run(["borg", "init", "-e", "none", root], root.parent, BORG)

    def lay(self, version: str, folder: Path) -> None:
        """See `Keeper`."""

    def add(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        run(["borg", "create", "-C", "zstd,3", f"{self.root}::{version}", "."], folder, BORG)

    def check_out(self, version: str, folder: Path) -> None:
        """See `Keeper`."""
        folder.mkdir()
        run(["borg", "extract", f"{self.root}::{version}"], folder, BORG)

    def stored(self) -> int:
        """See `Keeper`."""
        return size_of(self.root)


def installed(here: Path) -> Iterator[Keeper]:
    """What can be compared with on this machine, each keeping its versions in a folder of its own."""
    yield Copies(here / "copies")
    if shutil.which("git-lfs"):
        yield GitLfs(here / "git-lfs")
    if shutil.which("dvc"):
        yield Dvc(here / "dvc")
        yield DvcLinks(here / "dvc-links")
    if shutil.which("borg"):
        yield Borg(here / "borg")
