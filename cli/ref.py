"""`mreg ref` and `mreg rollback`: names that move, and where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command, Group, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.references import Moved


force = click.option(
    "--force", is_flag=True, help="Even if the version fails a guard or is recalled; that is recorded."
)


@click.group(cls=Group, example="mreg ref set prod v3 -m 'passed review'\nmreg ref log prod")
def ref() -> None:
    """Name versions, and see where names were before."""


@ref.command("set", example="mreg ref set prod v3")
@click.argument("name", help="Such as prod or chat/base.")
@click.argument("rev", help="The version that it names from now on.")
@force
@message
@click.pass_obj
def set_(call: Call, name: str, rev: str, force: bool, message: str) -> None:
    """Point a name at a version.

    One that fails a guard or is recalled is refused, with exit code 1, and so is one that does not hold what
    `mreg policy` says of the name; what that needs is measured first.
    """
    with call.open() as registry:
        with progress.of_run(f"asking the guards of {name}", at_once=False) as report:
            moved = registry.set_ref(name, rev, message=message, force=force, report=report)
        _tell(call, moved)


@ref.command("list", example="mreg ref list")
@click.pass_obj
def list_(call: Call) -> None:
    """List the names and what they name."""
    with call.open() as registry:
        found = registry.refs()
    if call.json:
        screen.emit(
            [{"ref": name, "version": version.name, "digest": version.digest} for name, version in found.items()]
        )
        return
    if not found:
        screen.hint("there is no ref yet: mreg ref set NAME REV")
        return
    rows = [
        [
            screen.ink(text.clean(name), "green"),
            screen.ink(version.name, "yellow"),
            screen.ink(version.digest[:12], dim=True),
            version.transform or "import",
        ]
        for name, version in found.items()
    ]
    screen.table([Column("ref"), Column("version"), Column("digest"), Column("made by")], rows)


@ref.command("log", example="mreg ref log prod")
@click.argument("name", help="The name.")
@click.pass_obj
def log(call: Call, name: str) -> None:
    """Show every move of a name, newest first.

    The versions are NAME@{0}, which is where it is now, NAME@{1}, where it was before, and so on.
    """
    with call.open() as registry:
        moves = registry.ref_log(name)
    if call.json:
        screen.emit(
            [
                {
                    "ref": move["ref"],
                    "old": move["old_version"],
                    "new": move["new_version"],
                    "old_digest": move["old"],
                    "new_digest": move["new"],
                    "reason": move["reason"],
                    "forced": move["forced"] or [],
                    "message": move["message"],
                    "actor": move["actor"],
                    "at": move["recorded_at"],
                    "event": move["seq"],
                }
                for move in moves
            ]
        )
        return
    columns = [
        Column("ref"),
        Column("version"),
        Column("why"),
        Column("recorded (UTC)"),
        Column("actor"),
        Column("message", flexible=True),
    ]
    rows = [
        [
            f"{text.clean(name)}@{{{place}}}",
            screen.ink(move["new_version"] or "-", "yellow"),
            move["reason"] + (screen.ink(" (forced)", "magenta") if move["forced"] else ""),
            text.moment(move["recorded_at"]),
            text.clean(move["actor"]),
            text.clean(move["message"]),
        ]
        for place, move in enumerate(moves)
    ]
    screen.table(columns, rows)


@ref.command("delete", example="mreg ref delete old/try")
@click.argument("name", help="The name.")
@message
@click.pass_obj
def delete(call: Call, name: str, message: str) -> None:
    """Take a name away. Its versions and its moves stay."""
    with call.open() as registry:
        _tell(call, registry.delete_ref(name, message=message))


@click.command(cls=Command, example="mreg rollback prod -m 'worse on the long prompts'\nmreg rollback prod --to v3")
@click.argument("ref", help="The name.")
@click.option("--to", metavar="REV", help="A version that it named before; by default the one before the last move.")
@force
@message
@click.pass_obj
def rollback(call: Call, ref: str, to: str | None, force: bool, message: str) -> None:
    """Put a name back where it was.

    Done again, it goes one move further back. Nothing is deleted. Nothing is measured either: only a version that is
    recalled or known to fail a guard is refused.
    """
    with call.open() as registry:
        _tell(call, registry.rollback(ref, to=to, message=message, force=force))


def _tell(call: Call, moved: Moved) -> None:
    if call.json:
        screen.emit(_document(moved))
        return
    name = screen.ink(text.clean(moved.ref), "green")
    old = moved.old.name if moved.old else "nothing"
    if moved.event is None:
        screen.line(f"{name} already is {old}, nothing was recorded")
    elif moved.new is None:
        screen.line(f"{name} is deleted, it was {old}")
    else:
        screen.line(f"{name}  {old} → {screen.ink(moved.new.name, 'yellow', bold=True)}")
        for guard in moved.forced:
            screen.line(screen.ink(f"  overruled: {text.clean(guard)}", "magenta"))


def _document(moved: Moved) -> dict[str, Any]:
    return {
        "ref": moved.ref,
        "old": moved.old.name if moved.old else None,
        "new": moved.new.name if moved.new else None,
        "old_digest": moved.old.digest if moved.old else None,
        "new_digest": moved.new.digest if moved.new else None,
        "forced": list(moved.forced),
        "event": moved.event,
    }
