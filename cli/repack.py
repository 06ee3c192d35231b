"""`mreg repack`: every object stored as its use asks."""

from __future__ import annotations

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command


@click.command(
    cls=Command,
    short_help="Store objects so that names are quick to check out, and the rest is small.",
    example="mreg repack --dry-run\nmreg repack",
)
@click.option("--dry-run", is_flag=True, help="Say what would be stored otherwise, change nothing.")
@click.pass_obj
def repack(call: Call, dry_run: bool) -> None:
    """Look at every object and store it otherwise where that suits its use.

    Imported models and versions that a name points at are made quick to check out, all others small. What is stored
    never changes by a bit: each object is decoded and hashed before it replaces the old one. It may be stopped.
    """
    with call.open() as registry, progress.of_bytes("repacking") as report:
        done = registry.repack(dry_run=dry_run, report=report)
    if call.json:
        changes = [{"from": old, "to": new, "objects": count} for (old, new), count in done.changes.items()]
        document = {"objects": done.objects, "changes": changes, "left": done.left}
        screen.emit({"dry_run": dry_run, **document, "before": done.before, "after": done.after})
        return
    would = "would be " if dry_run else ""
    for (old, new), count in sorted(done.changes.items()):
        screen.line(f"{text.plural(count, 'object')} {would}stored {new} and no more {old}")
    screen.line(f"{text.plural(done.left, 'object')} stored as {'it' if done.left == 1 else 'they'} should be")
    if done.after is None:
        screen.line(f"all together take {text.size(done.before)}; nothing was done")
    else:
        screen.line(f"all together took {text.size(done.before)}, take {text.size(done.after)}")
