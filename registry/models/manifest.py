"""What one model consists of: its files, their tensors and the digests that name them.

A safetensors file is kept as its header, verbatim, and its tensors, so that a tensor is stored once whatever model or
shard holds it, and the file still comes back byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NoReturn

from blake3 import blake3
from mreg.registry import canonical, digests
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.models import safetensors_header
from mreg.registry.plain import is_safe_path

FORMAT = "mreg-manifest/1"


class MalformedManifest(MregError):
    """A manifest object hashes to its name, but does not say what a manifest must."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: Digest

    @property
    def size(self) -> int:
        """Its raw bytes."""
        size = safetensors_header.tensor_size(self.dtype, self.shape)
        assert size is not None, "the header reader refuses such a tensor"
        return size


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. For a safetensors file, `header` is its JSON text and `tensors` follow in the order of their bytes."""

    path: str
    size: int
    digest: Digest
    header: str | None = None
    tensors: tuple[TensorEntry, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The files of one model, sorted by path."""

    files: tuple[FileEntry, ...]

    @property
    def size(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)

    @property
    def is_adapter(self) -> bool:
        """Whether this is a PEFT adapter, which fits one base, and not a model of its own."""
        return any(file.path == "adapter_config.json" for file in self.files)

    def file(self, path: str) -> FileEntry | None:
        """The file at `path`, if there is one."""
        return next((file for file in self.files if file.path == path), None)

    def tensors(self) -> Iterator[TensorEntry]:
        """Every tensor of every safetensors file."""
        for file in self.files:
            yield from file.tensors

    def objects(self) -> set[Digest]:
        """The objects that a checkout reads: tensors, and the files that are no safetensors. Not the manifest's own."""
        return {tensor.digest for tensor in self.tensors()} | {
            file.digest for file in self.files if file.header is None
        }

    def to_bytes(self) -> bytes:
        """The canonical JSON: what is stored, and what the digests are of."""
        return self._canonical

    @cached_property
    def _canonical(self) -> bytes:
        return canonical.dumps({"files": [_file_to_json(file) for file in self.files], "format": FORMAT})

    @property
    def version_digest(self) -> Digest:
        """What names the version. Its own hash function, so no file that is a manifest passes for a version."""
        return Digest(blake3(self.to_bytes(), derive_key_context=digests.VERSION).hexdigest())

    @property
    def object_digest(self) -> Digest:
        """The name of the object that holds this manifest: the plain digest of the same bytes."""
        return digests.of_bytes(self.to_bytes())

    @property
    def weights_digest(self) -> Digest:
        """What names the weights, however they are sharded and annotated.

        A GGUF file counts as one tensor of dtype `GGUF`, named by its path, since its weights are not told apart.
        """
        entries = [(tensor.name, tensor.dtype, tensor.shape, tensor.digest) for tensor in self.tensors()]
        entries += [(f.path, "GGUF", (f.size,), f.digest) for f in self.files if f.path.endswith(".gguf")]
        return digests.of_weights(entries)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a manifest back, strictly. Law: `from_bytes(m.to_bytes()) == m`. Raises MalformedManifest."""
        return _from_bytes(data)


@lru_cache(maxsize=4)
def _from_bytes(data: bytes) -> Manifest:
    """The same bytes are the same manifest, and a step asks for those of its inputs again and again."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        _refuse(f"it is not JSON ({error})")
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        _refuse(f"its format is not {FORMAT}")
    if set(value) != {"files", "format"} or not isinstance(value["files"], list):
        _refuse("it does not list files")
    manifest = Manifest(tuple(_file_from_json(entry) for entry in value["files"]))
    _check_paths([file.path for file in manifest.files])
    if manifest.to_bytes() != data:
        _refuse("it is not in canonical form")
    return manifest


def _file_to_json(file: FileEntry) -> dict[str, Any]:
    plain: dict[str, Any] = {"digest": file.digest, "path": file.path, "size": file.size}
    if file.header is None:
        return plain
    tensors = [{"digest": t.digest, "dtype": t.dtype, "name": t.name, "shape": list(t.shape)} for t in file.tensors]
    return plain | {"header": file.header, "tensors": tensors}


def _file_from_json(entry: object) -> FileEntry:
    if not isinstance(entry, dict) or set(entry) - {"header", "tensors"} != {"digest", "path", "size"}:
        _refuse("a file has no digest, path and size")
    path, size, digest = entry["path"], entry["size"], entry["digest"]
    if not isinstance(path, str) or not is_safe_path(path):
        _refuse(f"{ascii(path)[:200]} is not a safe relative path")
    if type(size) is not int or not 0 <= size <= safetensors_header.MAX_EXTENT:
        _refuse(f"the size of {path} is not a natural number")
    if not isinstance(digest, str) or not digests.is_digest(digest):
        _refuse(f"the digest of {path} is malformed")
    if ("header" in entry) != ("tensors" in entry):
        _refuse(f"{path} has a header without tensors, or tensors without a header")
    if "header" not in entry:
        return FileEntry(path, size, Digest(digest))
    return FileEntry(path, size, Digest(digest), entry["header"], _tensors_from_json(entry, path, size))


def _tensors_from_json(entry: dict[str, Any], path: str, size: int) -> tuple[TensorEntry, ...]:
    """The tensors of a file, held against the header beside them, which says the same once more."""
    if not isinstance(entry["header"], str) or not isinstance(entry["tensors"], list):
        _refuse(f"the header or the tensors of {path} are malformed")
    try:
        header = safetensors_header.parse(entry["header"].encode(), file_size=size, file=path)
    except (safetensors_header.MalformedSafetensors, UnicodeEncodeError) as error:
        _refuse(str(error))
    if len(header.tensors) != len(entry["tensors"]):
        _refuse(f"the header of {path} lists other tensors than the manifest")
    tensors = []
    for slot, tensor in zip(header.tensors, entry["tensors"], strict=True):
        expected = {"dtype": slot.dtype, "name": slot.name, "shape": list(slot.shape)}
        if not isinstance(tensor, dict) or {k: v for k, v in tensor.items() if k != "digest"} != expected:
            _refuse(f"the header of {path} and the manifest disagree about tensor {slot.name!r}")
        digest = tensor.get("digest")
        if not isinstance(digest, str) or not digests.is_digest(digest):
            _refuse(f"the digest of tensor {slot.name!r} in {path} is malformed")
        tensors.append(TensorEntry(slot.name, slot.dtype, slot.shape, Digest(digest)))
    return tuple(tensors)


def _check_paths(paths: list[str]) -> None:
    if paths != sorted(set(paths)):
        _refuse("its files are not sorted by path, or one is named twice")
    folders = {path[:end] for path in paths for end, c in enumerate(path) if c == "/"}
    if both := folders & set(paths):
        _refuse(f"{min(both)} is a file and a folder")


def _refuse(problem: str) -> NoReturn:
    raise MalformedManifest(f"a manifest is malformed: {problem}", fix="`mreg fsck` says which version it belongs to")
