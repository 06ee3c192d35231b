"""What every command has in common: `--json` in any place, examples in the help, subcommands imported when called."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


@dataclass
class Call:
    """What was typed before the command, and whether JSON was asked for anywhere. Click carries it to the command."""

    registry: Path | None = None
    wait: float = 30.0
    json: bool = False

    def open(self) -> Registry:
        """The registry that the call is about."""
        from mreg.registry.registry import Registry

        return Registry.open(self.registry, **self.services())

    def services(self) -> dict[str, Any]:
        """What a registry is given from outside."""
        return {"wait": self.wait, "actor": os.environ.get("MREG_ACTOR") or None, "notify": screen.note}


class Command(click.Command):
    """A command with `--json` and examples."""

    def __init__(self, *args: Any, example: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.example = example
        self.params.append(_json_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The examples, as they are typed."""
        _write_example(self.example, formatter)


class Group(click.Group):
    """Commands by name. Those in `lazy` are `module:attribute`, imported when one is called or its help is listed."""

    command_class = Command

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, Mapping[str, str]] | None = None,
        example: str = "",
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self.sections = lazy or {}
        self.example = example
        self.params.append(_json_option())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every subcommand, in the order that the help shows."""
        return [name for section in self.sections.values() for name in section] + list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The subcommand, imported if need be."""
        for section in self.sections.values():
            if cmd_name in section:
                module, _, attribute = section[cmd_name].partition(":")
                command = getattr(importlib.import_module(module), attribute)
                assert isinstance(command, click.Command)
                return command
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the lazy commands among the suggestions."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The subcommands under the headings of their sections."""
        if not self.sections:
            super().format_commands(ctx, formatter)
            return
        longest = max(map(len, self.list_commands(ctx)))
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(longest), self._summary(ctx, name)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The examples, as they are typed."""
        _write_example(self.example, formatter)

    def _summary(self, ctx: click.Context, name: str) -> str:
        command = self.get_command(ctx, name)
        assert command is not None
        return command.get_short_help_str(limit=100)


MESSAGE: Mapping[str, Any] = {"metavar": "TEXT", "default": "", "help": "Why; it is kept in the log."}

message = click.option("-m", "--message", **MESSAGE)
"""The option that every command which writes to the log has."""


def suggestion(typed: str, possible: Sequence[str]) -> str:
    """`did you mean X? ` for the nearest of the possible names, or nothing."""
    from difflib import get_close_matches

    near = get_close_matches(typed, possible, n=1)
    return f"did you mean {near[0]}? " if near else ""


def _json_option() -> click.Option:
    def chosen(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Call).json = True

    return click.Option(
        ["--json"], is_flag=True, expose_value=False, callback=chosen, help="Print JSON, whole and exact."
    )


def _write_example(example: str, formatter: click.HelpFormatter) -> None:
    if example:
        with formatter.section("Example" if "\n" not in example else "Examples"):
            formatter.write("".join(f"  {typed}\n" for typed in example.splitlines()))
