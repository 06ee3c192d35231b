"""`mreg bisect`: the step that broke it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, steps, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column
from mreg.registry.errors import MregError

if TYPE_CHECKING:
    from mreg.registry.chains.bisecting import Bisected, Judge, Tested, ToTest
    from mreg.registry.chains.bisection import Answer
    from mreg.registry.chains.opinions import Opinion
    from mreg.registry.registry import Registry
    from mreg.registry.transform import Report
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
    "mreg bisect --good v1 --bad prod --metric 'perplexity(general)' --below '1.1 * v1'\n"
    "mreg bisect --good v1 --bad prod --prompt 'The capital of France is' --expect Paris\n"
    "mreg bisect --good v1 --bad prod --flaky 0.1 -- sh -c 'test-answers $MREG_MODEL'",
)
@click.option("--good", metavar="REV", multiple=True, required=True, help="A version that works; repeat it for more.")
@click.option("--bad", metavar="REV", required=True, help="A version that does not.")
@click.option(
    "--metric", metavar="NAME(DATA)", help="Judge by this, measured as mreg eval does; what is known is not measured."
)
@click.option("--below", metavar="X", help="Good is a metric below this: a number, or such as '1.1 * v1'.")
@click.option("--above", metavar="X", help="Good is a metric above this.")
@click.option("--prompt", metavar="TEXT", help="Judge by how a version goes on from this, always with the likeliest.")
@click.option("--expect", metavar="TEXT", help="Good is what says this.")
@click.option("--reject", metavar="TEXT", help="Good is what does not say this.")
@click.option("--chat", is_flag=True, help="Put the prompt as a turn of a conversation.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    metavar="N",
    help="How far a version goes on from the prompt.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", show_default="all cores", help="For measuring.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="For measuring; such as cpu or cuda.")
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
@click.argument("command", nargs=-1, type=click.UNPROCESSED, help="The program and its arguments.")
@click.pass_obj
def bisect(
    call: Call,
    /,
    good: Sequence[str],
    bad: str,
    flaky: float,
    confidence: float,
    fresh: bool,
    command: tuple[str, ...],
    **asked: Any,
) -> int:
    """Find the step that broke it: a version that is bad though everything that it was made from is good.

    The command is run on checkouts of versions between the two, which it finds in $MREG_MODEL. It says good with exit
    code 0, bad with 1 to 124, and 125 for a version that it cannot judge. Merges are followed through all their
    parents. A search that is interrupted goes on where it was when it is started again.

    In place of a command, a --metric with a bound judges, or what a version says to a --prompt. Then nothing is checked
    out that need not be, and scores that the log has are used first.

    Exits with 0 when one step is found, with 1 when several are left because the versions between could not be judged.
    """
    _check_asked(command, asked, flaky)
    with call.open() as registry, progress.of_run("measuring", at_once=False) as report:
        versions = [registry.version(rev) for rev in good]
        registry.version(bad)
        found = registry.bisect(
            versions,
            bad,
            _judge(command) if command else _opinion(registry, asked, versions, report),
            asked=shlex.join(command),
            error_rate=flaky,
            confidence=confidence,
            fresh=fresh,
            report=_tell_test,
        )
        rows = {row["digest"]: row for row in registry.listing()}
    _tell(call, found, rows)
    return 0 if len(found.first_bad) == 1 else 1


def _check_asked(command: Sequence[str], asked: Mapping[str, Any], flaky: float) -> None:
    """Whether one thing judges, with what belongs to it."""
    ways = [bool(command), asked["metric"] is not None, asked["prompt"] is not None]
    if sum(ways) != 1:
        raise click.UsageError("give either a command after --, or --metric, or --prompt")
    belong = {"metric": ("below", "above"), "prompt": ("expect", "reject", "chat")}
    for way, options in belong.items():
        for option in options:
            if asked[option] not in (None, False) and asked[way] is None:
                raise click.UsageError(f"--{option} belongs to --{way}")
    if asked["metric"] is not None and (asked["below"] is None) == (asked["above"] is None):
        raise click.UsageError("--metric needs --below or --above")
    if asked["prompt"] is not None and asked["expect"] is None and asked["reject"] is None:
        raise click.UsageError("--prompt needs --expect or --reject")
    if flaky and not command:
        raise click.UsageError("--flaky belongs to a command; what is measured comes out the same again")


def _opinion(registry: Registry, asked: Mapping[str, Any], good: Sequence[Version], report: Report) -> Opinion:
    from mreg.registry.chains import opinions
    from mreg.registry.measures.judging import Bench

    bench = Bench(threads=asked["threads"], device=asked["device"])
    if asked["metric"] is not None:
        bounds = {"below": asked["below"], "above": asked["above"]}
        return opinions.by_metric(registry, asked["metric"], **bounds, good=good, bench=bench, report=report)
    return opinions.by_prompt(
        registry,
        asked["prompt"],
        expect=asked["expect"],
        reject=asked["reject"],
        is_chat=asked["chat"],
        max_new_tokens=asked["max_new_tokens"],
        bench=bench,
        report=report,
    )


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
    from mreg.registry.chains.bisecting import ToTest

    if isinstance(said, ToTest):
        left = text.plural(said.suspects, "suspect")
        screen.note(
            f"testing {said.version}: {left}, {said.at_least} more {'test' if said.at_least == 1 else 'tests'} or so"
        )
    else:
        known = " (from the log)" if said.from_log else ""
        words = f": {said.words}" if said.words else ""
        screen.note(f"{said.version} is {screen.ink(said.answer, COLOURS[said.answer], bold=True)}{words}{known}")


def _tell(call: Call, found: Bisected, rows: dict[Any, Any]) -> None:
    if call.json:
        names = [version.name for version in found.first_bad]
        screen.emit(
            {
                "first_bad": names[0] if len(names) == 1 else None,
                "candidates": names,
                "tested": [
                    {
                        "version": one.version.name,
                        "answer": one.answer,
                        "good": one.good,
                        "bad": one.bad,
                        "measured": one.words or None,
                        "from_log": one.from_log,
                    }
                    for one in found.tested
                ],
                "confidence": found.confidence,
                "resumed": found.resumed,
            }
        )
        return
    is_measured = any(one.words for one in found.tested)
    how = Column("measured", flexible=True) if is_measured else Column("tests", right=True)
    screen.table(
        [Column("version"), Column("answer"), how, Column("step", flexible=True)],
        [
            [
                screen.ink(one.version.name, "yellow"),
                screen.ink(one.answer, COLOURS[one.answer]),
                text.clean(one.words) if is_measured else str(one.good + one.bad + (one.answer == "skip")),
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
