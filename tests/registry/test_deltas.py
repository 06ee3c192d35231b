"""A chunk against a predicted one: bit for bit, small where little changed, and damage is told."""

from __future__ import annotations

import random
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mreg.registry.store import deltas, planes
from mreg.registry.store.deltas import BadFrame
from mreg.registry.store.layouts import layout_of

from tests.chunks import CHUNK, DTYPES, as_dtype, changed, damaged, elements, noise, trained
from tests.kernels import either_way as either_way

FLOATS = ["BF16", "F16", "F32", "F64", "C64", "F8_E4M3", "F8_E5M2"]


def numbers(count: int, seed: int = 0, spread: float = 0.03) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(count) * spread


def tuned(dtype: str, size: int, step: float) -> tuple[bytes, bytes]:
    """A chunk after a fine-tune that moved every weight by about `step`, and the one before."""
    before = numbers(size // layout_of(dtype).width)
    return as_dtype(before + numbers(len(before), 1, step), dtype), as_dtype(before, dtype)


@given(st.sampled_from(DTYPES), st.data())
def test_any_change_of_any_bits_comes_back(dtype: str, data: st.DataObject) -> None:
    content, predicted = data.draw(changed(dtype))

    frame = deltas.encode(content, predicted, dtype)

    assert content == deltas.decode(frame, predicted, dtype)
    assert len(frame) <= len(content) + 2
    assert (frame == b"") == (content == predicted)


@pytest.mark.parametrize("dtype", [*FLOATS, "I8", "I32", "I64"])
@pytest.mark.parametrize("step", [3e-6, 2e-4, 3e-2])
def test_a_whole_chunk_comes_back(dtype: str, step: float) -> None:
    content, predicted = tuned(dtype, CHUNK, step)

    assert content == deltas.decode(deltas.encode(content, predicted, dtype), predicted, dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "I16", "U16"])
def test_every_pattern_of_sixteen_bits_may_become_any_other(dtype: str) -> None:
    predicted = np.arange(1 << 16, dtype="<u2")

    for by in (0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x0180):
        content = (predicted + np.uint16(by)).tobytes()
        frame = deltas.encode(content, predicted.tobytes(), dtype)

        assert content == deltas.decode(frame, predicted.tobytes(), dtype)


@pytest.mark.parametrize(
    ("dtype", "step", "most"),
    [("BF16", 3e-6, 0.03), ("BF16", 5e-5, 0.18), ("BF16", 4e-4, 0.33), ("F16", 5e-5, 0.35), ("F32", 1e-5, 0.66)],
)
def test_a_fine_tune_takes_a_part_of_what_its_weights_take(dtype: str, step: float, most: float) -> None:
    content, predicted = tuned(dtype, CHUNK, step)

    assert len(deltas.encode(content, predicted, dtype)) < most * CHUNK
    assert most < len(planes.encode(content, dtype)) / CHUNK


@pytest.mark.parametrize("dtype", ["BF16", "F32", "I8"])
def test_a_few_changed_elements_take_a_few_bytes(dtype: str) -> None:
    predicted = trained(dtype, CHUNK)
    content = elements(predicted, dtype)
    content[[0, 5, 70_000, -1]] ^= 1

    frame = deltas.encode(content.tobytes(), predicted, dtype)

    assert content.tobytes() == deltas.decode(frame, predicted, dtype)
    # Distances are a byte for every 255 elements, and repeat.
    assert len(frame) < 200


