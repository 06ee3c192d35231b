"""`mreg policy`: what a name demands of every version that it moves to."""

from __future__ import annotations

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Group, message
from mreg.cli.screen import Column


@click.group(cls=Group, example="mreg policy set prod --guard 'perplexity(general) <= 1.05 * source'\nmreg policy list")
def policy() -> None:
    """Have a name demand guards of what it moves to.

    A guard is METRIC(DATASET[, option=value]), one of <= < >= >, and a number, source, or NUMBER * source, where source
    is the version that the name was at before; parent or any REV may stand in its place. ref set, apply --as and import
    --as hold a version against them first, and measure what nobody has measured yet.
    """


@policy.command(
    "set", example="mreg policy set prod --guard 'accuracy(test) >= 0.98 * source' --guard 'ece(test) <= 0.05'"
)
@click.argument("ref", help="The name.")
@click.option("--guard", "guards", multiple=True, metavar="GUARD", help="What is demanded; repeat it for more.")
@message
@click.pass_obj
def set_(call: Call, ref: str, guards: tuple[str, ...], message: str) -> None:
    """Have a name demand these guards, in place of those that it demanded before."""
    with call.open() as registry:
        demanded = registry.set_policy(ref, guards, message=message)
    if call.json:
        screen.emit({"ref": ref, "guards": demanded})
        return
    screen.line(f"{screen.ink(text.clean(ref), 'green')} moves only where")
    screen.lines(f"  {text.clean(guard)}" for guard in demanded)


@policy.command("list", example="mreg policy list")
@click.pass_obj
def list_(call: Call) -> None:
    """List what names demand."""
    with call.open() as registry:
        found = registry.policies()
    if call.json:
        screen.emit([{"ref": ref, "guards": guards} for ref, guards in found.items()])
        return
    if not found:
        screen.hint("no name demands anything yet: mreg policy set REF --guard GUARD")
        return
    rows = [
        [screen.ink(text.clean(ref) if place == 0 else "", "green"), text.clean(guard)]
        for ref, guards in found.items()
        for place, guard in enumerate(guards)
    ]
    screen.table([Column("ref"), Column("demands", flexible=True)], rows)


@policy.command("delete", example="mreg policy delete prod")
@click.argument("ref", help="The name.")
@message
@click.pass_obj
def delete(call: Call, ref: str, message: str) -> None:
    """Have a name demand nothing any more. Verdicts and scores stay."""
    with call.open() as registry:
        demanded = registry.delete_policy(ref, message=message)
    if call.json:
        screen.emit({"ref": ref, "guards": [], "before": demanded})
        return
    screen.line(
        f"{screen.ink(text.clean(ref), 'green')} demands nothing any more; it was {text.plural(len(demanded), 'guard')}"
    )
