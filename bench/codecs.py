"""`python -m bench.codecs`: how much the codecs of stored tensors leave of them, and how many MB a second they do.

On made-up weights that changed as training and other transforms change them, or with `BEFORE AFTER` on the tensors of
two safetensors files. One thread, in its own processor time, and of several rounds the best: the figures are for the
codecs, not for what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from mreg.registry.models.safetensors_header import header_length, parse
from mreg.registry.models.weights import Array
from mreg.registry.store import deltas, kernels, planes

CHUNK = 1 << 20
MEGABYTES = 8
_BF16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True)
class Figures:
    """Bytes of what was stored and of what was left; MB a second of the former, there and back."""

    size: int
    stored: int
    encode_mbs: float
    decode_mbs: float


def figures(contents: Sequence[bytes], predicted: Sequence[bytes] | None, dtype: str, *, rounds: int = 5) -> Figures:
    """What a codec makes of chunks: solo, or as deltas to the predicted ones. What comes back must be the same."""
    if predicted is None:
        frames = [planes.encode(content, dtype) for content in contents]
        works: list[tuple[Callable[[], object], Callable[[], memoryview]]] = [
            (
                partial(planes.encode, content, dtype),
                partial(planes.decode, frame, len(content), dtype),
            )
            for content, frame in zip(contents, frames, strict=True)
        ]
    else:
        frames = [deltas.encode(content, parent, dtype) for content, parent in zip(contents, predicted, strict=True)]
        works = [
            (
                partial(deltas.encode, content, parent, dtype),
                partial(deltas.decode, frame, parent, dtype),
            )
            for content, parent, frame in zip(contents, predicted, frames, strict=True)
        ]
    for content, (_, decode) in zip(contents, works, strict=True):
        assert content == decode(), "another chunk came back"
    size = sum(map(len, contents))
    encode_s = sum(_best(encode, rounds) for encode, _ in works)
    decode_s = sum(_best(decode, rounds) for _, decode in works)
    return Figures(size, sum(map(len, frames)), size / encode_s / 1e6, size / decode_s / 1e6)


def _best(work: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def chunks(array: Array) -> list[bytes]:
    """The bytes of an array, cut as the store cuts them."""
    content = array.tobytes()
    return [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]


def made_up() -> Iterator[tuple[str, str, Array, Array | None]]:
    """What was done, the dtype, the array after, and the one before; None for what is stored on its own.

    Weights are normal with a spread of their own in each row, in float32. A fine-tune with Adam moves every weight by
    about as much, whatever its size: some rates of learning.
    """
    random = np.random.default_rng(0)
    shape = (MEGABYTES * CHUNK // 2 // 1024, 1024)
    weights = random.standard_normal(shape, np.float32) * random.uniform(0.02, 0.2, (shape[0], 1)).astype(np.float32)

    def tuned(rate: float) -> Array:
        return weights + np.float32(6 * rate) * random.standard_normal(shape, np.float32)

    base = weights.astype(_BF16)
    yield "weights", "BF16", base, None
    yield "weights", "F32", weights, None
    yield "weights", "F16", weights.astype(np.float16), None
    yield "weights", "F8_E4M3", weights.astype(ml_dtypes.float8_e4m3fn), None
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    yield "int8 per row", "I8", np.rint(weights / scale).astype(np.int8), None
    for rate in (1e-6, 1e-5, 5e-5, 4e-4):
        yield f"fine-tune, {rate:g}", "BF16", tuned(rate).astype(_BF16), base
    yield "fine-tune, 5e-05", "F16", tuned(5e-5).astype(np.float16), weights.astype(np.float16)
    yield "fine-tune, 5e-05", "F32", tuned(5e-5), weights
    low_rank = random.standard_normal((shape[0], 8), np.float32) @ random.standard_normal((8, shape[1]), np.float32)
    yield "LoRA fused", "BF16", (base.astype(np.float32) + low_rank * np.float32(1e-4)).astype(_BF16), base
    other = tuned(4e-4).astype(_BF16).astype(np.float32)
    yield "merge, 0.5/0.5", "BF16", ((base.astype(np.float32) + other) / 2).astype(_BF16), base
    size = np.abs(weights)
    yield "pruned, 50 %", "BF16", np.where(size < np.median(size), 0, weights).astype(_BF16), base
    frozen = base.copy()
    frozen[:16] = tuned(4e-4)[:16].astype(_BF16)
    yield "a few rows edited", "BF16", frozen, base
    yield "nothing changed", "BF16", base, base


def of_files(before: Path, after: Path) -> Iterator[tuple[str, str, list[bytes], list[bytes] | None]]:
    """For each dtype, the chunks of all tensors of `after`, alone and beside those of the same name in `before`."""
    old, new = _tensors(before), _tensors(after)
    for dtype in sorted({dtype for dtype, _ in new.values()}):
        names = [name for name, (kind, content) in new.items() if kind == dtype and _fits(old.get(name), kind, content)]
        contents = [chunk for name in names for chunk in chunks(new[name][1])]
        yield "alone", dtype, contents, None
        yield "to the one before", dtype, contents, [chunk for name in names for chunk in chunks(old[name][1])]


def _fits(other: tuple[str, Array] | None, dtype: str, content: Array) -> bool:
    return other is not None and other[0] == dtype and len(other[1]) == len(content)


def _tensors(file: Path) -> dict[str, tuple[str, Array]]:
    raw = np.memmap(file, np.uint8, "r")
    length = header_length(raw[:8].tobytes(), file_size=len(raw), file=str(file))
    header = parse(raw[8 : 8 + length].tobytes(), file_size=len(raw), file=str(file))
    return {slot.name: (slot.dtype, raw[slot.start : slot.end]) for slot in header.tensors}


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each kind of array."""
    parser = argparse.ArgumentParser(prog="python -m bench.codecs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="BEFORE AFTER", help="two safetensors files")
    parser.add_argument("--rounds", type=int, default=5, help="of which the best counts")
    parser.add_argument("--every", type=int, default=1, help="only every so-manieth chunk")
    parser.add_argument("--numpy", action="store_true", help="with the loops in numpy, as where nothing was compiled")
    given = parser.parse_args(arguments)
    if len(given.files) not in (0, 2):
        parser.error("name two safetensors files, or none")
    cases: Iterator[tuple[str, str, list[bytes], list[bytes] | None]] = (
        of_files(*given.files)
        if given.files
        else (
            (name, dtype, chunks(after), None if before is None else chunks(before))
            for name, dtype, after, before in made_up()
        )
    )
    compiled = kernels.compiled
    if given.numpy:
        kernels.compiled = None
    print("compiled" if kernels.compiled else "in numpy")
    print(f"{'':20}{'':9}{'left':>8}{'encode':>8}{'decode':>8}  MB/s")
    for name, dtype, contents, predicted in cases:
        some = slice(None, None, given.every)
        found = figures(contents[some], None if predicted is None else predicted[some], dtype, rounds=given.rounds)
        left = 100 * found.stored / max(1, found.size)
        print(f"{name:20}{dtype:9}{left:6.2f} %{found.encode_mbs:8.0f}{found.decode_mbs:8.0f}", flush=True)
    kernels.compiled = compiled
    return 0


if __name__ == "__main__":
    sys.exit(main())
