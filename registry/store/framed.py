"""The payload of an encoded object: a frame for each chunk of the content, then where they end, then a checksum.

A frame can be read without those before it. The checksum is over the whole file, envelope included, so that an object
can be proved to be what was written without decoding it, and no bit of it can flip unseen.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from blake3 import blake3
from mreg.registry.digests import Buffer
from mreg.registry.store.envelope import BadEnvelope
from mreg.registry.store.spans import CHUNK, Span, write_all

CHECKSUM = 32


def frame_count(size: int) -> int:
    """How many frames a content of `size` bytes has."""
    return -(-size // CHUNK)


class Frames:
    """The frames of an open object file. `start` is where its envelope ends, `size` that of the content."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        count = frame_count(size)
        end = os.fstat(fd).st_size - 4 * count - CHECKSUM
        index = os.pread(fd, 4 * count, max(end, 0))
        if end < start or len(index) < 4 * count:
            raise BadEnvelope("is cut short")
        self._bounds = [start]
        for length in struct.unpack(f"<{count}I", index):
            self._bounds.append(self._bounds[-1] + length)
        if self._bounds[-1] != end:
            raise BadEnvelope(f"holds {end - start} bytes of frames instead of {self._bounds[-1] - start}")

    def read(self, number: int) -> bytes:
        """One frame. Raises EOFError when the file got shorter."""
        start, end = self._bounds[number : number + 2]
        frame = os.pread(self._fd, end - start, start)
        if len(frame) < end - start:
            raise EOFError("the file ends early")
        return frame


def write(fd: int, head: bytes, frames: Iterator[Buffer]) -> None:
    """Write an encoded object, from its envelope to its checksum, where `fd` stands."""
    hasher = blake3()
    lengths = []

    def put(data: Buffer) -> None:
        hasher.update(data)
        write_all(fd, data)

    put(head)
    for frame in frames:
        lengths.append(len(frame))
        put(frame)
    put(struct.pack(f"<{len(lengths)}I", *lengths))
    write_all(fd, hasher.digest())


def is_as_written(fd: int) -> bool:
    """Whether an encoded object's file has its checksum."""
    size = os.fstat(fd).st_size - CHECKSUM
    if size < 0:
        return False
    hasher = blake3()
    for chunk in Span(fd, 0, size).chunks():
        hasher.update(chunk)
    return os.pread(fd, CHECKSUM, size) == hasher.digest()
