"""The compiled loops give what those in numpy give, and refuse arrays that do not fit together."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.store import deltas, kernels, planes

from tests.chunks import DTYPES, changed

pytestmark = pytest.mark.skipif(kernels.compiled is None, reason="there was no C compiler when mreg was installed")

WIDTHS = [1, 2, 4, 8]


@contextmanager
def in_numpy() -> Iterator[None]:
    compiled, kernels.compiled = kernels.compiled, None
    try:
        yield
    finally:
        kernels.compiled = compiled


def both(work: Callable[[], Any]) -> tuple[Any, Any]:
    """What the compiled loops make of it, and those in numpy."""
    ours = work()
    with in_numpy():
        return ours, work()


@st.composite
def arrays(draw: st.DrawFn, *, many_zeros: bool = False) -> Any:
    """Unsigned elements of some width, none to some thousand."""
    width, count = draw(st.sampled_from(WIDTHS)), draw(st.integers(0, 70) | st.sampled_from([512, 3001]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    elements = random.integers(0, 256, count * width, np.uint8).view(f"<u{width}")
    if draw(st.booleans()):
        elements = elements & np.array(3, elements.dtype)
    if many_zeros:
        elements[random.random(count) < draw(st.sampled_from([0.0, 0.3, 0.99, 0.999, 1.0]))] = 0
    return elements


@given(arrays(), st.integers(0, 2**32 - 1))
def test_differences_are_the_same_and_added_give_the_elements_back(elements: Any, seed: int) -> None:
    parents = np.random.default_rng(seed).permutation(elements)

    def work() -> tuple[int, bytes, bytes]:
        out, back = np.empty_like(elements), np.empty_like(elements)
        changed = kernels.difference(elements, parents, out)
        kernels.add(out, parents, back)
        return changed, out.tobytes(), back.tobytes()

    ours, theirs = both(work)

    assert theirs == ours
    assert (np.count_nonzero(elements != parents), elements.tobytes()) == (ours[0], ours[2])


@given(arrays(many_zeros=True))
def test_what_is_squeezed_is_the_same_and_can_be_spread_again(differences: Any) -> None:
    def work() -> tuple[bytes, bytes, bytes]:
        bits, values = (one.copy() for one in kernels.squeeze(differences))
        back = np.empty_like(differences)
        kernels.spread(bits, lambda out: np.copyto(out, values), back)
        return bits.tobytes(), values.tobytes(), back.tobytes()

    ours, theirs = both(work)

    assert theirs == ours
    assert differences.tobytes() == ours[2]


@given(arrays(many_zeros=True))
def test_gaps_are_the_same_and_can_be_leapt_again(differences: Any) -> None:
    def work() -> tuple[bytes, bytes, bytes, bool]:
        between, values = (one.copy() for one in kernels.gaps(differences, int(np.count_nonzero(differences))))
        back = np.empty_like(differences)
        sound = kernels.leap(between, values, back)
        return between.tobytes(), values.tobytes(), back.tobytes(), sound

    ours, theirs = both(work)

    assert theirs == ours
    assert (differences.tobytes(), True) == ours[2:]


@given(
    st.sampled_from(WIDTHS),
    st.lists(st.integers(0, 255) | st.just(255), max_size=40),
    st.integers(0, 45),
    st.integers(0, 3000),
)
def test_gaps_that_make_no_sense_are_told_and_lead_nowhere(
    width: int, found: list[int], present: int, count: int
) -> None:
    between, values = np.array(found, np.uint8), np.arange(present).astype(f"<u{width}")

    def work() -> tuple[bool, bytes]:
        out = np.zeros(count, values.dtype)
        sound = kernels.leap(between, values, out)
        return sound, out.tobytes() if sound else b""

    ours, theirs = both(work)

    assert theirs == ours


@given(arrays(), st.booleans())
def test_planes_are_the_same_and_can_be_joined_again(elements: Any, rotate: bool) -> None:
    def work() -> tuple[int, list[bytes], bytes]:
        cut = [np.empty(len(elements), np.uint8) for _ in range(elements.itemsize)]
        for place, plane in enumerate(cut):
            kernels.cut(elements, place, plane, rotate=rotate)
        back = np.empty_like(elements)
        kernels.join(cut, back, rotate=rotate)
        return kernels.used_bytes(elements), [plane.tobytes() for plane in cut], back.tobytes()

    ours, theirs = both(work)

    assert theirs == ours
    assert elements.tobytes() == ours[2]


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_the_same_bytes_are_seen_to_be_the_same(a: bytes, b: bytes) -> None:
    assert [a == b] * 2 == list(both(lambda: kernels.same(a, bytearray(b))))
    assert kernels.same(a, bytearray(a))


@given(st.sampled_from(DTYPES), st.data())
def test_frames_are_the_same_to_the_byte(dtype: str, data: st.DataObject) -> None:
    content, predicted = data.draw(changed(dtype))

    solo, solo_in_numpy = both(lambda: planes.encode(content, dtype))
    delta, delta_in_numpy = both(lambda: deltas.encode_proved(content, predicted, dtype))

    assert solo == solo_in_numpy
    assert delta == delta_in_numpy
    with in_numpy():
        assert content == deltas.decode(delta, predicted, dtype)


def test_what_was_compiled_from_older_loops_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.compiled, "REVISION", 0)

    again = runpy.run_path(str(kernels.__file__))

    assert again["compiled"] is None


U16 = np.zeros(8, np.uint16)
U8 = np.zeros(8, np.uint8)
COUNTS = np.zeros((4, 256), np.intp)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.difference(2, U16, U16[:4], U16.copy()),
        lambda c: c.difference(3, U8[:6], U8[:6], U8[:6].copy()),
        lambda c: c.difference(2, U8[:3], U8[:3], U8[:3].copy()),
        lambda c: c.add(2, U16, U16, U16[:4].copy()),
        lambda c: c.count(2, U16, 16, 255, COUNTS.copy()),
        lambda c: c.count(2, U16, -1, 255, COUNTS.copy()),
        lambda c: c.count(2, U16, 7, 255, COUNTS[:3].copy()),
        lambda c: c.sort(2, U16, 7, 255, COUNTS, 2, U16, U16.copy()),
        lambda c: c.sort(2, U16, 7, 255, COUNTS - 1, 2, U16, U16.copy()),
        lambda c: c.sort(2, U16, 7, 255, COUNTS + 8, 2, U16, U16.copy()),
        lambda c: c.unsort(2, U16, 7, 255, COUNTS, 4, U16, U16.copy()),
        lambda c: c.unsort(2, U16, 7, 255, COUNTS, 1, U16, U16.copy()),
        lambda c: c.squeeze(2, U16, np.empty(1, np.uint8), np.empty(8, np.uint16)),
        lambda c: c.squeeze(2, U16, np.empty(2, np.uint8), np.empty(9, np.uint16)),
        lambda c: c.spread(2, np.full(1, 255, np.uint8), np.empty(8, np.uint16), U16.copy()),
        lambda c: c.spread(2, np.zeros(2, np.uint8), np.empty(8, np.uint16), U16.copy()),
        lambda c: c.gaps(2, U16 + np.uint16(1), np.empty(7, np.uint8), np.empty(8, np.uint16)),
        lambda c: c.gaps(2, U16 + np.uint16(1), np.empty(9, np.uint8), np.empty(7, np.uint16)),
        lambda c: c.gaps(2, U16, np.empty(9, np.uint8), np.empty(1, np.uint16)),
        lambda c: c.leap(2, U8, U8[:3], U16.copy()),
        lambda c: c.cut(2, U16, False, 2, U8.copy()),
        lambda c: c.cut(2, U16, False, -1, U8.copy()),
        lambda c: c.cut(2, U16, False, 0, U8[:7].copy()),
        lambda c: c.join(2, (U8,), False, U16.copy()),
        lambda c: c.join(2, (U8, U8[:7]), False, U16.copy()),
        lambda c: c.set_bits(16, U16),
        lambda c: c.set_bits(2, U8.data[1:7]),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        call(kernels.compiled)


def test_elements_may_lie_anywhere_in_memory() -> None:
    content, predicted = bytes(1001), bytes(range(256)) * 4

    frame = deltas.encode_proved(memoryview(content)[1:], memoryview(predicted)[3:1003], "BF16")

    assert content[1:] == deltas.decode(frame, memoryview(predicted)[3:1003], "BF16")
    assert content[1:] == planes.decode(planes.encode_proved(memoryview(content)[1:], "F32"), 1000, "F32")


def test_what_is_no_array_is_refused() -> None:
    read_only = np.zeros(8, np.uint16)
    read_only.flags.writeable = False

    with pytest.raises((BufferError, ValueError, TypeError)):
        kernels.compiled.difference(2, U16, U16, read_only)
    with pytest.raises((BufferError, ValueError, TypeError)):
        kernels.compiled.difference(2, U16[::2], U16[::2], U16[:4].copy())
    with pytest.raises(TypeError):
        kernels.compiled.join(1, (None,), False, np.zeros(8, np.uint8))
