"""`mreg data`: the datasets that steps read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Group, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.models.datasets import Dataset


@click.group(cls=Group, example="mreg data add rows.jsonl --as chats\nmreg data list")
def data() -> None:
    """Add and list datasets.

    A dataset is rows, and the same rows are the same dataset in any format: JSON Lines, JSON, CSV, TSV, Parquet, text.
    """


@data.command("add", example="mreg data add rows.jsonl --as chats")
@click.argument("path", type=click.Path(path_type=Path), help="A file of rows.")
@click.option("--as", "as_", metavar="NAME", default="", help="What to call it.")
@message
@click.pass_obj
def add(call: Call, path: Path, as_: str, message: str) -> None:
    """Add the rows of a file."""
    with call.open() as registry:
        added = registry.add_dataset(path, name=as_, message=message)
    if call.json:
        screen.emit(_document(added))
    else:
        columns = ", ".join(map(text.clean, added.columns))
        about = [f"{text.plural(added.rows, 'row')} of {columns}", text.size(added.bytes), added.digest[:12]]
        screen.line(f"{screen.ink(text.clean(as_ or added.name), 'green')}  {', '.join(about)}")


@data.command("list", example="mreg data list")
@click.pass_obj
def list_(call: Call) -> None:
    """List the datasets."""
    with call.open() as registry:
        found = registry.datasets()
    if call.json:
        screen.emit([_document(one) for one in found])
        return
    if not found:
        screen.hint("there is no dataset yet: mreg data add FILE --as NAME")
        return
    columns = [
        Column("dataset"),
        Column("digest"),
        Column("rows", right=True),
        Column("size", right=True),
        Column("columns", flexible=True),
        Column("source", flexible=True),
    ]
    rows = [
        [
            text.clean(",".join(one.names)) or "-",
            one.digest[:12],
            text.amount(one.rows),
            text.size(one.bytes),
            ",".join(map(text.clean, one.columns)),
            text.clean(one.source),
        ]
        for one in found
    ]
    screen.table(columns, rows)


def _document(one: Dataset) -> dict[str, Any]:
    return {
        "dataset": one.name,
        "digest": one.digest,
        "rows": one.rows,
        "names": one.names,
        "bytes": one.bytes,
        "columns": one.columns,
        "format": one.format,
        "source": one.source,
    }
