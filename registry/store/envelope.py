"""The bytes before an object's payload: what the object is, so that any object can be checked alone.

The layout is in docs/format.md: `MREG`, one byte of version, three of header length, then canonical JSON padded with
spaces to a multiple of 64. A header has exactly one spelling, and reading compares with it: no bit can flip unseen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from blake3 import blake3
from mreg.registry import canonical, digests
from mreg.registry.models.safetensors_header import MAX_DIMENSIONS, MAX_EXTENT, tensor_size
from mreg.registry.store.prediction import Prediction

Encoding = Literal["raw", "solo", "residual"]
"""How the content is stored: as it is, in planes of its own, or as what a prediction from other tensors gets wrong."""

MAGIC = b"MREG"
VERSION = 1
PREFIX = 8
ALIGNMENT = 64
LONGEST = 1 << 20
"""No header is longer; more can only be damage."""


class BadEnvelope(ValueError):
    """The bytes are no envelope of this format. Says why, in words that follow the object's name."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an object is. `size` counts its content; `dtype` and `shape` are a tensor's.

    Only a tensor can be a residual, and then `prediction` says of what.
    """

    kind: Literal["file", "tensor"]
    size: int
    dtype: str = ""
    shape: tuple[int, ...] = ()
    encoding: Encoding = "raw"
    prediction: Prediction | None = None

    @classmethod
    def of_tensor(cls, dtype: str, shape: tuple[int, ...]) -> Envelope:
        """The envelope of a tensor, whose dtype and shape give its size."""
        size = tensor_size(dtype, shape)
        assert size is not None, f"{dtype} {shape} does not fill whole bytes"
        return cls("tensor", size, dtype, shape)

    def to_bytes(self) -> bytes:
        """Everything before the payload; its length is a multiple of 64."""
        header: dict[str, Any] = {"encoding": self.encoding, "kind": self.kind, "size": self.size}
        if self.kind == "tensor":
            header |= {"dtype": self.dtype, "shape": list(self.shape)}
        if self.prediction is not None:
            header["prediction"] = {
                "inputs": list(self.prediction.inputs),
                "operation": self.prediction.operation,
                "params": dict(self.prediction.params),
            }
        text = canonical.dumps(header)
        padded = text.ljust(-(-(PREFIX + len(text)) // ALIGNMENT) * ALIGNMENT - PREFIX)
        return MAGIC + bytes([VERSION]) + len(padded).to_bytes(3, "little") + padded

    def encoded(self, encoding: Encoding, prediction: Prediction | None = None) -> Envelope:
        """The same content, stored in another way."""
        return replace(self, encoding=encoding, prediction=prediction)

    @property
    def inputs(self) -> tuple[digests.Digest, ...]:
        """The objects without which this one cannot be read."""
        return () if self.prediction is None else self.prediction.inputs

    def hasher(self) -> blake3:
        """The hash function that names this kind of object."""
        return digests.tensor_hasher(self.dtype, self.shape) if self.kind == "tensor" else digests.file_hasher()


def header_length(prefix: bytes) -> int:
    """The length of the header that the first 8 bytes promise."""
    if len(prefix) < PREFIX or prefix[:4] != MAGIC:
        raise BadEnvelope("does not start as an object does")
    if prefix[4] != VERSION:
        raise BadEnvelope(f"has the unknown format version {prefix[4]}")
    length = int.from_bytes(prefix[5:8], "little")
    if length > LONGEST or (PREFIX + length) % ALIGNMENT:
        raise BadEnvelope(f"has an impossible header length of {length}")
    return length


def parse(raw: bytes) -> Envelope:
    """Read an envelope, prefix and padding included. Law: `parse(e.to_bytes()) == e`. Raises BadEnvelope."""
    try:
        header = json.loads(raw[PREFIX:])
        envelope = _from_json(header)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadEnvelope("has an unreadable header") from error
    if envelope.to_bytes() != raw:
        raise BadEnvelope("has a header that is not in canonical form")
    return envelope


def _from_json(header: dict[str, Any]) -> Envelope:
    encoding, size = header["encoding"], header["size"]
    if not _is_natural(size) or encoding not in ("raw", "solo", "residual") or (encoding != "raw" and size == 0):
        raise ValueError("an unknown encoding")
    if header["kind"] == "file" and encoding != "residual":
        return Envelope("file", size, encoding=encoding)
    dtype, shape = header["dtype"], tuple(header["shape"])
    natural = len(shape) <= MAX_DIMENSIONS and all(map(_is_natural, shape))
    if header["kind"] != "tensor" or not natural or not _is_natural(tensor_size(dtype, shape)):
        raise ValueError("neither a file nor a tensor")
    prediction = _prediction(header["prediction"]) if encoding == "residual" else None
    return Envelope.of_tensor(dtype, shape).encoded(encoding, prediction)


def _prediction(value: dict[str, Any]) -> Prediction:
    operation, inputs, params = value["operation"], value["inputs"], value["params"]
    if not isinstance(operation, str) or not isinstance(inputs, list) or not isinstance(params, dict):
        raise ValueError("not a prediction")
    if not all(isinstance(each, str) and digests.is_digest(each) for each in inputs):
        raise ValueError("an input without a digest")
    return Prediction(operation, tuple(map(digests.Digest, inputs)), params)


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_EXTENT
