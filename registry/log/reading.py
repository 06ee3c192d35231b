"""Reading the projections with plain SQL: what every reading command uses, quick to import and quick to open.

A reader opens the file for moments only, so that a writer never waits long for it, and checks first that the database
ends where HEAD says; if it does not, or cannot be read, the caller heals it and asks again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import MregError
from mreg.registry.log.attached import Attached, is_busy

if TYPE_CHECKING:
    import duckdb
else:
    from mreg.registry.log.attached import duckdb

SCHEMA = 5
"""Raised whenever a table changes shape; a database of another schema is rebuilt from the journal."""

Row = dict[str, Any]

_JSON = "JSON"


class Busy(MregError):
    """Another process holds the registry for longer than we wait."""

    exit_code = 8

    def __init__(self, path: Path, wait: float) -> None:
        super().__init__(
            f"{path.name} was in use by another process for {wait:g} s", fix="try again, or wait longer with --wait"
        )


class Stale(Exception):
    """The database does not agree with HEAD, or cannot be read: it needs healing."""


class Reader:
    """Questions to the projections. JSON columns come back as values, rows as dicts."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of a query. `?` marks a bound parameter. Raises Stale when the file turns out to be damaged."""
        try:
            cursor = self._connection.execute(bound(sql, parameters))
            description = cursor.description or []
            found = cursor.fetchall()
        except _DAMAGE as error:
            raise Stale(str(error)) from error
        names = [column[0] for column in description]
        columns = list(zip(*found, strict=True))
        for place, column in enumerate(description):
            if columns and str(column[1]) == _JSON:
                columns[place] = _parsed(columns[place])
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row, if there is one."""
        return next(iter(self.rows(sql, parameters)), None)


def bound(sql: str, parameters: Sequence[Any]) -> str:
    """`sql` with every `?` replaced by a parameter: None, a number, a text or a list of texts.

    DuckDB's own binding imports pandas and pyarrow to look at a value's type, which takes longer than all the rest of a
    reading command. A text goes in as the hexadecimal of its UTF-8, so nothing in it can be SQL.
    """
    pieces = sql.split("?")
    assert len(pieces) == len(parameters) + 1, "as many parameters as question marks"
    return pieces[0] + "".join(_literal(one) + piece for one, piece in zip(parameters, pieces[1:], strict=True))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        # Digits with a point would be a DECIMAL, and another number once they are a DOUBLE.
        return f"'{value!r}'::DOUBLE"
    if isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, str):
        digits = value.encode(errors="replace").hex()
        return f"decode(unhex('{digits}'))"
    return f"""from_json({_literal(json.dumps(list(value)))}, '["VARCHAR"]')"""


def _parsed(texts: Sequence[str | None]) -> tuple[Any, ...]:
    """The values of a JSON column: parsed as one list, which is much quicker than one by one."""
    return tuple(json.loads(f"[{','.join('null' if text is None else text for text in texts)}]"))


_DAMAGE = (
    duckdb.IOException,
    duckdb.InternalException,
    duckdb.FatalException,
    duckdb.SerializationException,
    duckdb.CatalogException,
    duckdb.InvalidInputException,
)
UNUSABLE = (Stale, duckdb.Error)
"""What says that the database cannot be used as it is."""

_EMPTY = (0, "0" * 64)


@contextmanager
def reading(
    path: Path, *, head: Callable[[], tuple[int, str]], wait: float, notify: Callable[[str], None] = lambda _: None
) -> Iterator[Reader]:
    """Open the database read-only, waiting for a writer to finish; close it at the end.

    `head` tells the seq and hash that HEAD says. It is asked while the database is open: a writer moves HEAD only while
    it has the database, so the two agree unless one was killed. Raises Stale when they do not or when the database
    cannot be read, and Busy.
    """
    with interruptible(), closing(_attached(path, wait, notify)) as opened:
        reader = Reader(opened.connection)
        check_end(reader, head())
        yield reader


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C in the middle of a query, which DuckDB dresses up as a RuntimeError, a KeyboardInterrupt again."""
    try:
        yield
    except RuntimeError as error:
        # It does so when it rolls back too, then without a cause.
        if isinstance(error.__cause__, KeyboardInterrupt) or str(error) == "Query interrupted":
            raise KeyboardInterrupt from None
        raise


def check_end(reader: Reader, head: tuple[int, str]) -> None:
    """Whether the database ends where HEAD does. Raises Stale."""
    found = end_of(reader)
    if found != head:
        raise Stale(f"registry.duckdb ends at event {found[0]}, the journal at event {head[0]}")


def end_of(reader: Reader) -> tuple[int, str]:
    """The seq and hash of the last event in the database. Raises Stale when its tables have another shape than ours."""
    found = reader.one(
        "SELECT s.version, e.seq, e.hash FROM mreg_schema s LEFT JOIN event e ON e.seq = (SELECT max(seq) FROM event)"
    )
    if found is None or found["version"] != SCHEMA:
        raise Stale("registry.duckdb has the tables of another mreg")
    return _EMPTY if found["seq"] is None else (found["seq"], found["hash"])


def _attached(path: Path, wait: float, notify: Callable[[str], None]) -> Attached:
    if not path.exists():
        raise Stale("registry.duckdb is missing")
    started = time.monotonic()
    told = False
    while True:
        try:
            return Attached(path, read_only=True)
        except duckdb.Error as error:
            if not is_busy(error):
                raise Stale(str(error)) from error
            waited = time.monotonic() - started
            if waited > wait:
                raise Busy(path, wait) from error
            if waited > 1 and not told:
                notify(f"waiting for another process that is using {path.name} …")
                told = True
            time.sleep(0.01)
