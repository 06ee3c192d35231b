"""An event in its place in the log: the envelope, its hash and its journal line. Light, for reading commands use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mreg.registry import canonical, digests


@dataclass(frozen=True, slots=True)
class Recorded:
    """`hash` covers every other field, `prev` is the hash of the event before (`GENESIS` for the first)."""

    seq: int
    id: str
    kind: str
    at: str
    actor: str
    payload: dict[str, Any]
    prev: str
    hash: str

    GENESIS: ClassVar[str] = "0" * 64

    def body(self) -> dict[str, Any]:
        """Every field but the hash."""
        return {
            "seq": self.seq,
            "id": self.id,
            "kind": self.kind,
            "at": self.at,
            "actor": self.actor,
            "payload": self.payload,
            "prev": self.prev,
        }

    def line(self) -> bytes:
        """The journal line, with its newline."""
        return canonical.dumps({**self.body(), "hash": self.hash}) + b"\n"


def seal(recorded: Recorded) -> Recorded:
    """The same event with the hash that it should have."""
    return replace(recorded, hash=digests.of_json(digests.EVENT, recorded.body()))


def is_sealed(recorded: Recorded) -> bool:
    """Whether the hash is that of the rest."""
    try:
        return recorded == seal(recorded)
    except canonical.NotCanonical:
        return False


def is_chained(history: Sequence[Recorded]) -> bool:
    """Whether these are the events of a log from the first on, each sealed and following the one before it."""
    before = Recorded.GENESIS
    for place, recorded in enumerate(history, start=1):
        if recorded.seq != place or recorded.prev != before or not is_sealed(recorded):
            return False
        before = recorded.hash
    return True
