"""The reference pages: made from the live help and the error classes, so that they cannot say anything else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import click
from mreg.cli.main import BUG, INTERRUPTED, PIPE_CLOSED, root
from mreg.registry.errors import MregError

_WIDTH = 80

_MEANINGS = {
    0: "done, or the same",
    1: "a check failed, or two things differ",
    2: "the command line or an option is wrong",
    3: "there is no registry here, or there is one already",
    4: "no such version, ref, transform or dataset",
    5: "this is not a model that can be imported",
    6: "a transform failed",
    7: "the log or an object is damaged",
    8: "another process holds the registry",
    9: "the disk is full, or the system refused",
    10: "somebody else changed it meanwhile",
    11: "refused: it would be meaningless",
    12: "something that this needs is not installed",
    BUG: "a bug in mreg",
    INTERRUPTED: "interrupted",
    PIPE_CLOSED: "whoever read the output went away",
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, as in `ref set`; of the transforms only what all of them have, with `apply`."""
    context = click.Context(root, info_name="mreg")
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group) and name != "apply":
            inner = click.Context(command, info_name=name, parent=context)
            for sub in command.list_commands(inner):
                found = command.get_command(inner, sub)
                assert found is not None
                yield f"{name} {sub}", found


def command_pages() -> str:
    """The help of every command, as Markdown."""
    pages = [_page("mreg", root)]
    pages += [_page(f"mreg {path}", command) for path, command in commands()]
    return "\n".join(pages)


def exit_codes() -> str:
    """A table of the exit codes, then the errors that end with each, as Markdown."""
    raised: dict[int, dict[str, None]] = {code: {} for code in sorted(_MEANINGS)}
    for error in sorted(errors(), key=lambda error: (error.__name__, error.__module__)):
        words = " ".join((error.__doc__ or "").split("\n\n")[0].split())
        raised[error.exit_code][f"- {error.__name__}: {words}"] = None
    table = [f"| {code} | {meaning} |" for code, meaning in sorted(_MEANINGS.items())]
    lines = ["| code | means |", "|---|---|", *table]
    for code, told in raised.items():
        lines += ["", f"## {code}: {_MEANINGS[code]}", "", *told] if told else []
    return "\n".join(lines)


def errors() -> list[type[MregError]]:
    """Every error that mreg raises on purpose."""
    for package in ("mreg.registry", "mreg.transforms", "mreg.cli"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    found: list[type[MregError]] = []
    waiting = [MregError]
    while waiting:
        for error in waiting.pop().__subclasses__():
            waiting.append(error)
            if error.__module__.startswith("mreg."):
                found.append(error)
    return found


def _page(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path, terminal_width=_WIDTH, help_option_names=["-h", "--help"])
    with context:
        return f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"
