"""The journal: one canonical-JSON event a line, hash-chained, beside a HEAD that says where it ends.

HEAD is replaced after the line is on disk. So a line beyond HEAD is whole (the writer died before HEAD moved: it is
taken in) or torn (it was never acknowledged: it is dropped); and a journal shorter than HEAD says, or a line that does
not hash, is damage and never repaired silently.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from mreg.registry import canonical, digests, files
from mreg.registry.errors import MregError
from mreg.registry.log.recorded import Recorded, is_sealed


class DamagedLog(MregError):
    """The journal or HEAD is not what was written."""

    exit_code = 7

    def __init__(self, problem: str) -> None:
        super().__init__(problem, fix="`mreg fsck` names the damage, `mreg fsck --repair` mends what can be proved")


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log ends: the last event's `seq` and `hash`, and the journal's `size` in bytes after it."""

    seq: int
    hash: str
    size: int

    def to_bytes(self) -> bytes:
        """HEAD as it is on disk. `check` tells a flipped bit from a HEAD that contradicts the journal."""
        fields: dict[str, Any] = {"seq": self.seq, "hash": self.hash, "size": self.size}
        return canonical.dumps({**fields, "check": digests.of_json(digests.HEAD, fields)}) + b"\n"

    def moved(self, recorded: Recorded, line: bytes) -> Head:
        """Where the log ends after one more line."""
        return Head(recorded.seq, recorded.hash, self.size + len(line))


EMPTY = Head(0, Recorded.GENESIS, 0)
_END = b"\n"


