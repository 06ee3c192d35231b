"""A database file attached to the DuckDB of this process, for as long as somebody looks into it.

To make a DuckDB takes several times as long as to attach a file to it, so it is made once, in memory, and is empty.
It has no threads of its own: the tables are small, and a fork would lose them.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry.signals import put_off

if TYPE_CHECKING:
    import duckdb
else:
    try:
        # The library without the package around it, which looks up its own version and takes a third of the time that a
        # reading command has.
        import _duckdb as duckdb
    except ImportError:
        import duckdb

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
}

_BREAKS = (duckdb.FatalException, duckdb.InternalException)
"""After these a DuckDB answers nothing any more, whatever file it was about."""


def is_busy(error: BaseException) -> bool:
    """Whether a DuckDB error means that another process, or another thread of this one, has the file open."""
    said = str(error)
    return any(
        words in said
        for words in (
            "Could not set lock on file",
            "different configuration than existing",
            "Unique file handle conflict",
        )
    )


class Attached:
    """A connection to a database file, whose tables it sees by their names.

    Closed, or forgotten, it undoes what was not committed and lets go of the file.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        """Raises duckdb.Error: one that `is_busy`, or what is wrong with the file."""
        self._detach: weakref.finalize[..., Attached] | None = None
        try:
            with put_off():
                engine = _engine()
                self.connection, alias = engine.attach(str(path), read_only=read_only)
                self._detach = weakref.finalize(self, engine.detach, self.connection, alias)
                self._detach.atexit = False
        except BaseException:
            # Ctrl-C was put off until the file was open.
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; once is enough."""
        if self._detach is not None:
            self._detach()


class _Engine:
    """A DuckDB in memory. Readers of a file share it: to close one descriptor of a file unlocks it for the process."""

    def __init__(self) -> None:
        self.broken = False
        self._base = duckdb.connect(":memory:", config=_SETTINGS)
        # Whoever is forgotten lets go of a file in the midst of anything, on the same thread too.
        self._guard = threading.RLock()
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}
        self._readers: dict[str, int] = {}

    def attach(self, path: str, *, read_only: bool) -> tuple[duckdb.DuckDBPyConnection, str]:
        """A connection to the file, and what to give to `detach`."""
        with self._guard:
            alias = self._names.get(path) if read_only else None
            connection = self._base.cursor()
            try:
                if alias is None:
                    alias = f"file{next(self._numbers)}"
                    quoted = path.replace("'", "''")
                    connection.execute(f"ATTACH '{quoted}' AS {alias}{' (READ_ONLY)' if read_only else ''}")
                    if read_only:
                        self._names[path] = alias
                self._readers[alias] = self._readers.get(alias, 0) + 1
                connection.execute(f"USE {alias}")
            except BaseException as error:
                self.broken = self.broken or isinstance(error, _BREAKS)
                if alias in self._readers:
                    self.detach(connection, alias)
                raise
            return connection, alias

    def detach(self, connection: duckdb.DuckDBPyConnection, alias: str) -> None:
        """Close a connection, and the file after the last one to it."""
        with put_off(), self._guard:
            connection.close()
            self._readers[alias] -= 1
            if self._readers[alias]:
                return
            del self._readers[alias]
            for path in [path for path, name in self._names.items() if name == alias]:
                del self._names[path]
            try:
                self._base.execute(f"DETACH {alias}")
            except duckdb.Error:
                # It closes its files when nobody refers to it any more.
                self.broken = True


_current: _Engine | None = None
_making = threading.Lock()


def _engine() -> _Engine:
    global _current
    with _making:
        if _current is None or _current.broken:
            _current = _Engine()
        return _current


def _forget() -> None:
    """A forked child makes one of its own."""
    global _current, _making
    _current, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
