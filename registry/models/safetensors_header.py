"""The header of a safetensors file, read strictly.

The usual reader accepts duplicate names, names that climb or carry escapes, and headers that cost minutes. A registry
that keeps a file for years and shows its names to people has to be stricter. The format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mreg.registry.errors import MregError
from mreg.registry.plain import climbs, is_plain, shown

MAX_HEADER = 100_000_000
MAX_TENSORS = 1_000_000
MAX_DIMENSIONS = 64
MAX_NAME = 1024
MAX_EXTENT = 2**53 - 1
"""The largest integer that canonical JSON can carry."""

BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Every dtype of the format, with the bits that one element takes."""


class MalformedSafetensors(MregError):
    """A file called `*.safetensors` is not one, is cut short, or says impossible things about its tensors."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies: bytes `start` to `end` of the file, counted from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header that passed. `text` is it verbatim, padding included; `length` its bytes, without the 8 before it.

    `tensors` are in the order of their bytes, which they cover from `8 + length` to the end of the file.
    """

    text: str
    length: int
    tensors: tuple[TensorSlot, ...]
    metadata: dict[str, str]


class _Repeated(ValueError):
    """A JSON object names one key twice."""


def tensor_size(dtype: str, shape: tuple[int, ...]) -> int | None:
    """The bytes that a tensor takes; None for a dtype that is unknown or elements that do not fill whole bytes."""
    bits = BITS.get(dtype, 0) * math.prod(shape)
    return bits // 8 if dtype in BITS and bits % 8 == 0 else None


def header_length(prefix: bytes, *, file_size: int, file: str) -> int:
    """The length that the first 8 bytes of a file promise, checked against what the format and the file allow."""
    if len(prefix) < 8 or file_size < 8:
        _refuse(file, "it is too short to be a safetensors file")
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER:
        _refuse(file, f"its header would be {length} bytes long, and the format allows {MAX_HEADER}")
    if 8 + length > file_size:
        _refuse(file, f"it is cut short: its header ends at byte {8 + length} and the file at {file_size}")
    return length


def parse(raw: bytes, *, file_size: int, file: str) -> Header:
    """Read the header of a safetensors file; `raw` is its JSON text, the bytes after the first 8.

    `file` is the name to show in errors. Raises MalformedSafetensors.
    """
    text, entries = _decode(raw, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(file, "its __metadata__ does not map text to text")
    base = 8 + len(raw)
    slots = sorted(
        (_slot(name, entry, base, file) for name, entry in entries.items()), key=lambda slot: (slot.start, slot.end)
    )
    at = base
    for slot in slots:
        if slot.start != at:
            what = "overlaps the tensor before it" if slot.start < at else "leaves a hole before it"
            _refuse(file, f"tensor {slot.name!r} {what} (it starts at byte {slot.start}, expected {at})")
        at = slot.end
    if at > file_size:
        _refuse(file, f"it is cut short: its tensors end at byte {at} and the file at {file_size}")
    if at < file_size:
        _refuse(file, f"{file_size - at} bytes follow its last tensor")
    return Header(text, len(raw), tuple(slots), metadata)


def _decode(raw: bytes, file: str) -> tuple[str, dict[str, Any]]:
    if not raw.startswith(b"{"):
        _refuse(file, "its header does not start with '{'")
    # Counted before parsing: every tensor needs a brace, so the parser never sees more objects than are allowed.
    if raw.count(b"{") > MAX_TENSORS + 2:
        _refuse(file, f"its header lists more than {MAX_TENSORS} tensors")
    try:
        text = raw.decode()
        entries = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _Repeated as error:
        _refuse(file, f"its header names {shown(str(error))!r} twice")
    except (ValueError, RecursionError) as error:
        _refuse(file, f"its header is not UTF-8 JSON ({error})")
    assert isinstance(entries, dict), "JSON that starts with a brace is an object"
    return text, entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Repeated(name[:MAX_NAME])
        found[name] = value
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _slot(name: str, entry: object, base: int, file: str) -> TensorSlot:
    if not 0 < len(name) <= MAX_NAME or not is_plain(name) or climbs(name):
        _refuse(file, f"a tensor is called {name[:MAX_NAME]!a}: empty, too long, climbing or with control characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(file, f"tensor {name!r} has the unknown dtype {ascii(dtype)[:40]}")
    if not _extents(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(file, f"the shape of tensor {name!r} is not a list of at most {MAX_DIMENSIONS} natural numbers")
    if not _extents(offsets) or len(offsets) != 2:
        _refuse(file, f"the data_offsets of tensor {name!r} are not two natural numbers")
    start, end = offsets
    size = tensor_size(dtype, tuple(shape))
    if size is None:
        _refuse(file, f"tensor {name!r} of {dtype} and shape {shape} does not fill whole bytes")
    if end - start != size:
        _refuse(
            file, f"tensor {name!r} of {dtype} and shape {shape} takes {size} bytes, its offsets give {end - start}"
        )
    return TensorSlot(name, dtype, tuple(shape), base + start, base + end)


def _extents(value: object) -> bool:
    return isinstance(value, list) and all(type(part) is int and 0 <= part <= MAX_EXTENT for part in value)


def _refuse(file: str, problem: str) -> NoReturn:
    raise MalformedSafetensors(
        f"{shown(file)} is not a sound safetensors file: {problem}", fix="get the file again, or save it again"
    )