class Journal:
    """The two files. Every method that writes must be called with the registry's lock held."""

    def __init__(self, root: Path) -> None:
        self.path = root / "log" / "journal.jsonl"
        self.head_path = root / "HEAD"

    def create(self) -> None:
        """Make an empty journal; nothing may be there yet."""
        self.path.parent.mkdir()
        with open(self.path, "xb") as file:
            os.fsync(file.fileno())
        files.sync_directory(self.path.parent)
        files.replace(self.head_path, EMPTY.to_bytes())

    def head(self) -> Head:
        """Where the log ends. Raises DamagedLog."""
        try:
            data = self.head_path.read_bytes()
        except FileNotFoundError as error:
            raise DamagedLog("HEAD is missing") from error
        try:
            fields = canonical.loads(data)
            head = Head(fields["seq"], fields["hash"], fields["size"])
            intact = head.to_bytes() == data
        except (ValueError, TypeError, KeyError, MregError) as error:
            raise DamagedLog("HEAD cannot be read") from error
        if not intact:
            raise DamagedLog("HEAD is not as it was written")
        return head

    def read(self) -> Iterator[Recorded]:
        """The events up to HEAD, each checked against the chain. Raises DamagedLog."""
        head, at = self.head(), EMPTY
        with self._open() as file:
            while at.size < head.size:
                line = file.readline(head.size - at.size)
                recorded = _parse(line, at)
                at = at.moved(recorded, line)
                yield recorded
        if at != head:
            raise DamagedLog(f"the journal's event {at.seq} is not the event {head.seq} that HEAD names")

    def settle(self) -> Head:
        """Bring journal and HEAD into agreement after a writer died between the two; return HEAD.

        Whole lines beyond HEAD are taken in, a torn one is cut off. Raises DamagedLog when the journal is shorter than
        HEAD says, when its last line is not HEAD's, or when what lies beyond HEAD is more than one torn line.
        """
        head = self.head()
        size = self._size()
        if size < head.size:
            raise DamagedLog(f"the journal is {head.size - size} bytes shorter than HEAD says (event {head.seq})")
        self._check_end(head)
        if size == head.size:
            return head
        settled = head
        with self._open() as file:
            file.seek(head.size)
            for line in file:
                try:
                    recorded = _parse(line, settled)
                except DamagedLog as error:
                    # A writer appends one line at a time, so what a killed one leaves is the last and not whole.
                    if file.read(1) or sealed(line) is not None:
                        raise DamagedLog(f"beyond HEAD, {error.message}") from error
                    break
                settled = settled.moved(recorded, line)
        with open(self.path, "r+b") as file:
            file.truncate(settled.size)
            os.fsync(file.fileno())
        if settled != head:
            files.replace(self.head_path, settled.to_bytes())
        return settled

    def append(self, recorded: Recorded, head: Head) -> Head:
        """Write one line after `head`, durably, then move HEAD. On failure both are as they were."""
        line = recorded.line()
        moved = head.moved(recorded, line)
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(head.size)
            try:
                left = memoryview(line)
                while left:
                    left = left[file.write(left) :]
                os.fdatasync(file.fileno())
                files.replace(self.head_path, moved.to_bytes())
            except BaseException:
                if self.head() != moved:
                    file.truncate(head.size)
                raise
        return moved

    def rewrite(self, history: Sequence[Recorded]) -> Head:
        """Replace journal and HEAD by this history; the old journal is kept beside it, as `journal.jsonl.damaged`."""
        lines = []
        at = EMPTY
        for recorded in history:
            line = recorded.line()
            at = at.moved(_parse(line, at), line)
            lines.append(line)
        self.path.parent.mkdir(exist_ok=True)
        if self.path.exists():
            self._kept().hardlink_to(self.path)
        files.replace(self.path, b"".join(lines))
        files.replace(self.head_path, at.to_bytes())
        return at

    def intact(self) -> list[Recorded]:
        """The events that can be proved from the start of the journal, whatever HEAD says."""
        found: list[Recorded] = []
        at = EMPTY
        for line in self.lines():
            try:
                found.append(_parse(line, at))
            except DamagedLog:
                break
            at = at.moved(found[-1], line)
        return found

    def lines(self) -> list[bytes]:
        """Every line of the journal, whatever it holds."""
        with self._open() as file:
            return file.readlines()

    def _kept(self) -> Path:
        """A name for the damaged journal that is not taken."""
        path, count = self.path.with_name(f"{self.path.name}.damaged"), 1
        while path.exists():
            count += 1
            path = path.with_suffix(f".damaged-{count}")
        return path

    def _check_end(self, head: Head) -> None:
        """Whether the line that ends at HEAD's size is HEAD's event."""
        if head.seq == 0:
            return
        with self._open() as file:
            start = head.size
            tail = b""
            while start > 0 and b"\n" not in tail[:-1]:
                step = min(start, 64 * 1024)
                start -= step
                file.seek(start)
                tail = file.read(step) + tail
        line = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        last = sealed(line)
        if last is None:
            raise DamagedLog(f"event {head.seq}, the last, is not as it was written")
        if (last.seq, last.hash) != (head.seq, head.hash):
            raise DamagedLog(f"the journal's last line is not the event {head.seq} that HEAD names")

    def _open(self) -> BufferedReader:
        try:
            return open(self.path, "rb")
        except FileNotFoundError as error:
            raise DamagedLog("the journal is missing") from error

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except FileNotFoundError as error:
            raise DamagedLog("the journal is missing") from error


def sealed(line: bytes) -> Recorded | None:
    """One line as an event that is spelled and hashed as it was written, wherever it belongs; None when it is not."""
    try:
        recorded = Recorded(**canonical.loads(line))
        return recorded if recorded.line() == line and is_sealed(recorded) else None
    except (ValueError, TypeError, MregError, RecursionError):
        return None


def _parse(line: bytes, before: Head) -> Recorded:
    """One line as the event that follows `before`. Raises DamagedLog."""
    seq = before.seq + 1
    recorded = sealed(line)
    if recorded is None:
        raise DamagedLog(f"event {seq} is {'not as it was written' if line.endswith(_END) else 'cut off'}")
    if recorded.seq != seq or recorded.prev != before.hash:
        raise DamagedLog(f"event {seq} does not follow the one before it")
    return recorded
