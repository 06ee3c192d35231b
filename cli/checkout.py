"""`mreg checkout`: a version's files, back on disk."""

from __future__ import annotations

from pathlib import Path

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command


@click.command(cls=Command, example="mreg checkout prod ./model")
@click.argument("rev", help="The version.")
@click.argument("folder", type=click.Path(path_type=Path), help="A new or an empty folder.")
@click.pass_obj
def checkout(call: Call, rev: str, folder: Path) -> None:
    """Write a version's files into a folder, byte for byte."""
    with call.open() as registry, progress.of_bytes("writing") as report:
        version = registry.check_out(rev, folder, report=report)
        (row,) = registry.nodes([version.digest])
        objects = len(registry.manifest(version).objects()) if call.json else 0
    if row["recalled"]:
        screen.note(f"warning: {version} is recalled: `mreg show {version}` says why")
    if call.json:
        screen.emit(
            {
                "version": version.name,
                "digest": version.digest,
                "path": str(folder.absolute()),
                "files": version.files,
                "bytes": version.bytes,
                "objects": objects,
                "recalled": row["recalled"],
            }
        )
    else:
        name = screen.ink(version.name, "yellow", bold=True)
        files = text.plural(version.files, "file")
        screen.line(f"{name}  {files}, {text.size(version.bytes)}, in {text.clean(str(folder))}")
