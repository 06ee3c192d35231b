"""Planes come back as they were; whatever a frame promises, no more is read or allocated than was asked for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.store.packing import BadFrame, Reader, Writer

from tests.kernels import either_way as either_way

MEGABYTE = 1 << 20
BLOCK = 1 << 17


@given(st.lists(st.integers(0, 2**62)))
def test_numbers_come_back(numbers: list[int]) -> None:
    writer = Writer()
    for number in numbers:
        writer.number(number)

    reader = Reader(writer.frame())

    assert numbers == [reader.number(2**62) for _ in numbers]
    reader.end()


@given(st.lists(st.binary(max_size=80) | st.sampled_from([bytes(50), b"ab" * 40, b"\7" * 30]), max_size=6))
def test_planes_come_back_one_after_another(planes: list[bytes]) -> None:
    writer = Writer()
    for plane in planes:
        writer.plane(np.frombuffer(plane, np.uint8))

    reader = Reader(writer.frame())

    assert planes == [reader.plane(len(plane)).tobytes() for plane in planes]
    reader.end()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("top", [0, 200, 60_000, 2**31, 2**63])
def test_elements_come_back_whatever_bytes_they_use(width: int, top: int) -> None:
    dtype = np.dtype(f"<u{width}")
    elements = np.array([0, 1, 255, top % 256**width] * 30, np.uint64).astype(dtype)
    writer = Writer()
    writer.elements(elements)

    reader = Reader(writer.frame())
    found = np.empty_like(elements)
    reader.elements(found)
    reader.end()

    assert elements.tolist() == found.tolist()


def test_a_number_that_is_larger_than_it_may_be_is_told() -> None:
    writer = Writer()
    writer.number(1000)

    with pytest.raises(BadFrame, match="larger than 999"):
        Reader(writer.frame()).number(999)


@pytest.mark.parametrize(
    ("promised", "window", "blocks"),
    [
        (64 * MEGABYTE, 0x50, 512),
        (MEGABYTE, 0x50, 512),
        (MEGABYTE, 0x50, 7),
        (MEGABYTE, 0x88, 512),
        (MEGABYTE, 0xB0, 7),
    ],
    ids=["it says so", "it does not say so", "too little", "a window of 128 MiB", "a window of 4 GiB"],
)
def test_a_plane_that_would_unpack_to_something_else_is_told_and_not_allocated(
    promised: int, window: int, blocks: int
) -> None:
    packed = zstd_of_zeros(promised, window, blocks)
    writer = Writer()
    writer.byte(2)
    writer.number(len(packed))
    frame = writer.frame() + packed

    tracemalloc.start()
    with pytest.raises(BadFrame):
        Reader(frame).plane(MEGABYTE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * MEGABYTE


def test_a_plane_of_as_many_bytes_as_it_promises_is_read() -> None:
    packed = zstd_of_zeros(MEGABYTE, 0x50, 8)
    writer = Writer()
    writer.byte(2)
    writer.number(len(packed))

    assert bytes(MEGABYTE) == Reader(writer.frame() + packed).plane(MEGABYTE).tobytes()


def zstd_of_zeros(promised: int, window: int, blocks: int) -> bytes:
    """A zstd frame (RFC 8878) that promises a size and asks for a window, in blocks of 128 KiB of zeros."""
    repeated = [((BLOCK << 3) | 2 | (place == blocks - 1)).to_bytes(3, "little") + b"\0" for place in range(blocks)]
    return b"\x28\xb5\x2f\xfd\x80" + bytes([window]) + promised.to_bytes(4, "little") + b"".join(repeated)
