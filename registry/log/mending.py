"""Mending a damaged journal from every copy of its events that can be proved, and from nothing else.

An event proves itself: it is spelled and hashed as it was written. Such events from the journal and from the database
make one chain from the first event on, or the history is in dispute and is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mreg.registry.log.journal import DamagedLog, Head, Journal, sealed
from mreg.registry.log.recorded import Recorded, is_sealed

if TYPE_CHECKING:
    from mreg.registry.log.log import Log


def mend(log: Log) -> str | None:
    """Restore journal and HEAD; say what was done, or None when they are sound.

    Raises DamagedLog when the copies cannot prove the whole history, or contradict each other.
    """
    journal = Journal(log.root)
    with log.locked():
        copy = log.copy_of_events()
        try:
            head: Head | None = journal.head()
        except DamagedLog:
            head = None
        try:
            journal.settle()
            history = list(journal.read())
            if copy is None or len(copy) <= len(history):
                return None
            damage = f"the journal lacks event {len(history) + 1}"
        except DamagedLog as error:
            damage = error.message
        lines = _lines(journal)
        proved = splice([*filter(None, map(sealed, lines)), *filter(is_sealed, copy or ())])
        if head is None and (copy is None or len(lines) > len(proved)):
            raise DamagedLog(f"{damage}, and nothing else proves where the log ends")
        if head is not None and head.seq and (head.seq > len(proved) or proved[head.seq - 1].hash != head.hash):
            raise DamagedLog(f"{damage}, and no other copy reaches event {head.seq}, where HEAD says that the log ends")
        if copy and (len(copy) > len(proved) or proved[len(copy) - 1] != copy[-1]):
            raise DamagedLog(f"{damage}, and registry.duckdb has another history")
        journal.rewrite(proved)
    return f"the journal was restored ({damage}): {len(proved)} events are proved; the damaged one is kept beside it"


def splice(found: Iterable[Recorded]) -> list[Recorded]:
    """The one chain that these events make, each of which is sealed; the same event may come several times.

    Raises DamagedLog when two of them follow the same one, or one follows none.
    """
    events = {recorded.hash: recorded for recorded in found}
    after: dict[str, Recorded] = {}
    for recorded in events.values():
        other = after.setdefault(recorded.prev, recorded)
        if other is not recorded:
            raise DamagedLog(f"there are two events {recorded.seq}, both of which follow event {recorded.seq - 1}")
    chain: list[Recorded] = []
    at = Recorded.GENESIS
    while at in after and after[at].seq == len(chain) + 1:
        chain.append(after[at])
        at = chain[-1].hash
    if len(chain) < len(events):
        raise DamagedLog(f"event {len(chain) + 1} is lost, and there are others after it")
    return chain


def _lines(journal: Journal) -> list[bytes]:
    try:
        return journal.lines()
    except DamagedLog:
        return []
