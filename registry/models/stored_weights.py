"""The tensors of a stored version, each decoded when it is asked for and checked against its digest, without a file.

`arrays` are for numpy. `weights` are what transformers takes as a `state_dict`: it asks for a tensor when its turn has
come, as it does of a safetensors file, so that no model is ever in memory twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mreg.registry.models.manifest import FileEntry, Manifest, TensorEntry
from mreg.registry.store.objects import ObjectStore

if TYPE_CHECKING:
    import torch
    from mreg.registry.models.weights import Array

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
_READS_FILES = {"torchao"}
"""Quantizers that look into the checkpoint's files for more than tensors."""


class StoredArrays(Mapping[str, "Array"]):
    """The tensors of a version by name, as numpy arrays of one's own; each is read anew whenever it is asked for.

    A name that two files use is prefixed with the file's path and a colon. bfloat16 and float8 are dtypes of ml_dtypes.
    Reading one raises MissingObject or DamagedObject.
    """

    def __init__(self, manifest: Manifest, store: ObjectStore) -> None:
        from mreg.registry.models.weight_sources import named

        self._entries = named((file.path, tensor.name, tensor) for file in manifest.files for tensor in file.tensors)
        self._store = store

    def __getitem__(self, name: str) -> Array:
        from mreg.registry.models.weights import Tensor

        entry = self._entries[name]
        content = bytearray(entry.size)
        _fill(memoryview(content), self._store, entry)
        return Tensor(entry.dtype, entry.shape, memoryview(content)).array()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class StoredWeight:
    """A tensor that `from_pretrained` reads when its turn has come: what it asks of one in a safetensors file."""

    def __init__(self, entry: TensorEntry, store: ObjectStore) -> None:
        self._entry = entry
        self._store = store

    def get_dtype(self) -> str:
        """The dtype, as safetensors names it."""
        return self._entry.dtype

    def get_shape(self) -> list[int]:
        """The extents."""
        return list(self._entry.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype, as torch names it."""
        import torch

        found: torch.dtype = getattr(torch, _TORCH[self._entry.dtype])
        return found

    def is_floating_point(self) -> bool:
        """Whether it holds floats."""
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> torch.Tensor:
        import torch

        # Memory of the tensor's own, as aligned as any: what is computed with it must not hang on where it came from.
        content = torch.empty(self._entry.size, dtype=torch.uint8)
        _fill(content.numpy().data, self._store, self._entry)
        return content.view(self.dtype).reshape(self._entry.shape)[index]


def weights(manifest: Manifest, store: ObjectStore) -> dict[str, StoredWeight] | None:
    """The tensors that `from_pretrained` would read from a checkout, by name; None where that takes the files.

    That is so for weights that are not safetensors, for files that bear other names than transformers gives them, for
    dtypes that torch does not have, and for torchao, which keeps something in the metadata of the files.
    """
    files = _checkpoint(manifest, store)
    if files is None or _reads_files(manifest, store):
        return None
    # A name that stands in two shards is read from the last.
    entries = {entry.name: entry for file in files for entry in sorted(file.tensors, key=lambda entry: entry.name)}
    if any(entry.dtype not in _TORCH for entry in entries.values()):
        return None
    return {name: StoredWeight(entry, store) for name, entry in entries.items()}


def _checkpoint(manifest: Manifest, store: ObjectStore) -> list[FileEntry] | None:
    """The safetensors files that transformers would choose, in the order in which it reads them."""
    whole, index = manifest.file(WEIGHTS), manifest.file(INDEX)
    if whole is not None:
        return [whole] if whole.header is not None else None
    if index is None:
        return None
    paths = set(json.loads(store.read_bytes(index.digest))["weight_map"].values())
    files = [file for file in manifest.files if file.path in paths and file.header is not None]
    return files if len(files) == len(paths) else None


def _reads_files(manifest: Manifest, store: ObjectStore) -> bool:
    file = manifest.file("config.json")
    config = {} if file is None else json.loads(store.read_bytes(file.digest))
    quantizer = (config.get("quantization_config") or {}).get("quant_method")
    return "transformers_weights" in config or quantizer in _READS_FILES


def _fill(content: memoryview, store: ObjectStore, entry: TensorEntry) -> None:
    at = 0

    def write(chunk: memoryview) -> None:
        nonlocal at
        content[at : at + len(chunk)] = chunk
        at += len(chunk)

    store.copy_to(entry.digest, write)
