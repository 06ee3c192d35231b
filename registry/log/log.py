"""The log: journal, HEAD and database as one thing that is appended to under a lock and read without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mreg.registry import files
from mreg.registry.errors import MregError
from mreg.registry.log.journal import EMPTY, DamagedLog, Head, Journal
from mreg.registry.log.reading import UNUSABLE, Busy, Reader, Stale, end_of, interruptible, reading
from mreg.registry.log.recorded import is_chained

if TYPE_CHECKING:
    from mreg.registry.log import folds
    from mreg.registry.log.database import Database
    from mreg.registry.log.events import Event
    from mreg.registry.log.recorded import Recorded

T = TypeVar("T")


class LogMoved(MregError):
    """Somebody appended an event since this writer looked."""

    exit_code = 10

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"the log moved on from event {expected} to event {found} meanwhile", fix="run it again")


class IdTaken(MregError):
    """An event with this id was recorded with other content."""

    exit_code = 10


class Log:
    """One registry's log. Clock, ids and actor are the caller's; `notify` tells a person of waits and of healing."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], str],
        new_id: Callable[[], str],
        actor: str,
        wait: float,
        notify: Callable[[str], None],
    ) -> None:
        self.root = root
        self.clock = clock
        self.new_id = new_id
        self.actor = actor
        self.wait = wait
        self.notify = notify
        self.path = root / "registry.duckdb"
        self._looks = threading.local()

    def create(self) -> None:
        """Make an empty log on disk; nothing may be there yet."""
        self._journal().create()
        self._database.rebuild([])

    def append(
        self,
        event: Event,
        *,
        id: str | None = None,
        expected: int | None = None,
        then: Callable[[Reader], object] = lambda reader: None,
    ) -> Recorded:
        """Record an event durably and fold it; return it in its place.

        `expected` is the seq of the last event that the writer's decision rests on: LogMoved is raised when another
        came since. An id that is there already with the same event is acknowledged again; with another, IdTaken.
        `then` sees the projections right after the event, unless that was known already.
        """

        def decision(reader: Reader) -> Event:
            if expected is not None and (found := end_of(reader)[0]) != expected:
                raise LogMoved(expected, found)
            return event

        recorded = self._record(decision, id, then)
        assert recorded is not None
        if id is not None and not _says(recorded, event):
            raise IdTaken(f"the event id {id} is taken by event {recorded.seq}", fix="use a new id")
        return recorded

    def append_and_ask(self, event: Event, question: Callable[[Reader], T]) -> tuple[Recorded, T]:
        """Record an event as `append` does, and put a question to the projections right after it."""
        answers: list[T] = []
        recorded = self.append(event, then=lambda reader: answers.append(question(reader)))
        return recorded, answers[0] if answers else self.ask(question)

    def decide(self, decision: Callable[[Reader], Event | None]) -> Recorded | None:
        """Record the event that `decision` makes of the projections, which nobody can change meanwhile.

        It holds everybody up, so it must be quick and ask nobody but its reader, and it may be made twice. None, or an
        error, records nothing.
        """
        return self._record(decision)

    def ask(self, question: Callable[[Reader], T]) -> T:
        """Put a question to the projections as of HEAD; heal them first, and ask again, if need be."""
        if (look := self._look()) is not None:
            try:
                with interruptible():
                    return question(look.reader(self._reading))
            except Stale:
                look.close()
        for attempt in range(3):
            try:
                with self._reading() as reader:
                    return question(reader)
            except Stale as stale:
                if attempt == 2:
                    raise DamagedLog(f"registry.duckdb cannot be read ({_first_line(stale)})") from stale
                self.heal(_first_line(stale) if attempt else "")
        raise AssertionError("unreachable")

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Have what this thread asks inside answered by a database opened once, which takes most of an answer's time.

        Writers wait meanwhile, so it is for moments. What is recorded inside closes the database first.
        """
        if self._look() is not None:
            yield
            return
        look = self._looks.look = _Look()
        try:
            yield
        finally:
            self._looks.look = None
            look.close()

    def _look(self) -> _Look | None:
        """The one that this thread is in."""
        return getattr(self._looks, "look", None)

    def _reading(self) -> AbstractContextManager[Reader]:
        return reading(self.path, head=self._end, wait=self.wait, notify=self.notify)

    def heal(self, why: str = "") -> None:
        """Make the database hold what the journal does; anew when `why` says what is wrong with it.

        Raises DamagedLog when the database proves that the journal has lost events.
        """
        with self.locked(), files.disk_errors():
            self._journal().settle()
            self._heal(why)

    def rebuild(self) -> int:
        """Drop the database and fold it again from the journal; return how many events it holds. Raises as `heal`."""
        with self.locked(), files.disk_errors():
            head = self._journal().settle()
            self._rebuild(list(self._journal().read()))
            return head.seq

    def copy_of_events(self) -> list[Recorded] | None:
        """The events as the database has them, not checked; None when it cannot be read. The lock is held."""
        return self._copied(lambda database: database.events())

    def copy_of_everything(self) -> tuple[list[Recorded], folds.Tables] | None:
        """Events and projections as the database has them; None when it cannot be read. The lock is held."""
        return self._copied(lambda database: database.everything())

    def _copied(self, read: Callable[[Database], T]) -> T | None:
        try:
            return read(self._database) if self.path.exists() else None
        except UNUSABLE:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the registry's lock. Raises Busy after `wait` seconds."""
        if (look := self._look()) is not None:
            look.close()
        # Imported here because reading takes no lock, and the import a third of the time that a reading command has.
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / "lock")
        try:
            try:
                lock.acquire(timeout=min(1.0, self.wait))
            except Timeout:
                self.notify("waiting for another process that is writing to this registry …")
                lock.acquire(timeout=max(0.0, self.wait - 1.0))
        except Timeout as error:
            raise Busy(self.root / "lock", self.wait) from error
        try:
            yield
        finally:
            lock.release()

    def _record(
        self,
        decision: Callable[[Reader], Event | None],
        id: str | None = None,
        then: Callable[[Reader], object] = lambda reader: None,
    ) -> Recorded | None:
        """Journal line, HEAD and database transaction, in this order; the event known by `id` if there is one.

        The transaction is made ready first, so that an event that cannot be folded never reaches the journal, and
        committed last, so that the database never holds what the journal does not. Ctrl-C waits while the database is
        open.
        """
        from mreg.registry.log.events import record

        with self.locked(), files.disk_errors():
            head = self._journal().settle()
            durable = None
            for attempt in range(3):
                try:
                    with self._database.writing(head) as writing:
                        if id is not None and (known := writing.event(id)) is not None:
                            return known
                        event = decision(writing.reader)
                        if event is None:
                            return None
                        recorded = record(
                            event,
                            seq=head.seq + 1,
                            id=id or self.new_id(),
                            at=self.clock(),
                            actor=self.actor,
                            prev=head.hash,
                        )
                        writing.add(recorded)
                        self._journal().append(recorded, head)
                        durable = recorded
                        writing.commit()
                        with suppress(Stale):
                            then(writing.reader)
                    return recorded
                except UNUSABLE as error:
                    if durable is not None:
                        self.notify(f"registry.duckdb is behind ({_first_line(error)}); the journal has the event")
                        return durable
                    if attempt == 2:
                        raise DamagedLog(f"registry.duckdb cannot be written ({_first_line(error)})") from error
                    self._heal(_first_line(error) if attempt else "")
        raise AssertionError("unreachable")

    def _heal(self, why: str) -> None:
        history = list(self._journal().read())
        if not self.path.exists():
            why = "it is missing"
        try:
            if not why:
                seq, end = self._database.end()
                at = Head(seq, end, 0)
                if at == EMPTY or (seq <= len(history) and history[seq - 1].hash == end):
                    if seq < len(history):
                        self._database.append(history[seq:], at)
                        self.notify(f"registry.duckdb was brought up from event {seq} to {len(history)} of the journal")
                    return
                why = "it does not follow the journal"
        except UNUSABLE as error:
            why = _first_line(error)
        self.notify(f"registry.duckdb is rebuilt from the journal: {why}")
        self._rebuild(history)

    def _rebuild(self, history: list[Recorded]) -> None:
        stored = self.copy_of_events() or []
        if is_chained(stored) and stored != history[: len(stored)]:
            lost = next(r.seq for r in stored if r.seq > len(history) or r != history[r.seq - 1])
            raise DamagedLog(f"the journal lacks event {lost}, of which registry.duckdb has a copy")
        try:
            self._database.rebuild(history)
        except UNUSABLE as error:
            raise files.StorageFailed(
                f"registry.duckdb cannot be written: {_first_line(error)}",
                fix="free some space, or check the mode of that folder; every event is safe in the journal",
            ) from error

    def _end(self) -> tuple[int, str]:
        head = self._journal().head()
        return head.seq, head.hash

    def _journal(self) -> Journal:
        return Journal(self.root)

    @cached_property
    def _database(self) -> Database:
        # Imported here because reading does not need it.
        from mreg.registry.log.database import Database

        return Database(self.path, wait=self.wait)


class _Look:
    """A database that is open for one thread to ask."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._reader: Reader | None = None

    def reader(self, opened: Callable[[], AbstractContextManager[Reader]]) -> Reader:
        """The reader, opened when it is first asked for. Raises as `reading` does."""
        if self._reader is None:
            self._reader = self._opened.enter_context(opened())
        return self._reader

    def close(self) -> None:
        """Let writers in."""
        self._reader = None
        self._opened.close()


def _says(recorded: Recorded, event: Event) -> bool:
    """Whether what was recorded is this event."""
    from mreg.registry.log.events import event_of, record

    # Recorded in the same place, for a payload is not the same before and after it was JSON.
    again = record(event, seq=recorded.seq, id=recorded.id, at=recorded.at, actor=recorded.actor, prev=recorded.prev)
    return recorded == again or event_of(recorded) == event_of(again)


def _first_line(error: Exception) -> str:
    """What a database error says, without the statement that it quotes."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
