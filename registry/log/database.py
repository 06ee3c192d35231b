"""DuckDB for writing: the event table and its projections, changed in one transaction.

The database is a cache of the journal: it may be behind or missing, which costs a refold, never data. Every method
must be called with the registry's lock held; readers may hold the file for moments, which is waited for.

The tables are SQLModel classes (`tables.py`), from which the file is made. An event is added in plain SQL, to the
columns that the file has: SQLModel takes longer to import than an event takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import files
from mreg.registry.log import folds
from mreg.registry.log.attached import Attached, is_busy
from mreg.registry.log.journal import Head
from mreg.registry.log.reading import SCHEMA, Busy, Reader, Stale, bound, check_end, end_of
from mreg.registry.log.recorded import Recorded
from mreg.registry.signals import put_off

if TYPE_CHECKING:
    import duckdb
else:
    from mreg.registry.log.attached import duckdb

MAX_CHUNK = 2_000
"""Rows in one bulk insert."""


class Database:
    """The one writer of `registry.duckdb`."""

    def __init__(self, path: Path, *, wait: float) -> None:
        self.path = path
        self.wait = wait

    @contextmanager
    def writing(self, at: Head) -> Iterator[Writing]:
        """Open the file to add events after `at`; what is not committed is undone at the end.

        Raises Stale when the database does not end at `at`, and Busy.
        """
        with self._connected() as connection:
            connection.begin()
            writing = Writing(connection)
            check_end(writing.reader, (at.seq, at.hash))
            yield writing

    def append(self, history: Sequence[Recorded], at: Head) -> None:
        """Add events after `at` in one transaction."""
        with self.writing(at) as writing:
            for recorded in history:
                writing.add(recorded)
            writing.commit()

    def end(self) -> tuple[int, str]:
        """The `seq` and `hash` of the last event it holds. Raises Stale or duckdb.Error when it cannot be read."""
        with self._connected() as connection:
            return end_of(Reader(connection))

    def rebuild(self, history: list[Recorded]) -> None:
        """Make the file anew from the whole history: built beside it, then renamed into its place."""
        # Needed by nothing else, and long in coming.
        from mreg.registry.log.tables import definitions

        fresh = self.path.with_name(f".{self.path.name}.new")
        for leftover in (fresh, _wal(fresh)):
            leftover.unlink(missing_ok=True)
        try:
            with Database(fresh, wait=self.wait)._connected() as connection:
                connection.begin()
                for definition in definitions():
                    connection.execute(definition)
                columns = _columns(connection)
                told = json.dumps({table: asdict(each) for table, each in columns.items()})
                schema = f"CREATE TABLE mreg_schema AS SELECT {SCHEMA} AS version, ? AS columns"
                connection.execute(bound(schema, [told]))
                _put(connection, columns["event"], [_event_row(recorded) for recorded in history])
                for table, rows in folds.fold(history).items():
                    _put(connection, columns[table], list(rows.values()))
                connection.commit()
                connection.execute("CHECKPOINT")
            _wal(self.path).unlink(missing_ok=True)
            fresh.replace(self.path)
        finally:
            for leftover in (fresh, _wal(fresh)):
                leftover.unlink(missing_ok=True)
        files.sync_directory(self.path.parent)

    def events(self) -> list[Recorded]:
        """The events as the database holds them, in order; a second copy of the journal, not checked."""
        with self._connected() as connection:
            return _events(Reader(connection))

    def everything(self) -> tuple[list[Recorded], folds.Tables]:
        """The events and every projection as they are stored: what `fsck` compares with the journal and its fold."""
        stored = folds.Tables()
        with self._connected() as connection:
            reader = Reader(connection)
            for table in folds.KEYS:
                for row in reader.rows(f"SELECT * FROM {table}"):  # noqa: S608 our own names
                    stored.apply(folds.Put(table, row))
            return _events(reader), stored

    @contextmanager
    def _connected(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to the file, closed again at the end, which undoes what it did not commit.

        Ctrl-C is put off meanwhile: DuckDB would end whatever it is doing, closing included, and keep the file locked.
        Raises Busy after `wait` seconds.
        """
        with put_off() as signals, closing(self._attached(signals)) as opened:
            yield opened.connection

    def _attached(self, signals: Sequence[int]) -> Attached:
        deadline = time.monotonic() + self.wait
        while True:
            try:
                return Attached(self.path, read_only=False)
            except duckdb.Error as error:
                if not is_busy(error):
                    raise
                if signals or time.monotonic() > deadline:
                    raise Busy(self.path, self.wait) from error
                time.sleep(0.02)


