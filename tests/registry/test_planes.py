"""A chunk on its own: bit for bit, smaller where trained, and damage is told."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mreg.registry.models.safetensors_header import BITS
from mreg.registry.store import planes
from mreg.registry.store.layouts import layout_of
from mreg.registry.store.planes import BadFrame

from tests.chunks import CHUNK, DTYPES, SIZES, chunks, damaged, noise, trained
from tests.kernels import either_way as either_way


@given(st.sampled_from(DTYPES), st.data())
def test_any_bits_come_back(dtype: str, data: st.DataObject) -> None:
    content = data.draw(chunks(dtype, SIZES))

    frame = planes.encode(content, dtype)

    assert content == planes.decode(frame, len(content), dtype)
    assert len(frame) <= len(content) + 1


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I8", "I64", "C64"])
def test_a_whole_chunk_comes_back(dtype: str) -> None:
    content = trained(dtype, CHUNK)

    assert content == planes.decode(planes.encode(content, dtype), CHUNK, dtype)


def test_every_dtype_of_the_format_fills_its_chunks() -> None:
    assert {dtype: 8 * layout_of(dtype).width for dtype in BITS} == {
        dtype: 32 if dtype == "C64" else max(8, bits) if bits % 8 == 0 else 8 for dtype, bits in BITS.items()
    }


def test_every_pattern_of_sixteen_bits_comes_back() -> None:
    content = np.arange(1 << 16, dtype="<u2").tobytes()

    for dtype in ("BF16", "F16", "I16"):
        assert content == planes.decode(planes.encode(content, dtype), len(content), dtype)


@pytest.mark.parametrize(("dtype", "most"), [("BF16", 0.68), ("F32", 0.85), ("F16", 0.9)])
def test_trained_weights_get_smaller(dtype: str, most: float) -> None:
    content = trained(dtype, CHUNK)

    assert len(planes.encode(content, dtype)) < most * len(content)


def test_what_repeats_gets_small_as_text_does() -> None:
    text = "".join(f'{{"id": {number}, "content": "token {number % 97}"}}, ' for number in range(20_000)).encode()

    assert len(planes.encode(text[:CHUNK], "U8")) < 0.2 * CHUNK


def test_zeros_take_next_to_nothing() -> None:
    assert len(planes.encode(bytes(CHUNK), "F32")) < 20


def test_noise_is_stored_as_it_is() -> None:
    content = noise(CHUNK)

    assert bytes([0]) + content == planes.encode(content, "U8")


def test_the_same_chunk_gives_the_same_frame_in_every_thread() -> None:
    contents = [trained("BF16", size) for size in (CHUNK, 1 << 16, 1000)]
    expected = [planes.encode(content, "BF16") for content in contents]
    found: list[bool] = []

    def work() -> None:
        for _ in range(3):
            for content, frame in zip(contents, expected, strict=True):
                found.append(planes.encode(content, "BF16") == frame)
                found.append(planes.decode(frame, len(content), "BF16") == content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [True] * 4 * 3 * 2 * len(contents) == found


def test_a_decoded_chunk_stays_when_the_next_is_decoded() -> None:
    first, second = trained("BF16", 4096), trained("BF16", 8192)[4096:]

    kept = planes.decode(planes.encode(first, "BF16"), 4096, "BF16")
    planes.decode(planes.encode(second, "BF16"), 4096, "BF16")

    assert first == kept


@given(st.randoms(use_true_random=False), st.sampled_from(["BF16", "F32", "U8"]))
def test_a_damaged_frame_gives_its_error_or_as_many_bytes(random: random.Random, dtype: str) -> None:
    content = trained(dtype, 6000)

    frame = damaged(planes.encode(content, dtype), random)

    with suppress(BadFrame):
        assert len(content) == len(planes.decode(frame, len(content), dtype))


@given(st.binary(max_size=60), st.sampled_from(["BF16", "F32", "U8"]))
@example(b"", "U8")
@example(b"\0", "U8")
@example(b"\1\2\x80", "U8")
def test_bytes_that_are_no_frame_give_its_error_or_as_many_bytes(frame: bytes, dtype: str) -> None:
    with suppress(BadFrame):
        assert 40 == len(planes.decode(frame, 40, dtype))


def test_every_way_to_cut_a_frame_short_is_told() -> None:
    frame = planes.encode(trained("BF16", 2000), "BF16")

    for length in range(len(frame)):
        with pytest.raises(BadFrame):
            planes.decode(frame[:length], 2000, "BF16")


def test_a_frame_of_another_size_is_told() -> None:
    for content in (trained("BF16", 2000), noise(2000)):
        frame = planes.encode(content, "BF16")

        for size in (0, 2, 1998, 2002, CHUNK):
            with pytest.raises(BadFrame):
                planes.decode(frame, size, "BF16")
