"""The strict header reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.models import safetensors_header
from mreg.registry.models.safetensors_header import Header, MalformedSafetensors, TensorSlot

from tests.strategies import safetensors_files, safetensors_raw


def read(file: bytes) -> Header:
    length = safetensors_header.header_length(file[:8], file_size=len(file), file="m.safetensors")
    return safetensors_header.parse(file[8 : 8 + length], file_size=len(file), file="m.safetensors")


def entry(dtype: object = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(name: str = "a", data: bytes = b"x", **changes: object) -> bytes:
    return safetensors_raw(json.dumps({name: entry(**changes)}), data)


def test_a_file_of_the_usual_writer_is_read():
    file = safetensors.numpy.save({"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.int8)}, {"format": "pt"})

    header = read(file)

    assert {"format": "pt"} == header.metadata
    assert {"w": ("F32", (2, 3)), "b": ("I8", (2,))} == {t.name: (t.dtype, t.shape) for t in header.tensors}
    assert np.ones(6, np.float32).tobytes() == next(file[t.start : t.end] for t in header.tensors if t.name == "w")


def test_tensors_come_in_the_order_of_their_bytes():
    header = json.dumps({"late": entry(offsets=[1, 2]), "early": entry(offsets=[0, 1])})

    slots = read(safetensors_raw(header, b"xy")).tensors

    start = 8 + len(header)
    assert (
        TensorSlot("early", "U8", (1,), start, start + 1),
        TensorSlot("late", "U8", (1,), start + 1, start + 2),
    ) == slots


def test_every_dtype_of_the_format_is_known():
    with pytest.raises(safetensors.SafetensorError) as refusal:
        safetensors.deserialize(one(dtype="no such dtype"))

    named = {
        part.strip(" `") for part in str(refusal.value).partition("expected one of")[2].split(" at ")[0].split(",")
    }

    assert set(safetensors_header.BITS) == named


@given(safetensors_files())
def test_the_header_text_and_the_tensors_are_the_whole_file(file: bytes):
    header = read(file)

    raw = header.text.encode()
    assert file == len(raw).to_bytes(8, "little") + raw + b"".join(file[t.start : t.end] for t in header.tensors)


@given(safetensors_files(), st.data())
def test_a_file_cut_short_anywhere_is_refused(file: bytes, data: st.DataObject):
    cut = file[: data.draw(st.integers(0, len(file) - 1))]

    with pytest.raises(MalformedSafetensors):
        read(cut)


@given(st.binary(max_size=60))
def test_garbage_is_refused_and_nothing_else_happens(garbage: bytes):
    with pytest.raises(MalformedSafetensors):
        read(safetensors_raw(b"{" + garbage, b"!"))


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        (b"", "too short"),
        ((10**9).to_bytes(8, "little") + b"{}", "the format allows"),
        ((99).to_bytes(8, "little") + b"{}", "cut short"),
        (safetensors_raw(" {}"), "does not start with"),
        (safetensors_raw("[]"), "does not start with"),
        (safetensors_raw("{"), "not UTF-8 JSON"),
        (safetensors_raw(b'{"\xff":1}'), "not UTF-8 JSON"),
        (safetensors_raw('{"a":NaN}'), "not UTF-8 JSON"),
        (safetensors_raw('{"a":' + "[" * 100_000), "not UTF-8 JSON"),
        (safetensors_raw('{"a":1,"a":2}'), "'a' twice"),
        (safetensors_raw('{"__metadata__":{"k":"1","k":"2"}}'), "'k' twice"),
        (safetensors_raw('{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"), "twice"),
        (safetensors_raw('{"__metadata__":{"k":1}}'), "__metadata__"),
        (safetensors_raw('{"__metadata__":["k"]}'), "__metadata__"),
        (safetensors_raw('{"a":1}'), "not described"),
        (safetensors_raw(json.dumps({"a": entry() | {"extra": 1}}), b"x"), "not described"),
        (one(name=""), "is called ''"),
        (one(name="../a"), "climbing"),
        (one(name="a/.."), "climbing"),
        (one(name="a\x1b[2J"), "control"),
        (one(name="a\0"), "control"),
        (one(name="a\u202eb"), "control"),
        (one(name="\ud800"), "control"),
        (one(name="n" * 2000), "too long"),
        (one(dtype="F7"), "unknown dtype 'F7'"),
        (one(dtype=["U8"]), "unknown dtype"),
        (one(shape=[-1]), "shape of tensor 'a'"),
        (one(shape=[1.0]), "shape of tensor 'a'"),
        (one(shape=[True]), "shape of tensor 'a'"),
        (one(shape=[2**53, 0], offsets=[0, 0], data=b""), "shape of tensor 'a'"),
        (one(shape="1"), "shape of tensor 'a'"),
        (one(shape=[1] * 65), "shape of tensor 'a'"),
        (one(offsets=[0]), "data_offsets of tensor 'a'"),
        (one(offsets=[0, "1"]), "data_offsets of tensor 'a'"),
        (one(offsets=[1, 0]), "its offsets give -1"),
        (one(dtype="F4", shape=[1]), "does not fill whole bytes"),
        (one(dtype="F32"), "takes 4 bytes, its offsets give 1"),
        (one(offsets=[1, 2], data=b"xy"), "leaves a hole"),
        (one(data=b""), "cut short"),
        (one(data=b"xy"), "1 bytes follow"),
        (
            safetensors_raw(json.dumps({"a": entry(shape=[2], offsets=[0, 2]), "b": entry(offsets=[1, 2])}), b"xy"),
            "'b' overlaps",
        ),
        (safetensors_raw("{" + "{" * 1_000_002), "more than 1000000 tensors"),
    ],
)
def test_what_is_unsound_is_refused_and_named(file: bytes, problem: str):
    with pytest.raises(MalformedSafetensors) as refusal:
        read(file)

    assert problem in refusal.value.message
    assert "m.safetensors" in refusal.value.message
    assert 5 == refusal.value.exit_code
