"""What a person sees on a terminal, and a pipe does not."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.histories import imported, made

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

pytestmark = pytest.mark.usefixtures("filled")


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """What `mreg` writes to a terminal of this width, standard output and error together."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    outer = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mreg.cli.main", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**outer, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            read = os.read(master, 65536)
        except OSError:  # How Linux tells that the other end is closed.
            break
        if not read:
            break
        shown += read
    process.wait()
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


def test_people_get_colour_and_pipes_do_not(run: Callable[..., Any]) -> None:
    assert ESCAPE.search(on_terminal("log"))
    assert not ESCAPE.search(run("log").out)


def test_colour_can_be_turned_off() -> None:
    assert not ESCAPE.search(on_terminal("log", NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_text(run: Callable[..., Any]) -> None:
    assert run("list").out == on_terminal("list", TERM="dumb")


def test_a_table_says_the_same_on_a_terminal_as_in_a_pipe(run: Callable[..., Any]) -> None:
    table = ESCAPE.sub("", on_terminal("ref", "list"))

    piped = [line.split() for line in run("ref", "list").out.splitlines()]
    assert piped == [line.split() for line in table.splitlines() if "─" not in line]


@pytest.mark.parametrize("command", [["log", "--oneline"], ["log", "--graph"], ["lineage", "v1"], ["list"]])
def test_lines_fit_the_terminal(command: list[str]) -> None:
    lines = ESCAPE.sub("", on_terminal(*command, columns=60)).splitlines()

    assert max(map(len, lines)) <= 60


def test_a_line_that_is_cut_says_so(run: Callable[..., Any]) -> None:
    (line,) = ESCAPE.sub("", on_terminal("log", "v1", "--oneline", columns=40)).splitlines()

    assert line.endswith("…")
    assert run("log", "v1", "--oneline").out.startswith(line[:-1])


def test_markup_in_a_message_is_only_text(run: Callable[..., Any]) -> None:
    run("ref", "set", "prod", "v1", "-m", "[bold red]:skull:[/]")

    assert "[bold red]:skull:[/]" in ESCAPE.sub("", on_terminal("ref", "log", "prod", columns=200))


def test_a_long_check_shows_progress_and_leaves_no_trace_of_it_in_a_pipe(run: Callable[..., Any]) -> None:
    assert "" == run("fsck").err


def test_what_is_left_out_of_a_log_is_said_to_people(run: Callable[..., Any], told: Callable[..., Path]) -> None:
    shutil.rmtree(".mreg")
    told(imported(1), *(made(number, number - 1) for number in range(2, 61)))

    shown = ESCAPE.sub("", on_terminal("log", "--oneline", columns=120)).splitlines()

    assert 51 == len(shown)
    assert shown[-1].startswith("10 older versions are left out")
    assert "" == run("log").err
