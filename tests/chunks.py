"""Chunks of tensors made up for tests of the codecs: any bits, special values, weights as training leaves them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from mreg.registry.models.safetensors_header import BITS
from mreg.registry.store.layouts import layout_of

CHUNK = 1 << 20
DTYPES = [*sorted(BITS), "SOMETHING_NEW"]

SIZES = st.sampled_from([0, 1, 2, 3, 7, 24, 100, 1023, 4096, 70_001])

_FLOATS = {"F64": "<f8", "F32": "<f4", "C64": "<f4", "F16": "<f2"}


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def trained(dtype: str, size: int) -> bytes:
    """Normally distributed numbers, as weights are about; of integers, the lower bytes."""
    layout = layout_of(dtype)
    return as_dtype(np.random.default_rng(7).standard_normal(size // layout.width) * 0.03, dtype)


def as_dtype(numbers: np.ndarray, dtype: str) -> bytes:
    """Numbers in a dtype: floats rounded, bf16 and eight-bit ones cut off, integers in thousandths."""
    if dtype == "BF16":
        return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype.startswith("F8"):
        return (numbers.astype("<f2").view("<u2") >> 8).astype("u1").tobytes()
    if dtype in _FLOATS:
        return numbers.astype(_FLOATS[dtype]).tobytes()
    return np.rint(numbers * 1000).astype("<i8").astype(f"<i{layout_of(dtype).width}").tobytes()


def specials(dtype: str) -> list[int]:
    """Bits at the edges: zeros of both signs, subnormals, infinities, NaNs with payloads, the least and the most."""
    layout = layout_of(dtype)
    top = 1 << (layout.bits - 1)
    edges = [0, 1, top - 1, top, top + 1, 2 * top - 1]
    if layout.mantissa is not None:
        infinity = top - (1 << layout.mantissa)
        edges += [infinity, infinity + 1, top | infinity, top | infinity | 3, (1 << layout.mantissa) - 1]
    return [edge % (2 * top) for edge in edges]


@st.composite
def chunks(draw: st.DrawFn, dtype: str, sizes: st.SearchStrategy[int]) -> bytes:
    """A chunk of about one of the sizes: noise, one value, edges, or numbers as trained."""
    layout = layout_of(dtype)
    count = draw(sizes) // layout.width
    seed = draw(st.integers(0, 99))
    kind = draw(st.sampled_from(["noise", "one value", "edges", "numbers"]))
    if kind == "noise":
        return noise(count * layout.width, seed)
    if kind == "one value":
        return np.full(count, draw(st.sampled_from(specials(dtype))), layout.unsigned).tobytes()
    if kind == "edges":
        return pick(specials(dtype), count, dtype, seed)
    return trained(dtype, count * layout.width)


def pick(values: Sequence[int], count: int, dtype: str, seed: int) -> bytes:
    """That many of the values, at random."""
    return np.random.default_rng(seed).choice(np.array(values, layout_of(dtype).unsigned), count).tobytes()


def elements(content: bytes, dtype: str) -> np.ndarray:
    return np.frombuffer(content, layout_of(dtype).unsigned).copy()


@st.composite
def changed(draw: st.DrawFn, dtype: str) -> tuple[bytes, bytes]:
    """A chunk and a predicted one: unrelated, equal, or differing in some elements by a little, by much or by zeros."""
    predicted = draw(chunks(dtype, SIZES))
    count = len(predicted) // layout_of(dtype).width
    kind = draw(st.sampled_from(["unrelated", "equal", "steps", "edges", "zeros", "negative zeros", "signed zeros"]))
    if kind == "unrelated":
        return noise(len(predicted), 5), predicted
    random = np.random.default_rng(draw(st.integers(0, 99)))
    where = random.random(count) < draw(st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.3, 0.8, 1.0]))
    old = elements(predicted, dtype)
    sign = np.array(1 << (layout_of(dtype).bits - 1), old.dtype)
    new = {
        "equal": old,
        "steps": old + random.integers(-3, 4, count).astype(old.dtype),
        "edges": elements(pick(specials(dtype), count, dtype, 1), dtype),
        "zeros": np.zeros_like(old),
        "negative zeros": np.full_like(old, sign),
        "signed zeros": old & sign,
    }[kind]
    return np.where(where, new, old).tobytes(), predicted


def damaged(frame: bytes, random: random.Random) -> bytes:
    """A frame with bytes changed, lost or added; the first ones, which say how to read it, more often."""
    out = bytearray(frame)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(random.choice([8, len(out)])) % max(1, len(out))
        match random.choice(["flip", "flip", "set", "cut", "insert", "drop"]):
            case "flip":
                out[at] ^= 1 << random.randrange(8)
            case "set":
                out[at] = random.choice([0, 1, 2, 3, 0x7F, 0x80, 0xFF])
            case "cut":
                del out[at + 1 :]
            case "insert":
                out[at:at] = random.randbytes(random.randint(1, 4))
            case "drop":
                del out[at : at + random.randint(1, 40)]
        out = out or bytearray(b"\1")
    return bytes(out)
