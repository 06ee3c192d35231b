"""The reference pages say what the commands say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mreg.cli import reference

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["commands.md", "exit-codes.md"])
def test_a_generated_page_is_up_to_date(page: str) -> None:
    # Without the transforms from outside that other tests have installed for themselves.
    process = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", str(DOCS / page)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )

    assert 0 == process.returncode, f"{process.stdout}{process.stderr}: run `make docs`"


def test_every_command_is_documented() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")

    assert [] == [path for path, _ in reference.commands() if f"## mreg {path}\n" not in page]


def test_every_error_says_what_it_is_and_has_a_documented_exit_code() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")

    undocumented = [error.__name__ for error in reference.errors() if f"{error.__name__}: " not in page]
    assert [] == undocumented
