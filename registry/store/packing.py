"""Planes of bytes packed one behind the other into a frame: what the codecs of stored tensors have in common.

A plane is stored as it is, as the one byte that fills it, or in a zstd frame, whichever is smallest. Its length is not
stored; who reads it knows. No more is ever allocated for a plane than that length.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import zstandard
from mreg.registry.digests import Buffer
from mreg.registry.store import kernels
from mreg.registry.store.kernels import Plane
from mreg.registry.store.layouts import Unsigned
from mreg.registry.store.scratch import scratch

_STORED, _FILLED, _ZSTD = range(3)
_LEVEL = 1
_WINDOW_LOG = 20
"""A chunk. No frame that asks for a larger window is of ours."""
_SMALLEST = 24
"""Fewer bytes are not worth a zstd frame."""
_SAMPLE = 1 << 12
"""The bytes of a plane on which the two ways to compress are compared."""


Decompress = Callable[[memoryview, int], bytes]
"""Given what is packed and the size of what comes out."""


class BadFrame(ValueError):
    """A stored chunk is damaged, or of a format that is not known here. Says why."""


class _Tools(threading.local):
    """What each thread keeps, since making it anew would take a good part of the time.

    Planes of numbers hardly repeat. A large hash table finds chance repetitions, which cost more to say than the bytes
    that they stand for: with the smallest table, planes of trained weights get a tenth smaller in a third of the time.
    The usual table is for planes that do repeat, such as text.
    """

    def __init__(self) -> None:
        self.usual = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        numbers = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, min_match=7, hash_log=6, chain_log=6, window_log=_WINDOW_LOG, write_content_size=True
        )
        self.numbers = zstandard.ZstdCompressor(compression_params=numbers)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG)


_tools = _Tools()


class Writer:
    """Packs one thing behind the other. `may_repeat` says whether planes are worth a look for repetitions."""

    def __init__(self, *, may_repeat: bool = False) -> None:
        self._parts: list[bytes] = []
        self._may_repeat = may_repeat

    def frame(self) -> bytes:
        """Everything so far."""
        return b"".join(self._parts)

    def add(self, parts: list[bytes]) -> None:
        """What compiled code wrote, which had planes compressed by `compress`."""
        self._parts += parts

    @property
    def compress(self) -> Callable[[memoryview], bytes]:
        """How a plane of numbers becomes a zstd frame."""
        return _tools.numbers.compress

    def byte(self, value: int) -> None:
        """One byte."""
        self._parts.append(bytes([value]))

    def number(self, value: int) -> None:
        """A natural number, seven bits a byte, the lowest first; the top bit says that more follow."""
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
        self._parts.append(bytes(out))

    def plane(self, plane: Plane) -> None:
        """A plane in at most one byte more than it has; an empty one takes none."""
        size = len(plane)
        if size == 0:
            return
        first = plane[0]
        if plane[-1] == first and not (plane != first).any():
            self._parts.append(bytes([_FILLED, first]))
            return
        if size >= _SMALLEST:
            compressor = _tools.usual if self._may_repeat and _repeats(plane) else _tools.numbers
            packed = compressor.compress(plane.data)
            if len(packed) + 3 < size:
                self.byte(_ZSTD)
                self.number(len(packed))
                self._parts.append(packed)
                return
        self.byte(_STORED)
        self._parts.append(plane.tobytes())

    def elements(self, elements: Unsigned, *, rotate: bool = False) -> None:
        """Elements of several bytes as that many planes, from the lowest byte to the highest; see `kernels.cut`."""
        width, count = elements.itemsize, len(elements)
        if width == 1:
            self.plane(elements.view(np.uint8))
            return
        # Differences are mostly small: what is above them need not be cut out to be seen to be nothing.
        used = width if rotate else kernels.used_bytes(elements)
        plane = scratch("plane", count)
        for place in range(used):
            kernels.cut(elements, place, plane, rotate=rotate)
            self.plane(plane)
        if count:
            self._parts.append(bytes([_FILLED, 0]) * (width - used))


def _repeats(plane: Plane) -> bool:
    """Whether the usual way to compress does better, on a sample from the middle."""
    middle = max(0, len(plane) - _SAMPLE) // 2
    sample = plane[middle : middle + _SAMPLE].data
    return len(_tools.usual.compress(sample)) < len(_tools.numbers.compress(sample))


class Reader:
    """Reads what a Writer packed, in the same order. Raises BadFrame at whatever makes no sense."""

    def __init__(self, frame: Buffer) -> None:
        self._frame = memoryview(frame).cast("B")
        self._at = 0

    def compiled(self, work: Callable[[memoryview, int, Decompress], int]) -> None:
        """Have compiled code read on from where this has got to, and say how far it got."""
        try:
            self._at = work(self._frame, self._at, _decompressed)
        except BadFrame:
            raise
        except ValueError as error:
            raise BadFrame(str(error)) from error

    def byte(self) -> int:
        """One byte."""
        if self._at == len(self._frame):
            raise BadFrame("it is cut short")
        self._at += 1
        return self._frame[self._at - 1]

    def rest(self) -> memoryview:
        """Everything that is left."""
        return self._take(len(self._frame) - self._at)

    def number(self, most: int) -> int:
        """A number that `Writer.number` wrote, `most` at most."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > most:
                raise BadFrame(f"a length is larger than {most}")
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise BadFrame("a length does not end")

    def plane(self, size: int) -> Plane:
        """A plane of `size` bytes. It may lie in the frame itself: it is for reading."""
        if size == 0:
            return np.empty(0, np.uint8)
        kind = self.byte()
        if kind == _STORED:
            return np.frombuffer(self._take(size), np.uint8)
        if kind == _FILLED:
            return np.full(size, self.byte(), np.uint8)
        if kind != _ZSTD:
            raise BadFrame(f"a plane is stored in the unknown way {kind}")
        return np.frombuffer(_decompressed(self._take(self.number(size)), size), np.uint8)

    def elements(self, out: Unsigned, *, rotate: bool = False) -> None:
        """Fill `out` with elements that `Writer.elements` packed."""
        kernels.join([self.plane(len(out)) for _ in range(out.itemsize)], out, rotate=rotate)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._frame):
            raise BadFrame(f"{len(self._frame) - self._at} bytes follow its end")

    def _take(self, count: int) -> memoryview:
        if count > len(self._frame) - self._at:
            raise BadFrame("it is cut short")
        self._at += count
        return self._frame[self._at - count : self._at]


def _decompressed(packed: memoryview, size: int) -> bytes:
    try:
        # What is allocated is what the frame says, so that is looked at first.
        if zstandard.frame_content_size(packed) != size:
            raise BadFrame("a plane has another length than it should")
        content = _tools.decompressor.decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadFrame(f"a plane cannot be decompressed ({error})") from error
    if len(content) != size:
        raise BadFrame("a plane has another length than it should")
    return content
