"""Code put back as it was recorded, or refused with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from mreg.registry.errors import Refused
from mreg.registry.replay.code_restoring import restore
from mreg.registry.runs import code_state

COMMAND = ("python", "train.py", "rows.txt")


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@host")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder in a repository, with a commit of a script, and rows that git does not know."""
    folder = tmp_path / "repository" / "training"
    folder.mkdir(parents=True)
    git(folder.parent, "init", "-q")
    (folder / "train.py").write_text("rate = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    (folder / "rows.txt").write_text("one\n")
    return folder


def go_on(place: Path) -> None:
    """Commit something else, as people do after a run."""
    (place / "train.py").write_text("rate = 9\n")
    git(place, "commit", "-q", "-a", "-m", "later")


def test_a_commit_comes_back_in_a_folder_of_its_own_with_the_files_that_git_does_not_know(place: Path, tmp_path: Path):
    state = code_state.look(place, COMMAND)
    go_on(place)
    before = git(place, "status", "--short"), git(place, "rev-parse", "HEAD")

    again = restore(state, COMMAND, tmp_path / "again")

    assert tmp_path / "again" / "training" == again
    assert ("rate = 1\n", "one\n") == ((again / "train.py").read_text(), (again / "rows.txt").read_text())
    assert state.described() == code_state.look(again, COMMAND).described()
    assert before == (git(place, "status", "--short"), git(place, "rev-parse", "HEAD"))
    assert "rate = 9\n" == (place / "train.py").read_text()


def test_what_was_not_committed_comes_back_too(place: Path, tmp_path: Path):
    (place / "train.py").write_text("rate = 2\n")
    (place / "added.py").write_text("new = 1\n")
    git(place, "add", "added.py")
    (place / "loose.py").write_text("loose = 1\n")
    state = code_state.look(place, COMMAND)
    go_on(place)

    again = restore(state, COMMAND, tmp_path / "again")

    assert ["rate = 2\n", "new = 1\n", "loose = 1\n"] == [
        (again / name).read_text() for name in ("train.py", "added.py", "loose.py")
    ]
    assert state.described() == code_state.look(again, COMMAND).described()


def test_a_folder_that_was_removed_since_comes_back_from_its_repository(place: Path, tmp_path: Path):
    (place / "rows.txt").unlink()
    state = code_state.look(place, COMMAND)
    shutil.rmtree(place)

    again = restore(state, COMMAND, tmp_path / "again")

    assert "rate = 1\n" == (again / "train.py").read_text()


def test_it_can_be_asked_without_doing_it(place: Path):
    state = code_state.look(place, COMMAND)
    go_on(place)

    assert place == restore(state, COMMAND, None)
    (place / "rows.txt").write_text("two\n")
    with pytest.raises(Refused, match=r"rows\.txt is not what it was, and in no git commit"):
        restore(state, COMMAND, None)


def test_a_file_that_is_gone_is_named(place: Path, tmp_path: Path):
    state = code_state.look(place, COMMAND)
    (place / "rows.txt").unlink()

    with pytest.raises(Refused, match=r"rows\.txt is not there any more"):
        restore(state, COMMAND, tmp_path / "again")


def test_a_repository_that_is_gone_is_named_with_the_commit_it_must_have(place: Path, tmp_path: Path):
    state = code_state.look(place, COMMAND)
    shutil.rmtree(place.parent)

    with pytest.raises(Refused, match=rf"the git repository of .* is not there any more: .*{state.commit[:12]}"):
        restore(state, COMMAND, tmp_path / "again")


def test_a_commit_that_is_gone_is_named(place: Path, tmp_path: Path):
    state = code_state.look(place, COMMAND)
    shutil.rmtree(place.parent / ".git")
    git(place.parent, "init", "-q")

    with pytest.raises(Refused, match=f"the commit {state.commit[:12]} is not in"):
        restore(state, COMMAND, tmp_path / "again")


def test_a_change_that_cannot_be_put_back_is_refused(place: Path, tmp_path: Path):
    (place / "picture.py").write_bytes(b"\0\1")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "a binary file")
    (place / "picture.py").write_bytes(b"\0\2")
    state = code_state.look(place, ("python", "train.py"))

    with pytest.raises(Refused, match="put the changes that were made after"):
        restore(state, ("python", "train.py"), tmp_path / "again")


def test_a_file_outside_of_the_repository_is_found_by_its_full_path_alone(place: Path, tmp_path: Path):
    (tmp_path / "outside.txt").write_text("rows\n")
    full, relative = str(tmp_path / "outside.txt"), "../../outside.txt"

    whole = restore(code_state.look(place, ("cat", full)), ("cat", full), tmp_path / "again")

    assert (tmp_path / "again" / "training") == whole
    with pytest.raises(Refused, match="lies outside of the repository"):
        restore(code_state.look(place, ("cat", relative)), ("cat", relative), tmp_path / "once more")


def test_a_submodule_is_refused(place: Path, tmp_path: Path):
    commit = git(place, "rev-parse", "HEAD")
    git(place, "update-index", "--add", "--cacheinfo", f"160000,{commit},lib")
    git(place, "commit", "-q", "-m", "with a submodule")
    (place / "lib").mkdir(exist_ok=True)
    state = code_state.look(place, ("python", "train.py"))

    with pytest.raises(Refused, match="has submodules"):
        restore(state, ("python", "train.py"), tmp_path / "again")


def test_code_in_no_commit_stays_where_it_is_and_must_be_what_it_was(tmp_path: Path):
    (tmp_path / "train.py").write_text("rate = 1\n")
    state = code_state.CodeState(tmp_path, files=code_state.look(tmp_path, ["train.py"]).files)

    assert tmp_path == restore(state, ["train.py"], tmp_path / "again")
    (tmp_path / "train.py").write_text("rate = 2\n")
    with pytest.raises(Refused, match=r"train\.py is not what it was"):
        restore(state, ["train.py"], tmp_path / "again")
