"""What code there is in a folder: the git commit, what was changed since, and digests of files that git does not keep.

It is recorded beside what that code made, so that a model can be traced to the lines that trained it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mreg.registry import digests
from mreg.registry.errors import MregError

LONGEST = 1_000_000
"""Characters of a diff that are kept."""

_CODE = (".py", ".sh", ".toml", ".yaml", ".yml", ".cfg", ".ini")
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--src-prefix=a/", "--dst-prefix=b/")


class TooMuchChanged(MregError):
    """The changes since the last commit are too long to be recorded."""

    exit_code = 2


@dataclass(frozen=True)
class CodeState:
    """Code at one moment. `commit` is empty outside a git work tree; `files` maps paths to the BLAKE3 of the bytes."""

    directory: Path
    commit: str = ""
    diff: str = ""
    files: dict[str, str] = field(default_factory=dict)

    def changes(self) -> str:
        """The diff. Raises TooMuchChanged when it is longer than the log takes."""
        if len(self.diff) > LONGEST:
            raise TooMuchChanged(
                f"{self.directory} has {len(self.diff):,} characters of uncommitted changes",
                fix=f"commit them first; no more than {LONGEST:,} can be recorded",
            )
        return self.diff

    def described(self) -> dict[str, Any]:
        """The state for an environment, with the digest of the diff in its place."""
        return {
            "commit": self.commit,
            "diff": digests.of_bytes(self.diff.encode()) if self.diff else "",
            "files": self.files,
        }


def look(directory: Path, named: Sequence[str] = ()) -> CodeState:
    """The state of the code in a folder.

    `files` are those that the words of a command line in `named` mean, and scripts and settings that are not in git.
    """
    # Unlike Path.is_file, it takes a whole program in a word for no file instead of for a bad name.
    words = [word for word in named if os.path.isfile(directory / word)]  # noqa: PTH113
    commit = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD").strip()
    if not commit:
        return CodeState(directory, files=_digests(directory, words))
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    loose = [path for path in untracked if path.endswith(_CODE) and (directory / path).is_file()]
    return CodeState(directory, commit, _git(directory, *_DIFF, "HEAD"), _digests(directory, {*words, *loose}))


def _git(directory: Path, *arguments: str) -> str:
    """What git says; nothing where there is no git or no commit."""
    try:
        # Git looks at what is there and takes no lock on somebody's index.
        done = subprocess.run(  # noqa: S603  no word of it is from outside
            ["git", "--no-optional-locks", "-C", os.fspath(directory), *arguments],  # noqa: S607  the user's own git
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
    except OSError:
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _digests(directory: Path, paths: Iterable[str]) -> dict[str, str]:
    return {path: digests.file_hasher().update_mmap(directory / path).hexdigest() for path in sorted(paths)}