@pytest.mark.parametrize("keeps_sign", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_pruning_takes_at_most_a_bit_an_element(dtype: str, keeps_sign: bool) -> None:
    predicted = trained(dtype, CHUNK)
    content = elements(predicted, dtype)
    pruned = np.random.default_rng(3).random(len(content)) < 0.5
    sign = np.array(1 << (layout_of(dtype).bits - 1), content.dtype)
    content[pruned] = content[pruned] & sign if keeps_sign else 0

    frame = deltas.encode(content.tobytes(), predicted, dtype)

    assert content.tobytes() == deltas.decode(frame, predicted, dtype)
    assert len(frame) < len(content) / 8 + 500


def test_pruning_what_is_smallest_takes_much_less() -> None:
    predicted = trained("BF16", CHUNK)
    content = elements(predicted, "BF16")
    content[(content & 0x7FFF) < np.median(content & 0x7FFF)] = 0

    assert len(deltas.encode(content.tobytes(), predicted, "BF16")) < 0.3 * len(content) / 8


def test_pruning_and_changing_the_rest_takes_both_and_no_more() -> None:
    content, predicted = tuned("BF16", CHUNK, 5e-5)
    alone = len(deltas.encode(content, predicted, "BF16"))
    pruned = elements(content, "BF16")
    pruned[np.random.default_rng(3).random(len(pruned)) < 0.5] = 0

    frame = deltas.encode(pruned.tobytes(), predicted, "BF16")

    assert pruned.tobytes() == deltas.decode(frame, predicted, "BF16")
    assert len(frame) < len(pruned) / 8 + 0.6 * alone


def test_a_chunk_that_has_nothing_to_do_with_the_predicted_one_takes_what_it_takes_alone() -> None:
    content, predicted = trained("BF16", CHUNK), noise(CHUNK)

    assert len(planes.encode(content, "BF16")) + 1 == len(deltas.encode(content, predicted, "BF16"))


def test_the_same_chunks_give_the_same_frame_in_every_thread() -> None:
    cases = [tuned("BF16", size, step) for size, step in ((CHUNK, 5e-5), (1 << 16, 5e-5), (CHUNK, 1e-7))]
    expected = [deltas.encode(content, predicted, "BF16") for content, predicted in cases]
    found: list[bool] = []

    def work() -> None:
        for _ in range(3):
            for (content, predicted), frame in zip(cases, expected, strict=True):
                found.append(deltas.encode(content, predicted, "BF16") == frame)
                found.append(deltas.decode(frame, predicted, "BF16") == content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [True] * 4 * 3 * 2 * len(cases) == found


def test_decoding_neither_changes_what_it_read_nor_what_it_gave() -> None:
    content, predicted = tuned("BF16", 1 << 16, 5e-5)
    other, other_predicted = tuned("BF16", 1 << 16, 4e-4)
    held = bytearray(predicted)

    kept = deltas.decode(deltas.encode(content, predicted, "BF16"), held, "BF16")
    same = deltas.decode(b"", held, "BF16")
    deltas.decode(deltas.encode(other, other_predicted, "BF16"), other_predicted, "BF16")
    assert predicted == held
    held[:] = bytes(len(held))

    assert (content, predicted) == (kept, same)


def frames() -> list[tuple[bytes, bytes, str]]:
    """Frames of every form, with what they were predicted from and the dtype."""
    found = []
    for dtype, step in (("BF16", 5e-5), ("BF16", 4e-4), ("F32", 1e-6), ("I8", 1e-3), ("F8_E4M3", 1e-4)):
        content, predicted = tuned(dtype, 24_000, step)
        found.append((deltas.encode(content, predicted, dtype), predicted, dtype))
    predicted = trained("BF16", 24_000)
    few = elements(predicted, "BF16")
    few[::1500] += 1
    found.append((deltas.encode(few.tobytes(), predicted, "BF16"), predicted, "BF16"))
    pruned = elements(predicted, "BF16")
    pruned[::3] = 0
    pruned[1::7] += 2
    found.append((deltas.encode(pruned.tobytes(), predicted, "BF16"), predicted, "BF16"))
    found.append((deltas.encode(predicted, noise(24_000), "BF16"), noise(24_000), "BF16"))
    return found


FRAMES = frames()


@given(st.randoms(use_true_random=False), st.sampled_from(range(len(FRAMES))))
def test_a_damaged_frame_gives_its_error_or_as_many_bytes(random: random.Random, number: int) -> None:
    frame, predicted, dtype = FRAMES[number]

    with suppress(BadFrame):
        assert len(predicted) == len(deltas.decode(damaged(frame, random), predicted, dtype))


@given(st.binary(min_size=1, max_size=60), st.sampled_from(["BF16", "F32", "U8"]))
@example(b"\1", "U8")
@example(b"\1\1", "U8")
@example(b"\1\6\0\0", "BF16")
@example(b"\1\0\3\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "U8")
def test_bytes_that_are_no_frame_give_its_error_or_as_many_bytes(frame: bytes, dtype: str) -> None:
    with suppress(BadFrame):
        assert 40 == len(deltas.decode(frame, bytes(40), dtype))


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_a_frame_that_is_cut_short_is_told(number: int) -> None:
    frame, predicted, dtype = FRAMES[number]

    for length in (1, 2, 3, 4, 5, len(frame) // 2, len(frame) - 2, len(frame) - 1):
        with pytest.raises(BadFrame):
            deltas.decode(frame[:length], predicted, dtype)


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_a_frame_of_another_size_or_with_more_behind_it_is_told(number: int) -> None:
    frame, predicted, dtype = FRAMES[number]

    for other in (b"", predicted[:-8], predicted + bytes(8)):
        with pytest.raises(BadFrame):
            deltas.decode(frame, other, dtype)
    with pytest.raises(BadFrame):
        deltas.decode(frame + b"\0", predicted, dtype)
