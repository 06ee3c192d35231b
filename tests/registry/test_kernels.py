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
from mreg.registry.store import deltas, kernels, planes, stretches
from mreg.registry.store.packing import BadFrame, Reader, Writer
from mreg.registry.store.stretches import read_stretches, write_stretches

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


@st.composite
def cuts(draw: st.DrawFn, count: int) -> list[int]:
    """Where stretches of an array may end."""
    return [*sorted(draw(st.sets(st.integers(1, max(1, count - 1)), max_size=4))), count] if count > 1 else [count]


def written(differences: Any, ends: list[int]) -> bytes:
    writer = Writer()
    write_stretches(writer, differences, ends)
    return writer.frame()


def read(frame: bytes, count: int, width: int) -> tuple[str, bytes]:
    """What went wrong, or nothing, and the differences."""
    reader, out = Reader(frame), np.full(count, 7, f"<u{width}")
    try:
        read_stretches(reader, out)
        reader.end()
    except BadFrame as error:
        return str(error), b""
    return "", out.tobytes()


@given(arrays(many_zeros=True), st.data())
def test_stretches_are_the_same_and_can_be_read_again(differences: Any, data: st.DataObject) -> None:
    ends = data.draw(cuts(len(differences)))

    def work() -> tuple[bytes, tuple[str, bytes]]:
        # As short as they come, each for itself.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(stretches, "_STRETCH", 1)
            frame = written(differences, ends)
        return frame, read(frame, len(differences), differences.itemsize)

    ours, theirs = both(work)

    assert theirs == ours
    assert ("", differences.tobytes()) == ours[1]


@given(arrays(many_zeros=True), st.data())
def test_damaged_stretches_are_told_in_the_same_words(differences: Any, data: st.DataObject) -> None:
    frame = bytearray(written(differences, [len(differences)]))
    for _ in range(data.draw(st.integers(1, 3))):
        if frame:
            at = data.draw(st.integers(0, min(len(frame) - 1, 40)))
            frame[at] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    count = max(0, len(differences) + data.draw(st.integers(-2, 2)))

    for each in (bytes(frame), cut):
        ours, theirs = both(lambda each=each: read(each, count, differences.itemsize))

        assert theirs == ours


@given(
    st.sampled_from(WIDTHS),
    st.lists(st.integers(0, 255) | st.just(255), max_size=40),
    st.integers(0, 45),
    st.integers(1, 3000),
)
def test_gaps_that_make_no_sense_are_told_and_lead_nowhere(
    width: int, found: list[int], present: int, count: int
) -> None:
    by_gaps, stored = 3, 0
    writer = Writer()
    writer.byte(by_gaps)
    for number in (count, present, len(found)):
        writer.number(number)
    for plane in [bytes(found), *[bytes(range(present))] * width]:
        writer.add([bytes([stored]), plane] if plane else [])

    ours, theirs = both(lambda: read(writer.frame(), count, width))

    assert theirs == ours
    places = np.flatnonzero(np.array(found) != kernels.LONGEST_GAP)
    last = sum(found[: places[-1] + 1]) + len(places) - 1 if len(places) else -1
    fits = present <= count and len(found) <= present + count // kernels.LONGEST_GAP
    assert (ours[0] == "") == (fits and len(places) == present and last < count)


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
ROOM = np.zeros(9, np.uint16)
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
        lambda c: c.write_stretch(2, 9, U16, 0, bytes, U8.copy(), ROOM.copy(), U8.copy()),
        lambda c: c.write_stretch(2, 1, U16, 9, bytes, U8.copy(), ROOM.copy(), U8.copy()),
        lambda c: c.write_stretch(2, 1, U16, 0, bytes, U8[:7].copy(), ROOM.copy(), U8.copy()),
        lambda c: c.write_stretch(2, 1, U16, 0, bytes, U8.copy(), U16.copy(), U8.copy()),
        lambda c: c.write_stretch(2, 1, U16, 0, bytes, U8.copy(), ROOM.copy(), U8[:7].copy()),
        lambda c: c.write_stretch(2, 2, U16, 3, bytes, U8.copy(), ROOM.copy(), U8.copy()),
        lambda c: c.write_stretch(2, 3, U16, 3, bytes, U8.copy(), ROOM.copy(), U8.copy()),
        lambda c: c.read_stretches(2, b"", 1, bytes, ROOM.copy(), U16.copy()),
        lambda c: c.read_stretches(2, b"", -1, bytes, ROOM.copy(), U16.copy()),
        lambda c: c.read_stretches(2, b"", 0, bytes, U16.copy(), U16.copy()),
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


def test_what_goes_wrong_in_python_comes_through() -> None:
    def refuse(*_: object) -> bytes:
        raise RuntimeError("no")

    elements = np.arange(3000, dtype=np.uint16)
    frame = written(elements, [len(elements)])

    room = (np.empty(3000, np.uint8), np.empty(3001, np.uint16), np.empty(3000, np.uint8))
    with pytest.raises(RuntimeError, match="no"):
        kernels.compiled.write_stretch(2, 1, elements, 3000, refuse, *room)
    with pytest.raises(TypeError):
        kernels.compiled.write_stretch(2, 1, elements, 3000, lambda _: None, *room)
    with pytest.raises(RuntimeError, match="no"):
        kernels.compiled.read_stretches(2, frame, 0, refuse, room[1], elements.copy())
    with pytest.raises(TypeError):
        kernels.compiled.read_stretches(2, frame, 0, lambda *_: None, room[1], elements.copy())
    with pytest.raises(ValueError, match="another length"):
        kernels.compiled.read_stretches(2, frame, 0, lambda *_: b"short", room[1], elements.copy())
