"""The state of code: what git knows, what was changed since, and what git does not know."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from mreg.registry.runs import code_state
from mreg.registry.runs.code_state import LONGEST, CodeState, TooMuchChanged


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=ann", "-c", "user.email=ann@host")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train.py").write_text("rate = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_clean_work_tree_is_its_commit(repository: Path):
    state = code_state.look(repository)

    assert CodeState(repository, git(repository, "rev-parse", "HEAD")) == state
    assert "" == state.described()["diff"]


def test_uncommitted_changes_are_kept_whole_and_described_by_a_digest(repository: Path):
    (repository / "train.py").write_text("rate = 2\n")

    state = code_state.look(repository)

    assert "-rate = 1\n+rate = 2\n" in state.changes()
    assert 64 == len(state.described()["diff"])


def test_files_that_are_not_in_git_are_known_by_their_digest(repository: Path):
    (repository / "new.py").write_text("1")
    (repository / "weights.bin").write_text("2")
    (repository / "rows.jsonl").write_text("3")

    state = code_state.look(repository, ["python", "train.py", "rows.jsonl", "--epochs", "3"])

    assert ["new.py", "rows.jsonl", "train.py"] == sorted(state.files)


def test_a_script_outside_git_is_known_by_its_digest(tmp_path: Path):
    (tmp_path / "train.py").write_text("1")
    before = code_state.look(tmp_path, ["python", "train.py"])
    (tmp_path / "train.py").write_text("2")
    after = code_state.look(tmp_path, ["python", "train.py"])

    assert ("", "") == (before.commit, before.diff)
    assert before.files != after.files


def test_changes_that_are_too_long_for_the_log_are_refused_with_the_way_out(repository: Path):
    (repository / "train.py").write_text("rate = 2\n" * LONGEST)

    with pytest.raises(TooMuchChanged, match="uncommitted changes: commit them first"):
        code_state.look(repository).changes()
