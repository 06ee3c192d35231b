"""`mreg run`: a command of the user's own as a step that is recorded, cached and replayed like any other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from mreg.cli import apply
from mreg.cli.command import Call, Command


@click.command(
    cls=Command,
    short_help="Run a command of your own on a version.",
    context_settings={"allow_interspersed_args": False},
    options_metavar="--from REV [OPTIONS] --",
    params=[one for one in apply.common() if one.name not in ("set_", "config", "processes", "launcher", "on")],
    example="mreg run --from v3 --data rows.jsonl --as sft -- python train.py --epochs 2",
)
@click.option(
    "--name", metavar="NAME", help="What to call what it does; the name of the script or program if not said."
)
@click.option("--env", metavar="NAME[=VALUE]", multiple=True, help="A variable to hand on; it is kept in the log.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Files to leave out of the output; repeat it for more.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, help="The program and its arguments.")
@click.pass_obj
def run(
    call: Call,
    /,
    command: tuple[str, ...],
    name: str | None,
    env: tuple[str, ...],
    exclude: tuple[str, ...],
    **typed: Any,
) -> int:
    """Run a command of your own on a version and record what came of it.

    The command finds the version's folder in $MREG_INPUT and writes the new model into the folder $MREG_OUTPUT. Its
    data is in $MREG_DATA, as JSON Lines, further inputs in $MREG_WITH, the seed in $MREG_SEED; what it measures it may
    write into the JSON file $MREG_FACTS. Recorded beside the model: the command, its folder, the git commit, what was
    changed since, and what it printed.

    Inside git, the same command on the same code and inputs is answered from the log; elsewhere it is always run, since
    nobody knows what code it reads.
    """
    from mreg.registry.models import folder
    from mreg.registry.runs import code_state

    here = Path.cwd()
    state = code_state.look(here, command)
    chosen = {
        "name": name or next((Path(word).name for word in command if word in state.files), Path(command[0]).name),
        "command": command,
        "cwd": str(here),
        "commit": state.commit,
        "diff": state.changes(),
        "files": state.files,
        "env": dict(map(_variable, env)),
        "exclude": (*folder.TRAINERS_LEAVE, *exclude),
    }
    return apply.carry_out(call, "command", chosen, {**typed, "fresh": typed["fresh"] or not state.commit})


def _variable(spelled: str) -> tuple[str, str]:
    """`NAME=VALUE`, or `NAME` with the value that it has here. Raises UsageError."""
    name, equals, value = spelled.partition("=")
    if not name or (not equals and name not in os.environ):
        raise click.UsageError(f"--env {spelled} names no variable that is set")
    return name, value if equals else os.environ[name]
