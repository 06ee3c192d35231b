"""`mreg transforms`: what there is to apply."""

from __future__ import annotations

import click
from mreg.cli import screen
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column


@click.command(cls=Command, example="mreg transforms\nmreg transforms quantize")
@click.argument("name", required=False, help="One of them, with its options.")
@click.pass_obj
def transforms(call: Call, name: str | None) -> None:
    """List the transforms, or show one with its options."""
    from mreg.cli import catalog

    found = catalog.engine()
    if call.json:
        names = found.names() if name is None else [name]
        documents = [catalog.described(found.find(one)) for one in names]
        screen.emit(documents if name is None else documents[0])
    elif name is None:
        screen.table([Column("transform"), Column("what it does", flexible=True)], catalog.summaries())
        screen.hint("mreg transforms NAME shows one with its options, mreg apply NAME runs it")
    else:
        from mreg.cli.apply import command_of

        command = command_of(found.find(name))
        context = click.get_current_context()
        with click.Context(command, info_name=f"mreg apply {name}", help_option_names=context.help_option_names) as ctx:
            screen.line(command.get_help(ctx))
