"""Commands of the user's own as steps: `mreg run`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")

CHANGE = 'cp "$MREG_INPUT"/* "$MREG_OUTPUT"; echo "{\\"seed\\": $MREG_SEED}" > "$MREG_OUTPUT/config.json"; echo done'


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=ann", "-c", "user.email=ann@host", *arguments], check=True)


def test_a_command_is_a_step_that_is_recorded_cached_and_replayed(ok: Run, run: Run, filled: Path) -> None:
    (filled / "train.sh").write_text(CHANGE)
    git("init", "-q")
    git("add", "train.sh")
    git("commit", "-q", "-m", "train")
    step = ["run", "--from", "base", "--data", "lines", "--as", "mine", "--seed", "3", "--threads", "1"]
    words = ["--", "sh", "train.sh"]

    made = run(*step, "-m", "by hand", "--json", *words).json
    again = run(*step, *words)
    (filled / "train.sh").write_text(f"{CHANGE}\n# changed\n")
    changed = run(*step, "--json", *words).json
    (filled / "train.sh").write_text("exit 1\n")
    replayed = run("replay", "mine")

    assert ("v5", ["v1"], "command", False) == (made["version"], made["parents"], made["transform"], made["cached"])
    assert ("train.sh", ["sh", "train.sh"], str(filled)) == tuple(
        made["params"][key] for key in ("name", "command", "cwd")
    )
    assert 40 == len(made["params"]["commit"])
    assert "answered from the log" in again.out
    assert (False, False) == (changed["cached"], changed["is_new"])
    assert "+# changed" in changed["params"]["diff"]
    assert '{"seed": 3}' == (Path(ok("checkout", "mine", "out")["path"]) / "config.json").read_text().strip()
    assert 0 == replayed.code
    assert f"in a checkout of commit {made['params']['commit'][:12]}" in replayed.out
    assert "code.files" not in replayed.out, "it is what it was"
    assert "by hand" in run("log", "mine").out


def test_outside_git_a_command_is_always_run(run: Run) -> None:
    step = ["run", "--json", "--from", "base", "--threads", "1", "--name", "mine", "--", "sh", "-c", CHANGE]

    first, second = run(*step).json, run(*step).json

    assert (False, False) == (first["cached"], second["cached"])
    assert first["version"] == second["version"]
    assert "mine" == first["params"]["name"]


def test_a_command_that_fails_says_its_last_words_and_leaves_no_version(run: Run, ok: Run) -> None:
    result = run("run", "--from", "base", "--", "sh", "-c", "echo out of luck; exit 3")

    assert 6 == result.code
    assert result.err.startswith("mreg: command failed: sh ended with exit status 3: its last words: out of luck: ")
    assert 1 == result.err.count("\n")
    assert 4 == len(ok("list"))


def test_a_variable_is_handed_on_by_its_value(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")

    planned = run("run", "--json", "--dry-run", "--from", "base", "--env", "COLOUR", "--env", "A=b=c", "true").json

    assert {"COLOUR": "red", "A": "b=c"} == planned["params"]["env"]
    assert 2 == run("run", "--from", "base", "--env", "NOT_THERE", "true").code


def test_a_command_is_asked_for(run: Run) -> None:
    result = run("run", "--from", "base")

    assert 2 == result.code
    assert "COMMAND" in result.err
