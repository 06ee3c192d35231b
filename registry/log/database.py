"""DuckDB through SQLModel, for writing: the event table and its projections, changed in one transaction.

The database is a cache of the journal: it may be behind or missing, which costs a refold, never data. Every method
must be called with the registry's lock held; readers may hold the file for moments, which is waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mreg.registry import files
from mreg.registry.log import folds
from mreg.registry.log.journal import Head
from mreg.registry.log.reading import SCHEMA, Busy, Reader, Stale, bound, check_end, end_of, is_busy
from mreg.registry.log.recorded import Recorded
from mreg.registry.log.tables import TABLES, EventRow
from mreg.registry.signals import put_off
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable
from sqlmodel import Session, col, create_engine, select, text

MAX_CHUNK = 2_000
"""Rows in one bulk insert."""


class Database:
    """The one writer of `registry.duckdb`."""

    def __init__(self, path: Path, *, wait: float) -> None:
        self.path = path
        self.wait = wait
        # It remembers compiled statements from one session to the next, and holds no connection in between.
        self._engine = create_engine(URL.create("duckdb", database=str(path)), poolclass=StaticPool)

    @contextmanager
    def writing(self, at: Head) -> Iterator[Writing]:
        """Open the file to add events after `at`; what is not committed is undone at the end.

        Raises Stale when the database does not end at `at`, and Busy.
        """
        with self._session() as session:
            writing = Writing(session)
            check_end(writing.reader, (at.seq, at.hash))
            yield writing

    def append(self, history: Sequence[Recorded], at: Head) -> None:
        """Add events after `at` in one transaction."""
        with self.writing(at) as writing:
            for recorded in history:
                writing.add(recorded)
            writing.commit()

    def end(self) -> tuple[int, str]:
        """The `seq` and `hash` of the last event it holds. Raises Stale or DBAPIError when it cannot be read."""
        with self._session() as session:
            return end_of(_reader(session))

    def rebuild(self, history: list[Recorded]) -> None:
        """Make the file anew from the whole history: built beside it, then renamed into its place."""
        fresh = self.path.with_name(f".{self.path.name}.new")
        for leftover in (fresh, _wal(fresh)):
            leftover.unlink(missing_ok=True)
        try:
            with Database(fresh, wait=self.wait)._session() as session:
                for row in TABLES.values():
                    session.execute(CreateTable(row.__table__))  # type: ignore[attr-defined]  # set by SQLModel
                session.execute(text(f"CREATE TABLE mreg_schema AS SELECT {SCHEMA} AS version"))
                _put(session, "event", [_event_row(recorded) for recorded in history])
                for table, rows in folds.fold(history).items():
                    _put(session, table, list(rows.values()))
                session.commit()
                session.execute(text("CHECKPOINT"))
            _wal(self.path).unlink(missing_ok=True)
            fresh.replace(self.path)
        finally:
            for leftover in (fresh, _wal(fresh)):
                leftover.unlink(missing_ok=True)
        files.sync_directory(self.path.parent)

    def events(self) -> list[Recorded]:
        """The events as the database holds them, in order; a second copy of the journal, not checked."""
        with self._session() as session:
            return _events(session)

    def everything(self) -> tuple[list[Recorded], folds.Tables]:
        """The events and every projection as they are stored: what `fsck` compares with the journal and its fold."""
        stored = folds.Tables()
        with self._session() as session:
            for table in folds.KEYS:
                for row in session.exec(select(TABLES[table])):
                    stored.apply(folds.Put(table, row.model_dump()))
            return _events(session), stored

    @contextmanager
    def _session(self) -> Iterator[Session]:
        """A session on the file, closed again at the end, which undoes what it did not commit.

        Ctrl-C is put off meanwhile: DuckDB would end whatever it is doing, closing included, and keep the file locked.
        Raises Busy after `wait` seconds.
        """
        with put_off() as signals:
            try:
                with self._opened(signals) as session:
                    yield session
            finally:
                self._engine.dispose()

    def _opened(self, signals: Sequence[int]) -> Session:
        deadline = time.monotonic() + self.wait
        while True:
            session = Session(self._engine)
            try:
                session.connection()
                return session
            except DBAPIError as error:
                session.close()
                if not is_busy(error.orig or error):
                    raise
                if signals or time.monotonic() > deadline:
                    raise Busy(self.path, self.wait) from error
                time.sleep(0.02)


class Writing:
    """The database while it is open for writing, in one transaction. `reader` sees what the transaction sees."""

    def __init__(self, session: Session) -> None:
        self.reader = _reader(session)
        self._session = session
        self._last: Recorded | None = None

    def add(self, recorded: Recorded) -> None:
        """Fold one event into the transaction."""
        _put(self._session, "event", [_event_row(recorded)])
        for change in folds.changes(recorded, self):
            if isinstance(change, folds.Put):
                _put(self._session, change.table, [change.row])
            else:
                _run(self._session, f"DELETE FROM {change.table} WHERE {_is_key(change.table)}", change.key)  # noqa: S608
        self._last = recorded

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
        self._session.commit()
        last = self._last
        if last is not None and end_of(_reader(self._session)) != (last.seq, last.hash):
            raise Stale(f"registry.duckdb did not keep event {last.seq}")


def _reader(session: Session) -> Reader:
    connection: Any = session.connection().connection
    return Reader(connection)


def _events(session: Session) -> list[Recorded]:
    rows = session.exec(select(EventRow).order_by(col(EventRow.seq)))
    return [_recorded(row.model_dump()) for row in rows]


def _event_row(recorded: Recorded) -> folds.Row:
    row = {**recorded.body(), "hash": recorded.hash}
    # `at` is a word of SQL.
    return {**row, "recorded_at": row.pop("at")}


def _recorded(row: folds.Row) -> Recorded:
    return Recorded(**{("at" if name == "recorded_at" else name): value for name, value in row.items()})


def _put(session: Session, table: str, rows: Sequence[folds.Row]) -> None:
    """Insert rows, or replace those with their keys: one statement for many, with their JSON in it.

    DuckDB does that 40 times faster than row by row, and values that were bound to the statement would have it import
    pandas to look at them, which takes longer than all the rest of a command that writes.
    """
    columns = TABLES[table].__table__.columns  # type: ignore[attr-defined]  # set by SQLModel
    # The dialect's spelling: in plain SQL a float is called FLOAT, which DuckDB keeps in 32 bits.
    dialect = session.get_bind().dialect
    shape = json.dumps([{column.name: column.type.compile(dialect=dialect) for column in columns}])
    names = ", ".join(column.name for column in columns)
    values = ", ".join(f"r.{column.name}" for column in columns)
    key = ", ".join(column.name for column in columns if column.primary_key)
    changed = ", ".join(f"{c.name} = excluded.{c.name}" for c in columns if not c.primary_key and not c.unique)
    source = "SELECT unnest(from_json(?, ?)) AS r"
    sql = (
        f"INSERT INTO {table} ({names}) SELECT {values} FROM ({source}) "  # noqa: S608 our own names
        f"ON CONFLICT ({key}) DO UPDATE SET {changed}"
    )
    for start in range(0, len(rows), MAX_CHUNK):
        _run(session, sql, [json.dumps(rows[start : start + MAX_CHUNK]), shape])


def _run(session: Session, sql: str, parameters: Sequence[Any]) -> None:
    session.connection().exec_driver_sql(bound(sql, parameters))


def _is_key(table: str) -> str:
    return " AND ".join(f"{column} = ?" for column in folds.KEYS[table])


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")
