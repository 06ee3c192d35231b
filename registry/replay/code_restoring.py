"""Code put back as it was when it was recorded: a checkout of its commit, with what was changed since.

The repository that it came from is only read: the copy borrows its objects, and nothing is written into it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mreg.registry import digests
from mreg.registry.errors import Refused
from mreg.registry.runs import code_state
from mreg.registry.runs.code_state import CodeState

_SUBMODULE = "160000"


def restore(state: CodeState, named: Sequence[str], folder: Path | None) -> Path:
    """Put recorded code into `folder`, a new one, and return the folder that `state.directory` was in it.

    `named` are the words of the command line that the state was recorded for. Without a folder it is only looked
    whether all of it is there. Code in no git commit stays where it is, and must be what it was. Raises Refused.
    """
    if not state.commit:
        for path, digest in state.files.items():
            _check_file(state.directory / path, digest)
        if not state.directory.is_dir():
            raise Refused(f"there is no folder {state.directory} any more", fix="put it back")
        return state.directory
    top, inside = _repository(state)
    _check_commit(top, state.commit)
    loose = [path for path in state.files if not _is_kept(top, inside, state, path)]
    for path in loose:
        if os.path.normpath(inside / path).startswith(os.pardir):
            raise Refused(
                f"{path} lies outside of the repository, where a copy of the code would not find it",
                fix="name it by its full path",
            )
        _check_file(state.directory / path, state.files[path])
    if folder is None:
        return state.directory
    _check_out(top, state, folder)
    place = folder / inside
    place.mkdir(parents=True, exist_ok=True)
    for path in loose:
        if not Path(path).is_absolute():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(state.directory / path, place / path)
    _check_same(state, code_state.look(place, named))
    return place


def _repository(state: CodeState) -> tuple[Path, Path]:
    """The work tree that a folder was in, and the path of the folder in it. The folder itself may be gone."""
    missing = f"the git repository of {state.directory} is not there any more"
    fix = f"put it back, with the commit {state.commit[:12]} in it"
    there = next((one for one in (state.directory, *state.directory.parents) if one.is_dir()), None)
    found = _git(there, "rev-parse", "--show-toplevel").strip() if there is not None else ""
    if not found:
        raise Refused(missing, fix=fix)
    top, place = Path(found), Path(os.path.realpath(state.directory))
    if not place.is_relative_to(top):
        raise Refused(missing, fix=fix)
    return top, place.relative_to(top)


def _check_commit(top: Path, commit: str) -> None:
    if not _does(top, "cat-file", "-e", f"{commit}^{{commit}}"):
        raise Refused(f"the commit {commit[:12]} is not in {top} any more", fix="fetch it there again")


def _is_kept(top: Path, inside: Path, state: CodeState, path: str) -> bool:
    """Whether the commit or the recorded changes have a file, by its path from the recorded folder."""
    whole = os.path.normpath(inside / path)
    return _does(top, "cat-file", "-e", f"{state.commit}:{whole}") or f"\n+++ b/{whole}\n" in state.diff


def _check_file(path: Path, digest: str) -> None:
    if not path.is_file():
        raise Refused(f"{path} is not there any more, and in no git commit", fix="put it back")
    if digests.file_hasher().update_mmap(path).hexdigest() != digest:
        raise Refused(f"{path} is not what it was, and in no git commit", fix="put it back as it was")


def _check_out(top: Path, state: CodeState, folder: Path) -> None:
    """A work tree of its own at the commit, with the recorded changes, that borrows the objects of `top`."""
    short = state.commit[:12]
    objects = Path(_git(top, "rev-parse", "--path-format=absolute", "--git-path", "objects").strip())
    # Without this machine's templates, which may bring hooks.
    kind = _git(top, "rev-parse", "--show-object-format").strip()
    _do(None, "init", "--quiet", "--template=", f"--object-format={kind}", os.fspath(folder), doing="set up")
    (folder / ".git" / "objects" / "info").mkdir(parents=True, exist_ok=True)
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{objects}\n", encoding="utf-8")
    if _SUBMODULE in {line.split(" ", 1)[0] for line in _git(folder, "ls-tree", "-r", state.commit).splitlines()}:
        raise Refused(f"the commit {short} has submodules, which are not put back", fix="record it without them")
    _do(folder, "checkout", "--quiet", "--detach", state.commit, doing=f"check out {short}")
    if state.diff:
        # Into the index too: a file that was new there then is one that git knows now.
        words = ("apply", "--index", "--whitespace=nowarn", "-")
        _do(folder, *words, doing=f"put the changes that were made after {short} back", stdin=state.diff)


def _check_same(state: CodeState, now: CodeState) -> None:
    """Nothing is run in something that only resembles what was recorded."""
    if now.diff != state.diff:
        raise Refused("the changes that were not committed do not come out as they were", fix="commit before a run")
    if now.files != state.files:
        path = next(path for path in sorted({*now.files, *state.files}) if now.files.get(path) != state.files.get(path))
        raise Refused(f"{path} does not come out as it was", fix="commit it before a run")


def _git(directory: Path, *words: str) -> str:
    done = _run(directory, words)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _does(directory: Path, *words: str) -> bool:
    done = _run(directory, words)
    return done is not None and done.returncode == 0


def _do(directory: Path | None, *words: str, doing: str, stdin: str | None = None) -> None:
    done = _run(directory, words, stdin)
    if done is None or done.returncode:
        said = "there is no git" if done is None else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Refused(f"git cannot {doing} ({said})", fix="see whether `git fsck` finds something in that repository")


def _run(
    directory: Path | None, words: Sequence[str], stdin: str | None = None
) -> subprocess.CompletedProcess[str] | None:
    where = () if directory is None else ("-C", os.fspath(directory))
    try:
        return subprocess.run(  # noqa: S603  no word of it is from outside
            ["git", "--no-optional-locks", "-c", "core.hooksPath=/dev/null", *where, *words],  # noqa: S607  the user's
            capture_output=True,
            input=stdin or "",
            encoding="utf-8",
            errors="surrogateescape",
        )
    except OSError:
        return None
