"""What format.md takes from the code, so that the page cannot say anything else: tables and worked examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from duckdb_sqlalchemy import Dialect
from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.log import events, folds
from mreg.registry.log.journal import EMPTY
from mreg.registry.log.recorded import Recorded
from mreg.registry.log.tables import TABLES
from mreg.registry.models.manifest import FileEntry, Manifest, TensorEntry
from mreg.registry.store.envelope import Envelope
from pydantic import BaseModel
from sqlmodel import SQLModel

CONTEXTS = {
    "tensor": digests.TENSOR,
    "weights": digests.WEIGHTS,
    "version": digests.VERSION,
    "event": digests.EVENT,
    "HEAD": digests.HEAD,
    "step": digests.STEP,
}

HEADER = '{"__metadata__":{"format":"pt"},"scale":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   '
DATA = bytes.fromhex("0000803f00000040")
"""The floats 1.0 and 2.0."""


def contexts() -> str:
    """The BLAKE3 contexts."""
    rows = [f"| {what} | `{context}` |" for what, context in CONTEXTS.items()]
    return "\n".join(["| digest of | context |", "|---|---|", *rows])


def journal() -> str:
    """The first line of a journal, and the HEAD after it."""
    line = _first().line()
    return f"```text\n{line.decode()}```\n\nand `HEAD` after it\n\n```text\n{_head().decode()}```"


def kinds() -> str:
    """Every kind of event with its payload, and the values inside."""
    parts = [_shape(f"`{kind}`", shape) for kind, shape in events.KINDS.items()]
    inside = (events.Content, events.InputUsed, events.StepJudged)
    values = [_shape(shape.__name__, shape) for shape in inside]
    return "\n".join([*parts, "\nThe values inside them:\n", *values])


def tables() -> str:
    """Every table of the database."""
    parts = []
    for name, row in TABLES.items():
        columns = SQLModel.metadata.tables[name].columns
        key = [column.name for column in columns if column.primary_key]
        assert name == "event" or folds.KEYS[name] == tuple(key)
        shown = "; ".join(f"`{column.name}` {column.type.compile(dialect=Dialect())}" for column in columns)
        parts.append(f"- **{name}** {_says(row)} Key: {', '.join(key)}.<br>\n  {shown}.")
    return "\n".join(parts)


def tensor_object() -> str:
    """An object that holds a tensor, byte by byte."""
    raw = Envelope.of_tensor("F32", (2,)).to_bytes() + DATA
    return f"Its name is `{_tensor()}`, and it lies in `objects/{_tensor()[:2]}/{_tensor()[2:]}`.\n\n{_dump(raw)}"


def manifest() -> str:
    """A manifest of two files, laid out for people, and its digests."""
    made = _manifest()
    shown = json.dumps(json.loads(made.to_bytes()), indent=2)
    return "\n".join(
        [
            f"```json\n{shown}\n```\n",
            f"- its canonical JSON is {len(made.to_bytes())} bytes long;",
            f"- the object that holds it is called `{made.object_digest}`;",
            f"- the version digest is `{made.version_digest}`;",
            f"- the weights digest is `{made.weights_digest}`.",
        ]
    )


def _first() -> Recorded:
    created = events.RegistryCreated(registry="6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
    at, by = "2026-03-01T12:30:05.250Z", "ann@lab"
    return events.record(
        created, seq=1, id="0b7f3a52-6c1e-4f6e-9f0a-3c0b7a5d9e11", at=at, actor=by, prev=Recorded.GENESIS
    )


def _head() -> bytes:
    return EMPTY.moved(_first(), _first().line()).to_bytes()


def _tensor() -> Digest:
    hasher = digests.tensor_hasher("F32", (2,))
    hasher.update(DATA)
    return Digest(hasher.hexdigest())


def _manifest() -> Manifest:
    config = b'{"model_type": "llama"}\n'
    weights = len(HEADER).to_bytes(8, "little") + HEADER.encode() + DATA
    tensor = TensorEntry("scale", "F32", (2,), _tensor())
    return Manifest(
        (
            FileEntry("config.json", len(config), digests.of_bytes(config)),
            FileEntry("model.safetensors", len(weights), digests.of_bytes(weights), HEADER, (tensor,)),
        )
    )


def _dump(raw: bytes) -> str:
    lines = []
    for start in range(0, len(raw), 16):
        piece = raw[start : start + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{start:04x}  {piece.hex(' '):<47}  {shown}".rstrip())
    return "\n".join(["```text", *lines, "```"])


def _shape(title: str, shape: type[BaseModel]) -> str:
    fields = [(name, field) for name, field in shape.model_fields.items() if name != "kind"]
    shown = "; ".join(f"`{name}` {_type(field.annotation)}" for name, field in fields)
    return f"- **{title}** {_says(shape)}<br>\n  {shown}."


def _says(thing: type) -> str:
    return re.sub(r"\s+", " ", (thing.__doc__ or "").strip())


def _type(annotation: Any) -> str:
    """A field's type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return "anything"
    if origin in (UnionType, Union):
        return " or ".join("null" if each is NoneType else _type(each) for each in inner)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is tuple and inner[1:] == (...,):
        return f"list of {_type(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, inner))}]"
    if origin is dict:
        return "object" if inner[1] is Any else f"object of {_type(inner[1])}"
    return "digest" if annotation is Digest else _PLAIN.get(annotation) or annotation.__name__


_PLAIN: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def everything() -> Iterator[str]:
    """All of it, for who wants to look."""
    yield from (contexts(), journal(), kinds(), tables(), tensor_object(), manifest())
