"""`mreg init`: make a registry."""

from __future__ import annotations

from pathlib import Path

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Command, message


@click.command(cls=Command, short_help="Make a registry.", example="mreg init\nmreg init ~/models")
@click.argument("directory", required=False, type=click.Path(path_type=Path), help="Where; by default here.")
@message
@click.pass_obj
def init(call: Call, directory: Path | None, message: str) -> None:
    """Make a registry: a folder .mreg that holds the log and the models."""
    from mreg.registry import config
    from mreg.registry.registry import Registry

    registry = Registry.init(directory or call.registry or Path(), message=message, **call.services())
    path = str(registry.root.absolute())
    if call.json:
        screen.emit({"registry": config.read(registry.root).id, "path": path})
    else:
        screen.line(f"made the registry {text.clean(path)}")
        screen.hint("next: mreg import FOLDER --as base")
