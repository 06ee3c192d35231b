"""Models made up for tests: any safetensors file that the format allows, and folders around it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from mreg.registry.models.safetensors_header import BITS

# Busy machines are slow without being wrong.
settings.register_profile("mreg", deadline=None)
settings.load_profile("mreg")


@dataclass(frozen=True)
class MadeTensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def safetensors(tensors: Sequence[MadeTensor], metadata: Mapping[str, str] | None = None, padding: int = 0) -> bytes:
    """The bytes of a safetensors file, with tensors in the order given; any dtype, unlike the usual writers."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(tensor.data)],
        }
        at += len(tensor.data)
    return safetensors_raw(json.dumps(header, ensure_ascii=False) + " " * padding, b"".join(t.data for t in tensors))


def safetensors_raw(header: str | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else header.encode()
    return len(raw).to_bytes(8, "little") + raw + data


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TINY = safetensors(
    [
        MadeTensor("model.embed.weight", "BF16", (2, 3), bytes(range(12))),
        MadeTensor("model.norm.weight", "F32", (2,), bytes(8)),
        MadeTensor("model.scale", "F16", (), b"\x00\x3c"),
    ],
    {"format": "pt"},
    padding=5,
)
"""A safetensors file of three tensors."""

TINY_MODEL: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "llama"}\n',
    "model.safetensors": TINY,
    "tokenizer/vocab.txt": b"a\nb\n",
}
"""A folder that `look` takes for a model."""


@st.composite
def made_tensors(draw: st.DrawFn, names: st.SearchStrategy[str]) -> MadeTensor:
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    if (math.prod(shape) * BITS[dtype]) % 8:
        shape = (*shape, 4)
    size = math.prod(shape) * BITS[dtype] // 8
    return MadeTensor(draw(names), dtype, shape, draw(st.binary(min_size=size, max_size=size)))


_NAMES = st.text(st.sampled_from("abzé字.0_/"), min_size=1, max_size=8)


@st.composite
def safetensors_files(draw: st.DrawFn) -> bytes:
    """Any file of the format: all dtypes, scalars, empty tensors, NaN payloads, padding, metadata."""
    tensors = draw(
        st.lists(
            made_tensors(_NAMES.filter(lambda name: ".." not in name.split("/"))),
            max_size=5,
            unique_by=lambda tensor: tensor.name,
        )
    )
    metadata = draw(st.none() | st.dictionaries(st.text(max_size=5).filter(_is_utf8), st.just("x"), max_size=2))
    return safetensors(tensors, metadata, draw(st.integers(0, 9)))


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@st.composite
def model_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of a model folder: one to three safetensors files and anything beside them."""
    files = {f"model-{i}.safetensors": draw(safetensors_files()) for i in range(draw(st.integers(1, 3)))}
    others = st.sampled_from(["README.md", "a/b/merges.txt", "chat_template.jinja", "weights.gguf", "é.txt"])
    for path in draw(st.sets(others)):
        files[path] = (b"GGUF" if path.endswith(".gguf") else b"#") + draw(st.binary(max_size=40))
    return files
