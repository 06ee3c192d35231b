"""`mreg events`: the raw log."""

from __future__ import annotations

import click
from mreg.cli import screen
from mreg.cli.command import Call, Command


@click.command(cls=Command, example="mreg events --after 40 | jq .kind")
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only what came after event N.")
@click.pass_obj
def events(call: Call, after: int) -> None:
    """Print the events, one JSON object a line."""
    with call.open() as registry:
        found = registry.events(after)
    for event in found:
        screen.emit_line(event)
