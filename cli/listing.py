"""`mreg list`: every version in one table."""

from __future__ import annotations

import click
from mreg.cli import screen, steps, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column


@click.command("list", cls=Command, example="mreg list\nmreg list --json")
@click.pass_obj
def list_(call: Call) -> None:
    """List every version.

    A version that fails a guard has a `!` beside its number; `(recalled)` is one that is, or came of what is.
    """
    with call.open() as registry:
        rows = registry.listing()
    if call.json:
        screen.emit([{**steps.document(row), "fails": row["fails"]} for row in rows])
        return
    if not rows:
        screen.hint("there is no version yet: mreg import FOLDER --as base")
        return
    columns = [
        Column("version"),
        Column("digest"),
        Column("refs", flexible=True),
        Column("made by", flexible=True),
        Column("size", right=True),
        Column("recorded (UTC)"),
    ]
    screen.table(
        columns,
        [
            [
                screen.ink(f"v{row['number']}", "yellow")
                + (screen.ink(" !", "red", bold=True) if row["fails"] else "")
                + steps.recalled(row),
                screen.ink(row["digest"][:12], dim=True),
                screen.ink(",".join(map(text.clean, row["refs"])), "green") or "-",
                steps.summary(row),
                text.size(row["bytes"]) + ", evicted" * bool(row["evicted"]),
                text.moment(row["recorded_at"]),
            ]
            for row in rows
        ],
    )
    failing = [f"v{row['number']}" for row in rows if row["fails"]]
    if failing:
        fails = "fails a guard" if len(failing) == 1 else "fail a guard"
        screen.hint(f"{', '.join(failing)} {fails}: `mreg show {failing[-1]}` tells by how much")
