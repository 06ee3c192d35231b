"""Bytes gone through in bounded memory, from a file or from what is already held.

They are read with `pread` into one small buffer and not mapped: mapped pages would count as the process's memory, and a
file cut short by somebody else would kill the process with SIGBUS where a read just ends early.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from mreg.registry.digests import Buffer

CHUNK = 1 << 20
"""Bytes held at a time: few enough to stay in the processor's cache between being read and being hashed."""


class Data(Protocol):
    """Bytes that can be gone through more than once."""

    may_change: ClassVar[bool]
    """Whether they might be other bytes the next time, as those of a file might."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order. A chunk is valid until the next one is asked for."""

    def read(self, start: int, stop: int) -> Buffer:
        """The bytes from `start` to before `stop`. Raises EOFError when they are not there any more."""


@dataclass(frozen=True, slots=True)
class Span:
    """`size` bytes of an open file, from `start`."""

    fd: int
    start: int
    size: int
    may_change: ClassVar[bool] = True

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order. Raises EOFError when the file ends before the span does."""
        buffer = memoryview(bytearray(min(CHUNK, self.size)))
        done = 0
        while done < self.size:
            wanted = min(CHUNK, self.size - done)
            count = os.preadv(self.fd, [buffer[:wanted]], self.start + done)
            if count == 0:
                raise EOFError(f"the file ends {self.size - done} bytes early")
            done += count
            yield buffer[:count]

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes from `start` to before `stop`, all of them. Raises EOFError when the file ends before."""
        data = bytearray(stop - start)
        with memoryview(data) as view:
            self.read_into(view, start)
        return data

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill `view` with the bytes from `start`. Raises EOFError when the file ends before."""
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], self.start + start + done)
            if count == 0:
                raise EOFError(f"the file ends {len(view) - done} bytes early")
            done += count


class Held:
    """Bytes already in memory, which stay as they are."""

    may_change: ClassVar[bool] = False

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self._data)

    def chunks(self) -> Iterator[memoryview]:
        """The bytes in order."""
        for start in range(0, len(self._data), CHUNK):
            yield self._data[start : start + CHUNK]

    def read(self, start: int, stop: int) -> memoryview:
        """The bytes from `start` to before `stop`."""
        return self._data[start:stop]


def write_all(fd: int, data: Buffer) -> None:
    """Write every byte of `data` where `fd` stands."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write_all_at(fd: int, data: Buffer, at: int) -> None:
    """Write every byte of `data` at a place in the file."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, at)
        rest, at = rest[count:], at + count
