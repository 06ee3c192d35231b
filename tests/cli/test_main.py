"""One clear line for whatever goes wrong, and the exit code that the docs promise."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from mreg.cli.main import root

Run = Callable[..., Any]
MREG = [sys.executable, "-m", "mreg.cli.main"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["shwo"], 2, "there is no command 'shwo': did you mean show?"),
        (["log", "--oneliner"], 2, "there is no option --oneliner: did you mean --oneline?"),
        (["ref", "lst"], 2, "there is no command 'lst': did you mean list?"),
        (["log", "--registry", "x"], 2, "--registry stands before the command: mreg --registry … log"),
        (["apply", "--from", "v1"], 2, "--from stands behind the transform"),
        (["apply", "quantise", "--from", "v1"], 4, "did you mean quantize?"),
        (["apply", "quantize"], 2, "missing option '--from'"),
        (["apply", "quantize", "--from", "v1", "--methd", "int8"], 2, "did you mean --method?"),
        (["apply", "quantize", "--from", "v1", "--method", "int9"], 2, "'int9' is not one of 'int8', 'int4'"),
        (["apply", "quantize", "--from", "v1", "--set", "metod=int8"], 2, "did you mean method?"),
        (["apply", "cast", "--from", "v1"], 2, "cast needs --dtype"),
        (["apply", "prune", "--from", "v1"], 2, "give a sparsity such as 0.5"),
        (["apply", "prune", "--from", "v1", "--sparsity", "2"], 2, "2.0 is not in the range 0<=x<1"),
        (["apply", "merge", "--from", "v1", "--with", "othrs=v2"], 2, "no input called 'othrs'"),
        (["show", "v99"], 4, "no version is called 'v99'"),
        (["show", "pord"], 4, "did you mean prod?"),
        (["show", "v1~~"], 4, "goes too far up"),
        (["show", "@{}"], 2, "is not a rev"),
        (["ref", "log", "pord"], 4, "did you mean prod?"),
        (["ref", "set", "No", "v1"], 2, "cannot be a ref's name"),
        (["rollback", "base"], 11, "has nowhere to go back to"),
        (["import", "nothing"], 5, "nothing does not exist"),
        (["data", "add", "nothing.jsonl"], 4, "there is no file nothing.jsonl"),
        (["init"], 3, "there is a registry in"),
        (["--registry", "elsewhere", "log"], 3, "there is no registry in elsewhere"),
        (["sql", "SELEC 1"], 2, "syntax error"),
    ],
)
@pytest.mark.usefixtures("filled")
def test_a_mistake_is_one_line_and_an_exit_code(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run(*arguments)

    assert code == result.code
    assert said in result.err
    assert result.err.startswith("mreg: ")
    assert ("", 1) == (result.out, result.err.count("\n"))


@pytest.mark.parametrize("arguments", [["--json", "ref", "list"], ["ref", "--json", "list"], ["ref", "list", "--json"]])
@pytest.mark.usefixtures("filled")
def test_json_may_stand_anywhere(run: Run, arguments: list[str]) -> None:
    assert ["base", "prod", "sft"] == [one["ref"] for one in run(*arguments).json]


def test_every_command_has_help_json_and_an_example() -> None:
    from mreg.cli.reference import commands

    for path, command in commands():
        page = command.get_help(click.Context(command, info_name=f"mreg {path}", help_option_names=["-h", "--help"]))
        assert "--json" in page, path
        assert "--help" in page, path
        assert "Example" in page, path


def test_every_write_to_the_log_takes_a_message() -> None:
    from mreg.cli.reference import commands

    writes = {"init", "import", "record", "data add", "ref set", "ref delete", "rollback", "replay"}
    writes |= {"eval", "policy set", "policy delete"}

    taking = {path for path, command in commands() if any("--message" in one.opts for one in command.params)}

    assert writes <= taking


@pytest.mark.usefixtures("here")
def test_the_registry_may_come_from_the_environment(run: Run, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MREG_REGISTRY", str(stock))

    assert 0 == run("log").code


def test_a_bug_is_said_to_be_one_and_how_to_see_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stumble() -> None:
        raise KeyError("x")

    monkeypatch.setitem(root.commands, "stumble", stumble)

    result = run("stumble")

    assert 70 == result.code
    assert (
        "mreg: this is a bug in mreg (KeyError: 'x'): set MREG_TRACEBACK=1 to see where, and report it\n" == result.err
    )


def test_a_refusal_of_the_system_names_the_path(run: Run, filled: Path) -> None:
    config = filled / ".mreg" / "config.toml"
    config.unlink()
    config.symlink_to(config)

    result = run("log")

    assert result.code in (3, 9)
    assert 1 == result.err.count("\n")


@pytest.mark.usefixtures("filled")
def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen([*MREG, "events"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    said = process.stderr.read()

    assert (141, b"") == (process.wait(), said)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, b"mreg: interrupted\n"), (signal.SIGTERM, 143, b"mreg: terminated\n")],
)
def test_a_signal_ends_with_its_exit_code_and_one_line(number: int, code: int, said: bytes) -> None:
    hold = (
        "import sys, time, click\nfrom mreg.cli.main import main, root\n"
        "@root.command('dawdle')\ndef dawdle():\n    print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(main(['dawdle']))"
    )
    process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)

    _, printed = process.communicate(timeout=20)

    assert (code, said) == (process.returncode, printed)


@pytest.mark.usefixtures("filled")
def test_a_busy_registry_is_waited_for_as_long_as_asked(run: Run) -> None:
    hold = (
        "import duckdb, sys\nheld = duckdb.connect('.mreg/registry.duckdb')\n"
        "print('ready', flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()

    result = run("--wait", "0.2", "log")

    holder.communicate(b"\n")
    assert 8 == result.code
    assert "was in use by another process for 0.2 s" in result.err
    assert 0 == run("--wait", "0.2", "log").code


@pytest.mark.usefixtures("here")
def test_transforms_are_listed_and_shown_without_a_registry(run: Run) -> None:
    listed = run("transforms", "--json").json
    one = run("transforms", "quantize", "--json").json

    assert "quantize" in [each["name"] for each in listed]
    assert {"name", "summary", "params", "inputs", "determinism"} <= one.keys()
    assert "Options of quantize:" in run("transforms", "quantize").out
