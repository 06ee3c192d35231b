"""`mreg sql`: any question, in SQL."""

from __future__ import annotations

import json
from typing import Any

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column


@click.command(
    cls=Command,
    example="mreg sql \"SELECT 'v' || number AS version, transform, bytes FROM version ORDER BY bytes\"\n"
    'mreg sql "DESCRIBE run"',
)
@click.argument("statement", help="One SELECT.")
@click.pass_obj
def sql(call: Call, statement: str) -> None:
    """Ask the tables in DuckDB's SQL, read-only.

    The tables are event, version, run, edge, ref, ref_move, dataset, dataset_name, run_dataset and replay.
    """
    with call.open() as registry:
        names, rows = registry.sql(statement)
    if call.json:
        screen.emit([dict(zip(names, row, strict=True)) for row in rows])
        return
    right = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(names))]
    columns = [
        Column(text.clean(name), right=number, flexible=not number) for name, number in zip(names, right, strict=True)
    ]
    screen.table(columns, [[_cell(value) for value in row] for row in rows])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        return text.clean(json.dumps(value, ensure_ascii=False, default=str))
    return text.clean(str(value))