class Writing:
    """The database while it is open for writing, in one transaction. `reader` sees what the transaction sees."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.reader = Reader(connection)
        self._connection = connection
        self._columns: Mapping[str, Columns] | None = None
        self._last: Recorded | None = None

    def add(self, recorded: Recorded) -> None:
        """Fold one event into the transaction."""
        self._put("event", _event_row(recorded))
        for change in folds.changes(recorded, self):
            if isinstance(change, folds.Put):
                self._put(change.table, change.row)
            else:
                sql = f"DELETE FROM {change.table} WHERE {_is_key(change.table)}"  # noqa: S608 our own names
                self._connection.execute(bound(sql, change.key))
        self._last = recorded

    def _put(self, table: str, row: folds.Row) -> None:
        if self._columns is None:
            found = self.reader.one("SELECT columns FROM mreg_schema")
            told = json.loads(found["columns"]) if found is not None else {}
            self._columns = {name: Columns(**each) for name, each in told.items()}
        if table not in self._columns:
            raise Stale(f"registry.duckdb has no table {table}")
        columns = self._columns[table]
        values = columns.values(row)
        key = [values[name] for name in columns.key]
        # Both in one statement, ON CONFLICT, take DuckDB four times as long.
        if self.reader.one(f"SELECT 1 FROM {table} WHERE {columns.is_key}", key) is None:  # noqa: S608 our own names
            marks = ", ".join("?" for _ in values)
            sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"  # noqa: S608 our own names
            self._connection.execute(bound(sql, list(values.values())))
        elif others := [name for name in values if name not in columns.key and name not in columns.unique]:
            changed = ", ".join(f"{name} = ?" for name in others)
            sql = f"UPDATE {table} SET {changed} WHERE {columns.is_key}"  # noqa: S608 our own names
            self._connection.execute(bound(sql, [*(values[name] for name in others), *key]))

    def get(self, table: str, key: folds.Key) -> folds.Row | None:
        """The row with this key: what the folds ask."""
        return self.reader.one(f"SELECT * FROM {table} WHERE {_is_key(table)}", key)  # noqa: S608 our own names

    def count(self, table: str) -> int:
        """How many rows there are: what the folds ask."""
        counted = self.reader.one(f"SELECT count(*) AS rows FROM {table}")  # noqa: S608 our own names
        assert counted is not None
        return int(counted["rows"])

    def event(self, id: str) -> Recorded | None:
        """The event with this id."""
        row = self.reader.one("SELECT * FROM event WHERE id = ?", [id])
        return None if row is None else _recorded(row)

    def commit(self) -> None:
        """Make what was added stay, and read the last event back. Raises Stale when it is not there."""
        self._connection.commit()
        last = self._last
        if last is not None and end_of(self.reader) != (last.seq, last.hash):
            raise Stale(f"registry.duckdb did not keep event {last.seq}")


@dataclass(frozen=True, slots=True)
class Columns:
    """A table as the file has it: the types of its columns by name, its primary key, and what else is unique."""

    table: str
    types: Mapping[str, str]
    key: Sequence[str]
    unique: Sequence[str]

    @property
    def is_key(self) -> str:
        """What is true of the row with a key, with a mark for each part of it."""
        return " AND ".join(f"{name} = ?" for name in self.key)

    def values(self, row: folds.Row) -> dict[str, Any]:
        """What to put into each column, as `bound` takes it."""
        return {name: _json(row[name]) if kind == "JSON" else row[name] for name, kind in self.types.items()}


def _json(value: Any) -> str | None:
    """As DuckDB itself writes it."""
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _columns(connection: duckdb.DuckDBPyConnection) -> dict[str, Columns]:
    """What DuckDB's catalog says. To ask it takes longer than to add an event, so the file keeps it too."""
    types: dict[str, dict[str, str]] = {}
    of_columns = (
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE NOT internal AND database_name = current_database() ORDER BY column_index"
    )
    for table, column, kind in connection.execute(of_columns).fetchall():
        types.setdefault(table, {})[column] = kind
    of_constraints = (
        "SELECT table_name, constraint_type, constraint_column_names FROM duckdb_constraints() "
        "WHERE database_name = current_database()"
    )
    constraints = connection.execute(of_constraints).fetchall()
    return {
        table: Columns(
            table,
            columns,
            [name for of, kind, names in constraints if (of, kind) == (table, "PRIMARY KEY") for name in names],
            [name for of, kind, names in constraints if (of, kind) == (table, "UNIQUE") for name in names],
        )
        for table, columns in types.items()
    }


def _events(reader: Reader) -> list[Recorded]:
    return [_recorded(row) for row in reader.rows("SELECT * FROM event ORDER BY seq")]


def _event_row(recorded: Recorded) -> folds.Row:
    row = {**recorded.body(), "hash": recorded.hash}
    # `at` is a word of SQL.
    return {**row, "recorded_at": row.pop("at")}


def _recorded(row: folds.Row) -> Recorded:
    return Recorded(**{("at" if name == "recorded_at" else name): value for name, value in row.items()})


def _put(connection: duckdb.DuckDBPyConnection, columns: Columns, rows: Sequence[folds.Row]) -> None:
    """Insert rows that are not there: one statement for many, with their JSON in it.

    DuckDB does that 40 times faster than row by row, and values that were bound to the statement would have it import
    pandas to look at them, which takes longer than all the rest of a command that writes.
    """
    shape = json.dumps([columns.types])
    values = ", ".join(f"r.{name}" for name in columns.types)
    source = "SELECT unnest(from_json(?, ?)) AS r"
    sql = f"INSERT INTO {columns.table} ({', '.join(columns.types)}) SELECT {values} FROM ({source})"  # noqa: S608
    for start in range(0, len(rows), MAX_CHUNK):
        connection.execute(bound(sql, [json.dumps(rows[start : start + MAX_CHUNK]), shape]))


def _is_key(table: str) -> str:
    return " AND ".join(f"{column} = ?" for column in folds.KEYS[table])


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")
