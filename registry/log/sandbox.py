"""Read-only SQL typed by a person: run on a locked-down connection that cannot leave the database file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import duckdb
from mreg.registry.errors import MregError
from mreg.registry.log.attached import is_busy
from mreg.registry.log.reading import Busy, interruptible


class BadQuery(MregError):
    """The statement is not a SELECT that DuckDB can run."""

    exit_code = 2


_LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "lock_configuration": "true",
}


def select(path: Path, statement: str, *, wait: float) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The column names and rows of one SELECT. Raises BadQuery and Busy."""
    deadline = time.monotonic() + wait
    while True:
        try:
            connection = duckdb.connect(str(path), read_only=True, config=_LOCKED)
            break
        except duckdb.Error as error:
            if not is_busy(error):
                raise
            if time.monotonic() > deadline:
                raise Busy(path, wait) from error
            time.sleep(0.02)
    with interruptible(), connection:
        try:
            statements = connection.extract_statements(statement)
            if len(statements) != 1:
                raise BadQuery(f"{len(statements)} statements were given", fix="give one SELECT")
            cursor = connection.execute(statements[0])
            names = [column[0] for column in cursor.description or []]
            return names, cursor.fetchall()
        except duckdb.Error as error:
            first = str(error).splitlines()[0]
            raise BadQuery(
                first, fix="the tables are event, version, run, edge, ref, ref_move, dataset and replay"
            ) from error
