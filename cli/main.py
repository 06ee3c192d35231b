"""The console script: the table of commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Group, suggestion
from mreg.registry.errors import MregError

COMMANDS = {
    "Begin": {
        "demo": "mreg.cli.demo:demo",
        "init": "mreg.cli.init:init",
    },
    "Make versions": {
        "import": "mreg.cli.importing:import_",
        "apply": "mreg.cli.apply:apply",
        "run": "mreg.cli.run:run",
        "record": "mreg.cli.record:record",
        "rebase": "mreg.cli.rebase:rebase",
        "revert": "mreg.cli.revert:revert",
        "transforms": "mreg.cli.transforms:transforms",
        "data": "mreg.cli.data:data",
    },
    "Measure": {
        "eval": "mreg.cli.eval:eval_",
        "policy": "mreg.cli.policy:policy",
    },
    "Look": {
        "list": "mreg.cli.listing:list_",
        "show": "mreg.cli.show:show",
        "log": "mreg.cli.log:log",
        "lineage": "mreg.cli.lineage:lineage",
        "diff": "mreg.cli.diff:diff",
        "compare": "mreg.cli.compare:compare",
        "heritage": "mreg.cli.heritage:heritage",
        "bisect": "mreg.cli.bisect:bisect",
        "events": "mreg.cli.events:events",
        "sql": "mreg.cli.sql:sql",
    },
    "Names": {
        "ref": "mreg.cli.ref:ref",
        "rollback": "mreg.cli.ref:rollback",
        "recall": "mreg.cli.recall:recall",
    },
    "Take out, prove": {
        "checkout": "mreg.cli.checkout:checkout",
        "replay": "mreg.cli.replay:replay",
        "verify": "mreg.cli.verify:verify",
        "fsck": "mreg.cli.integrity:fsck",
        "rebuild": "mreg.cli.integrity:rebuild",
    },
    "Keep small": {
        "du": "mreg.cli.du:du",
        "gc": "mreg.cli.gc:gc",
        "evict": "mreg.cli.evict:evict",
        "restore": "mreg.cli.evict:restore",
        "repack": "mreg.cli.repack:repack",
    },
}

BUG = 70
INTERRUPTED = 130
PIPE_CLOSED = 141


class Terminated(KeyboardInterrupt):
    """The process was told to end; what runs is wound up as for Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        screen.line(f"mreg {version('mreg')}")
        ctx.exit()


@click.group(
    cls=Group,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    example="mreg import ./SmolLM2-135M --as base\nmreg apply quantize --from base --method int8 --as chat/int8\n"
    "mreg replay chat/int8",
)
@click.option(
    "--registry",
    type=click.Path(path_type=Path),
    envvar="MREG_REGISTRY",
    show_envvar=True,
    metavar="PATH",
    help="The folder that holds .mreg. By default it is found upwards from here.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=30.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to wait while another process writes.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print mreg's version."
)
@click.pass_context
def root(ctx: click.Context, registry: Path | None, wait: float) -> None:
    """Where every model version came from, and the proof.

    A REV names a version: v3, v3~1 (its first parent), v3^2 (its second), a ref such as prod, prod@{1} (where prod was
    before), or 6 or more digits of a digest.
    """
    call = ctx.ensure_object(Call)
    call.registry, call.wait = registry, wait


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # What a command makes it mostly keeps: to look through it again and again for garbage is a tenth of its time.
    gc.set_threshold(100_000)
    try:
        with _terminable():
            code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        return _fail(_usage(error), error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except MregError as error:
        return _fail(str(error), error.exit_code)
    except Terminated as error:
        return _fail("terminated", 128 + error.number)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads on: what is still buffered has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return PIPE_CLOSED
    except OSError as error:
        return _fail(_disk(error), 9)
    except Exception as error:
        if os.environ.get("MREG_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return _fail(f"this is a bug in mreg ({what}): set MREG_TRACEBACK=1 to see where, and report it", BUG)


def _run(arguments: list[str]) -> int:
    if instruction := os.environ.get("_MREG_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "mreg", "_MREG_COMPLETE", instruction)
    try:
        with root.make_context("mreg", arguments) as ctx:
            return root.invoke(ctx) or 0
    except click.exceptions.Exit as done:
        return done.exit_code


def _fail(words: str, code: int) -> int:
    head = "mreg:"
    if screen.is_terminal(sys.stderr) and not os.environ.get("NO_COLOR"):
        head = click.style(head, fg="red", bold=True)
    click.echo(f"{head} {text.clean(words)}", err=True, color=True)
    return code


def _usage(error: click.UsageError) -> str:
    """A mistake on the command line as one line: what is wrong, and where to look."""
    command = error.ctx.command_path if error.ctx else "mreg"
    help_at = f"`{command} --help` shows how"
    if isinstance(error, click.NoSuchCommand):
        kind = "transform" if command.endswith(" apply") else "command"
        near = suggestion(error.command_name, error.possibilities or [])
        return f"there is no {kind} {error.command_name!r}: {near}`{command} --help` shows them all"
    if isinstance(error, click.NoSuchOption):
        if error.ctx and error.option_name in _options_of(root) and error.ctx.command is not root:
            return f"{error.option_name} stands before the command: mreg {error.option_name} … {command[5:]}"
        near = suggestion(error.option_name, _options_of(error.ctx.command) if error.ctx else [])
        return f"there is no option {error.option_name}: {near}`{command} --help` shows them all"
    said = error.format_message().strip().rstrip(".")
    return f"{said[:1].lower()}{said[1:]}: {help_at}"


def _options_of(command: click.Command) -> list[str]:
    return [spelled for param in command.params for spelled in (*param.opts, *param.secondary_opts)]


def _disk(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    why = "free some space and run it again" if error.errno == errno.ENOSPC else "check the path and its permissions"
    return f"{where}{error.strerror or error}: {why}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Being told to end winds up what runs, as Ctrl-C does, instead of cutting it off."""

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # What is ignored stays so: that is how `nohup` works.
        if handler is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
