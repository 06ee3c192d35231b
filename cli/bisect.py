"""`mreg bisect`: the step that broke it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, steps, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column
from mreg.registry.errors import MregError

if TYPE_CHECKING:
    from mreg.registry.bisecting import Bisected, Judge, Tested, ToTest
    from mreg.registry.bisection import Answer
    from mreg.registry.versions import Version

SKIP, NOT_EXECUTABLE, NOT_FOUND, SIGNALLED = 125, 126, 127, 128

COLOURS = {"good": "green", "bad": "red", "skip": "magenta"}


class BrokenTest(MregError):
    """The command that tests a version could not be run, or was killed."""

    exit_code = 12


@click.command(
    cls=Command,
    short_help="Find the first version that is broken, with the fewest tests.",
    context_settings={"allow_interspersed_args": False},
    options_metavar="--good REV --bad REV [OPTIONS] --",
    example="mreg bisect --good v1 --bad prod -- python check.py\n"
    "mreg bisect --good v1 --bad prod --flaky 0.1 -- sh -c 'test-answers $MREG_MODEL'",
)
@click.option("--good", metavar="REV", multiple=True, required=True, help="A version that works; repeat it for more.")
@click.option("--bad", metavar="REV", required=True, help="A version that does not.")
@click.option(
    "--flaky",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    metavar="P",
    help="How often one test is wrong; each version is then tested until its answer can be believed.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1, max_open=True, min_open=True),
    default=0.95,
    show_default=True,
    metavar="P",
    help="That a flaky test leads to the right step.",
)
@click.option("--fresh", is_flag=True, help="Ask again what an interrupted search has asked already.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, help="The program and its arguments.")
@click.pass_obj
def bisect(
    call: Call,
    good: Sequence[str],
    bad: str,
    flaky: float,
    confidence: float,
    fresh: bool,
    command: tuple[str, ...],
) -> int:
    """Find the step that broke it: a version that is bad though everything that it was made from is good.

    The command is run on checkouts of versions between the two, which it finds in $MREG_MODEL. It says good with exit
    code 0, bad with 1 to 124, and 125 for a version that it cannot judge. Merges are followed through all their
    parents. A search that is interrupted goes on where it was when it is started again.

    Exits with 0 when one step is found, with 1 when several are left because the versions between could not be judged.
    """
    with call.open() as registry:
        found = registry.bisect(
            [registry.version(rev) for rev in good],
            bad,
            _judge(command),
            asked=shlex.join(command),
            error_rate=flaky,
            confidence=confidence,
            fresh=fresh,
            report=_tell_test,
        )
        rows = {row["digest"]: row for row in registry.listing()}
    _tell(call, found, rows)
    return 0 if len(found.first_bad) == 1 else 1


def _judge(command: Sequence[str]) -> Judge:
    """Runs the command once. What it prints goes to standard error, so that ours is the result alone."""

    def ask(version: Version, folder: Path) -> Answer:
        variables = {**os.environ, "MREG_MODEL": str(folder), "MREG_VERSION": version.name}
        try:
            code = subprocess.run(command, env=variables, stdout=sys.stderr, check=False).returncode  # noqa: S603  the user's own
        except OSError as error:
            raise BrokenTest(f"{command[0]} cannot be run ({error.strerror})", fix="check its name and mode") from error
        if code in (NOT_EXECUTABLE, NOT_FOUND) or code < 0 or code >= SIGNALLED:
            said = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise BrokenTest(
                f"the test of {version} ended with {said}, which says neither good nor bad",
                fix="end with 0 for good, 1 for bad, 125 to skip; run it again to go on",
            )
        return "good" if code == 0 else "skip" if code == SKIP else "bad"

    return ask


def _tell_test(said: ToTest | Tested) -> None:
    from mreg.registry.bisecting import ToTest

    if isinstance(said, ToTest):
        left = text.plural(said.suspects, "suspect")
        screen.note(
            f"testing {said.version}: {left}, {said.at_least} more {'test' if said.at_least == 1 else 'tests'} or so"
        )
    else:
        screen.note(f"{said.version} is {screen.ink(said.answer, COLOURS[said.answer], bold=True)}")


def _tell(call: Call, found: Bisected, rows: dict[Any, Any]) -> None:
    if call.json:
        names = [version.name for version in found.first_bad]
        screen.emit(
            {
                "first_bad": names[0] if len(names) == 1 else None,
                "candidates": names,
                "tested": [
                    {"version": one.version.name, "answer": one.answer, "good": one.good, "bad": one.bad}
                    for one in found.tested
                ],
                "confidence": found.confidence,
                "resumed": found.resumed,
            }
        )
        return
    screen.table(
        [Column("version"), Column("answer"), Column("tests", right=True), Column("step", flexible=True)],
        [
            [
                screen.ink(one.version.name, "yellow"),
                screen.ink(one.answer, COLOURS[one.answer]),
                str(one.good + one.bad + (one.answer == "skip")),
                steps.summary(rows[one.version.digest]),
            ]
            for one in found.tested
        ],
    )
    sure = f", with {text.percent(found.confidence)} confidence" if found.confidence < 1 else ""
    if len(found.first_bad) == 1:
        (culprit,) = found.first_bad
        shown = screen.ink(culprit.name, "yellow", bold=True)
        screen.line(f"\n{shown} is the first bad version{sure}: {steps.summary(rows[culprit.digest])}")
        screen.hint(f"mreg show {culprit}")
    else:
        left = ", ".join(version.name for version in found.first_bad)
        screen.line(f"\nthe first bad version is one of {left}; the versions between could not be judged")
