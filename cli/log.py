"""`mreg log`: the steps that led to a version, newest first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

import click
from mreg.cli import screen, steps, text
from mreg.cli.command import Call, Command
from mreg.cli.drawing import Lanes
from mreg.cli.steps import Row

UNASKED = 50
"""How many versions are shown when neither a version nor a number is given."""


@click.command(cls=Command, example="mreg log\nmreg log prod --oneline\nmreg log --graph -n 20")
@click.argument("rev", required=False, help="The version; without one, all of them are shown.")
@click.option("--graph", is_flag=True, help="Draw who came from whom.")
@click.option("--oneline", is_flag=True, help="One line for each version.")
@click.option("-n", "limit", type=click.IntRange(1), metavar="N", help="At most so many; without a REV 50.")
@click.pass_obj
def log(call: Call, rev: str | None, graph: bool, oneline: bool, limit: int | None) -> None:
    """Show the history of a version, newest first."""
    most = UNASKED if rev is None and limit is None else limit
    with call.open() as registry:
        rows = registry.history(rev, limit=None if most is None else most + 1)
    shown = rows[:most]
    if call.json:
        screen.emit([steps.document(row) for row in shown])
    else:
        drawn = _drawn(shown, graph, oneline)
        screen.lines(screen.cropped(drawn) if oneline or graph else drawn)
    if not shown and not call.json:
        screen.hint("there is no version yet: mreg import FOLDER --as base")
    if limit is None and len(shown) < len(rows) and screen.is_terminal(sys.stderr):
        screen.note(
            f"{rows[-1]['number']} older versions are left out; -n {UNASKED * 10} shows more, a REV its whole history"
        )


def _drawn(rows: Sequence[Row], graph: bool, oneline: bool) -> Iterator[str]:
    lanes = Lanes()
    for place, row in enumerate(rows):
        first, *rest = [_line(row)] if oneline else _entry(row)
        if not oneline and place + 1 < len(rows):
            rest.append("")
        if not graph:
            yield from (first, *rest)
            continue
        own, bends, beside = lanes.place(f"v{row['number']}", row["parents"])
        room = max(map(len, (own, *bends, beside))) + 1
        margins = chain((own, *bends), repeat(beside))
        words = chain((first, *rest), repeat("", max(0, len(bends) - len(rest))))
        yield from (f"{margin:{room}}{line}".rstrip() for line, margin in zip(words, margins, strict=False))


def _line(row: Row) -> str:
    parts = [_name(row), steps.refs(row), steps.summary(row), screen.ink(text.clean(row["message"]), dim=True)]
    return " ".join(part for part in parts if part)


def _entry(row: Row) -> list[str]:
    about = [text.moment(row["recorded_at"]), text.clean(row["actor"] or ""), text.size(row["bytes"])]
    if row["wall_s"] is not None:
        about.append(text.seconds(row["wall_s"]))
    if row["seed"] is not None:
        about.append(f"seed {row['seed']}")
    entry = [
        " ".join(part for part in (_name(row), steps.refs(row)) if part),
        f"  {steps.summary(row)}",
        f"  {screen.ink('  '.join(part for part in about if part), dim=True)}",
    ]
    entry += [f"      {text.clean(said)}" for said in row["message"].splitlines()]
    return entry


def _name(row: Row) -> str:
    number = screen.ink(f"v{row['number']}", "yellow", bold=True)
    return f"{number}{steps.recalled(row)} {screen.ink(row['digest'][:12], dim=True)}"
