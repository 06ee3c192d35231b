"""The content of an object, a chunk at a time and in any order, however it is stored.

A residual is read with the chunks of the objects that it was predicted from, and those with theirs; chains are short
(`choosing.DEEPEST`), and each link keeps the two chunks that it decoded last.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from mreg.registry.digests import Buffer, Digest
from mreg.registry.models.safetensors_header import BITS
from mreg.registry.store.envelope import Envelope
from mreg.registry.store.framed import Frames
from mreg.registry.store.prediction import Prediction, UnknownOperation, predict
from mreg.registry.store.spans import CHUNK, Span

if TYPE_CHECKING:
    from mreg.registry.models.weights import Array


class BadContent(ValueError):
    """An object cannot be decoded. Says why, in words that follow the object's name."""


class Content(Protocol):
    """What can be read of an object."""

    envelope: Envelope
    files: int
    """How many it has open."""

    def chunk(self, number: int) -> Buffer:
        """Bytes `number · CHUNK` to `(number + 1) · CHUNK`, or to the end. Raises EOFError or BadContent.

        They are valid until the next but one is asked for, and while somebody refers to them after it was closed.
        """

    def expect(self) -> None:
        """Have the system begin to read the files, before somebody waits for them."""

    def close(self) -> None:
        """Let go of the files."""


class RawContent:
    """An object that is stored as it is."""

    def __init__(self, envelope: Envelope, fd: int, start: int) -> None:
        self.envelope = envelope
        self.files = 1
        self._span = Span(fd, start, envelope.size)
        self._memory = _Memory(envelope)

    def chunk(self, number: int) -> Buffer:
        """See `Content`."""
        start, stop = bounds(self.envelope.size, number)
        view = self._memory.next()[: stop - start]
        self._span.read_into(view, start)
        return view

    def expect(self) -> None:
        """See `Content`."""
        _expect(self._span.fd)

    def close(self) -> None:
        """See `Content`."""
        self._memory.close()
        os.close(self._span.fd)


class SoloContent:
    """An object stored in planes of its own."""

    def __init__(self, envelope: Envelope, fd: int, start: int) -> None:
        self.envelope = envelope
        self.files = 1
        self._fd = fd
        self._frames = Frames(fd, start, envelope.size)
        self._memory = _Memory(envelope)

    def chunk(self, number: int) -> Buffer:
        """See `Content`."""
        import numpy as np
        from mreg.registry.store import planes

        start, stop = bounds(self.envelope.size, number)
        into = np.frombuffer(self._memory.next(), np.uint8)
        try:
            return planes.decode(self._frames.read(number), stop - start, self.envelope.dtype or "U8", into)
        except planes.BadFrame as error:
            raise BadContent(f"has a frame that cannot be decoded ({error})") from error

    def expect(self) -> None:
        """See `Content`."""
        _expect(self._fd)

    def close(self) -> None:
        """See `Content`."""
        self._memory.close()
        os.close(self._fd)


class ResidualContent:
    """An object stored as what a prediction gets wrong."""

    def __init__(self, envelope: Envelope, fd: int, start: int, predicted: Predicted) -> None:
        self.envelope = envelope
        self.files = 1 + predicted.files
        self._fd = fd
        self._frames = Frames(fd, start, envelope.size)
        self._predicted = predicted
        self._memory = _Memory(envelope)

    def chunk(self, number: int) -> Buffer:
        """See `Content`."""
        import numpy as np
        from mreg.registry.store import deltas

        predicted = self._predicted.chunk(number)
        into = np.frombuffer(self._memory.next(), np.uint8)
        try:
            return deltas.decode(self._frames.read(number), predicted, self.envelope.dtype, into)
        except deltas.BadFrame as error:
            raise BadContent(f"has a frame that cannot be decoded ({error})") from error

    def expect(self) -> None:
        """See `Content`."""
        _expect(self._fd)
        self._predicted.expect()

    def close(self) -> None:
        """See `Content`."""
        self._memory.close()
        os.close(self._fd)
        self._predicted.close()


