"""`mreg record`: a step that was done elsewhere, its inputs and its output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from mreg.cli import applied, progress
from mreg.cli.command import Call, Command, message

if TYPE_CHECKING:
    from mreg.registry.models.folder import Mark


@click.command(
    cls=Command, example="mreg record --from v1 --output ./my-sft --transform my-sft --data rows.jsonl --as sft"
)
@click.option("--from", "from_", metavar="REV", required=True, help="The version that it was made from.")
@click.option(
    "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The folder that came out."
)
@click.option("--transform", metavar="NAME", required=True, help="What was done; any name.")
@click.option("--with", "with_", metavar="REV|ROLE=REV", multiple=True, help="A further input; repeat it for more.")
@click.option("--data", metavar="FILE|NAME", multiple=True, help="A dataset that was used; repeat it for more.")
@click.option("--set", "set_", metavar="KEY=VALUE", multiple=True, help="A setting that was used; repeat it for more.")
@click.option("--as", "as_", metavar="REF", help="A name to give to the version.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Files to leave out; repeat it for more.")
@click.option(
    "--trust", type=click.Choice(["code", "pickle"]), multiple=True, help="Accept files that can run code when loaded."
)
@message
@click.pass_obj
def record(
    call: Call,
    from_: str,
    output: Path,
    transform: str,
    with_: tuple[str, ...],
    data: tuple[str, ...],
    set_: tuple[str, ...],
    as_: str | None,
    exclude: tuple[str, ...],
    trust: tuple[Mark, ...],
    message: str,
) -> None:
    """Record a folder that was made elsewhere.

    The log keeps who says so. What was done can be checked in the weights, but not replayed.
    """
    from mreg.cli import params

    with call.open() as registry, progress.of_bytes("reading") as report:
        done = registry.record_version(
            output,
            transform=transform,
            source=from_,
            others=[applied.role_and_rev(other) for other in with_],
            data=data,
            params=params.settings(set_),
            ref=as_,
            exclude=exclude,
            trust=trust,
            message=message,
            report=report,
        )
    applied.tell(call, done, ref=as_)
