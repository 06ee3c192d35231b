"""`mreg import`: bring a model in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command, message

if TYPE_CHECKING:
    from mreg.registry.models.folder import Mark


@click.command(
    "import",
    cls=Command,
    example="mreg import ./SmolLM2-135M --as base\nmreg import hf:HuggingFaceTB/SmolLM2-135M@main\n"
    "mreg import ./my-lora --base v1",
)
@click.argument("source", help="A model folder, a .safetensors or .gguf file, or hf:org/name[@revision].")
@click.option("--as", "as_", metavar="REF", help="A name to give to the version.")
@click.option("--base", metavar="REV", help="For an adapter: the version that it fits.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Files to leave out; repeat it for more.")
@click.option(
    "--trust", type=click.Choice(["code", "pickle"]), multiple=True, help="Accept files that can run code when loaded."
)
@click.option("--follow-symlinks", is_flag=True, help="Import what links point to.")
@message
@click.pass_obj
def import_(
    call: Call,
    source: str,
    as_: str | None,
    base: str | None,
    exclude: tuple[str, ...],
    trust: tuple[Mark, ...],
    follow_symlinks: bool,
    message: str,
) -> None:
    """Bring a model in from outside.

    Every file is kept byte for byte. Tensors that are there already take no space again.
    """
    with call.open() as registry, progress.of_bytes("importing") as report:
        done = registry.import_model(
            source,
            ref=as_,
            base=base,
            exclude=exclude,
            trust=trust,
            follow_symlinks=follow_symlinks,
            message=message,
            report=report,
        )
    version = done.version
    if call.json:
        screen.emit(
            {
                "version": version.name,
                "digest": version.digest,
                "weights": version.weights,
                "files": version.files,
                "tensors": version.tensors,
                "parameters": version.parameters,
                "bytes": version.bytes,
                "bytes_added": done.bytes_added,
                "is_new": done.is_new,
                "adapter": version.adapter,
                "architecture": version.architecture,
                "base": version.base,
                "marks": version.marks,
                "left_out": done.left_out,
                "ref": as_,
                "event": done.event,
            }
        )
        return
    named = f" ({screen.ink(text.clean(as_), 'green')})" if as_ else ""
    counts = f"{text.amount(version.parameters)} parameters in {text.plural(version.tensors, 'tensor')}"
    added = f"{text.size(done.bytes_added)} added" if done.is_new else "it was there already"
    screen.line(f"{screen.ink(version.name, 'yellow', bold=True)}{named}  {text.clean(version.architecture)}, {counts}")
    about = [
        screen.ink(version.digest[:12], dim=True),
        text.plural(version.files, "file"),
        text.size(version.bytes),
        added,
    ]
    screen.line("  " + ", ".join(about))
    if version.marks:
        screen.line(f"  {screen.ink('trusted: ' + ', '.join(version.marks), 'magenta')}")
    if done.left_out:
        screen.line(f"  left out: {', '.join(map(text.clean, done.left_out))}")