def _expect(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


_free: deque[bytearray] = deque(maxlen=16)
"""Chunks of memory that contents which were closed have left to others."""

_SMALL = 1 << 16
"""Contents of fewer bytes have memory of their own."""


class _Memory:
    """Room for two chunks of a content, used in turns: to have it anew takes a good part of the time of decoding."""

    def __init__(self, envelope: Envelope) -> None:
        self._size = envelope.size if envelope.size < _SMALL else CHUNK
        self._buffers: list[bytearray] = []

    def next(self) -> memoryview:
        """The buffer that was given longer ago."""
        self._buffers.insert(0, self._buffers.pop() if len(self._buffers) == 2 else self._more())
        return memoryview(self._buffers[0])

    def _more(self) -> bytearray:
        if self._size == CHUNK:
            with suppress(IndexError):
                return _free.pop()
        return bytearray(self._size)

    def close(self) -> None:
        """Leave it to others, but for what somebody still looks into."""
        while self._buffers:
            buffer = self._buffers.pop()
            if self._size == CHUNK and sys.getrefcount(buffer) == _UNSEEN:
                _free.append(buffer)


_UNSEEN = 2
"""The references to a buffer that nobody looks into: a name, and the argument of the function that counts them."""


class Predicted:
    """What a prediction says of a tensor, from stored inputs."""

    def __init__(self, envelope: Envelope, prediction: Prediction, open_content: Callable[[Digest], Content]) -> None:
        self._envelope = envelope
        self._prediction = prediction
        self._inputs: list[Content] = []
        self._elements: list[_StoredElements] = []
        try:
            for digest in prediction.inputs:
                self._inputs.append(open_content(digest))
        except BaseException:
            self.close()
            raise
        self._elements = [_StoredElements(content) for content in self._inputs]

    def chunk(self, number: int) -> Buffer:
        """The predicted bytes of a chunk. Raises BadContent where the prediction makes no sense."""
        dtype, shape = self._envelope.dtype, self._envelope.shape
        if self._prediction.operation == "same" and len(self._inputs) == 1:
            (only,) = self._inputs
            # Nothing is computed, so bytes will do, whatever the dtype.
            if (only.envelope.dtype, only.envelope.shape) == (dtype, shape):
                return self._elements[0].chunk(number)
        start, stop = (at * 8 // BITS[dtype] for at in bounds(self._envelope.size, number))
        try:
            elements = predict(
                self._prediction.operation, self._prediction.params, self._elements, dtype, shape, start, stop
            )
        except UnknownOperation as error:
            raise BadContent(f"is a residual of something unknown: {error}") from error
        return memoryview(elements.view("u1").data)

    @property
    def files(self) -> int:
        """How many files the inputs have open."""
        return sum(content.files for content in self._inputs)

    def expect(self) -> None:
        """See `Content`."""
        for content in self._inputs:
            content.expect()

    def close(self) -> None:
        """Let go of the inputs."""
        self._elements.clear()
        for content in self._inputs:
            content.close()


class _StoredElements:
    """An input as `prediction.Elements`; the two chunks that were read last are kept.

    What is asked for by rows ends in the middle of a chunk, and the next goes on there.
    """

    def __init__(self, content: Content) -> None:
        self.dtype = content.envelope.dtype
        self.shape = content.envelope.shape
        self._content = content
        self._chunks: list[tuple[int, Buffer]] = []

    def chunk(self, number: int) -> Buffer:
        """One chunk of the raw bytes."""
        for held, chunk in self._chunks:
            if held == number:
                return chunk
        self._chunks = [*self._chunks[-1:], (number, self._content.chunk(number))]
        return self._chunks[-1][1]

    def read(self, start: int, stop: int) -> Array:
        """Elements, flat. See `prediction.Elements`."""
        from mreg.registry.models.weights import Tensor

        first, last = start * BITS[self.dtype] // 8, stop * BITS[self.dtype] // 8
        return Tensor(self.dtype, (stop - start,), memoryview(self._bytes(first, last))).array()

    def _bytes(self, start: int, stop: int) -> Buffer:
        number = start // CHUNK
        if start == stop:
            return b""
        if stop <= (number + 1) * CHUNK:
            return memoryview(self.chunk(number))[start - number * CHUNK : stop - number * CHUNK]
        parts = bytearray()
        while start < stop:
            number = start // CHUNK
            end = min(stop, (number + 1) * CHUNK)
            parts += memoryview(self.chunk(number))[start - number * CHUNK : end - number * CHUNK]
            start = end
        return parts


def bounds(size: int, number: int) -> tuple[int, int]:
    """Where a chunk of a content of `size` bytes begins and ends."""
    return number * CHUNK, min(size, (number + 1) * CHUNK)
