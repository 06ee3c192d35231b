"""BLAKE3 digests: what names a file, a tensor, a set of weights, a version and an event."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NewType

from blake3 import blake3
from mreg.registry import canonical

Digest = NewType("Digest", str)
"""64 lower-case hexadecimal digits."""

_DIGEST = re.compile("[0-9a-f]{64}")

Buffer = bytes | bytearray | memoryview

# A context makes each kind of digest a hash function of its own (BLAKE3 key derivation), so that a file cannot be
# written that passes for a version or an event.
TENSOR = "mreg 2026 tensor v1"
WEIGHTS = "mreg 2026 weights v1"
VERSION = "mreg 2026 version v1"
EVENT = "mreg 2026 event v1"
HEAD = "mreg 2026 head v1"
STEP = "mreg 2026 step v1"
SCORE = "mreg 2026 score v1"


def file_hasher(threads: int = 1) -> blake3:
    """A hasher whose digest is that of `b3sum`: plain BLAKE3 over the bytes.

    It and `tensor_hasher` use one thread: an import hashes several things at once, which was measured to be faster than
    several threads on each.
    """
    return blake3(max_threads=threads)


def tensor_hasher(dtype: str, shape: Sequence[int]) -> blake3:
    """A hasher for one tensor; feed it the raw little-endian, row-major bytes.

    `dtype` is the safetensors name (`BF16`). The prefix `BF16[576,1536]` and a NUL come before the bytes.
    """
    hasher = blake3(derive_key_context=TENSOR)
    hasher.update(f"{dtype}[{','.join(map(str, shape))}]\0".encode())
    return hasher


def of_bytes(data: Buffer) -> Digest:
    """The plain BLAKE3 of `data`."""
    return Digest(blake3(data, max_threads=blake3.AUTO).hexdigest())


def of_json(context: str, value: canonical.Json) -> Digest:
    """The digest of a value's canonical JSON in one of the contexts above."""
    return Digest(blake3(canonical.dumps(value), derive_key_context=context).hexdigest())


def of_weights(tensors: Iterable[tuple[str, str, tuple[int, ...], Digest]]) -> Digest:
    """The weights digest over `(name, dtype, shape, tensor digest)`.

    Law: it is the same however the tensors are ordered, sharded or annotated.
    """
    return of_json(WEIGHTS, [[name, dtype, list(shape), digest] for name, dtype, shape, digest in sorted(tensors)])


def is_digest(text: str) -> bool:
    """Whether `text` is spelled as a digest is."""
    return _DIGEST.fullmatch(text) is not None
