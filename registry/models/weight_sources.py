"""Where tensors are read from to be compared: a store, or a folder on disk; and what differs between two of them."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from mreg.registry.digests import Digest
from mreg.registry.files import disk_errors
from mreg.registry.models import safetensors_header
from mreg.registry.models.folder import FolderListing, look
from mreg.registry.models.manifest import Manifest, TensorEntry
from mreg.registry.models.weights import Tensor, TensorChange, compare_tensors
from mreg.registry.store.objects import ObjectStore

T = TypeVar("T")


class TensorSource(Protocol):
    """Tensors by name. A name that two files use is prefixed with the file's path and a colon."""

    def names(self) -> Iterable[str]:
        """Every tensor there is."""

    def digest(self, name: str) -> Digest | None:
        """Its digest, when that is known without reading it."""

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Its dtype and shape, known without reading it."""

    def tensor(self, name: str) -> Tensor:
        """The tensor, mapped into memory and not verified. Its pages are freed with the last reference to it."""


class StoredTensors:
    """The tensors of a version in the store."""

    def __init__(self, manifest: Manifest, store: ObjectStore) -> None:
        self._entries: Mapping[str, TensorEntry] = named(
            (file.path, tensor.name, tensor) for file in manifest.files for tensor in file.tensors
        )
        self._store = store

    def names(self) -> Iterable[str]:
        """Every tensor of the version."""
        return self._entries.keys()

    def digest(self, name: str) -> Digest | None:
        """The tensor's digest, from the manifest."""
        return self._entries[name].digest

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The tensor's dtype and shape, from the manifest."""
        entry = self._entries[name]
        return entry.dtype, entry.shape

    def tensor(self, name: str) -> Tensor:
        """The tensor, from the store. Raises MissingObject or DamagedObject."""
        entry = self._entries[name]
        return Tensor(entry.dtype, entry.shape, self._store.open(entry.digest).payload)


class FolderTensors:
    """The tensors of the safetensors files in a folder, or of one file, or of what was listed."""

    def __init__(self, path: Path | FolderListing) -> None:
        listing = look(path, trust={"code", "pickle"}, follow_symlinks=True) if isinstance(path, Path) else path
        slots = []
        for file in listing.files:
            if file.path.endswith(".safetensors"):
                with disk_errors(file.location), open(file.location, "rb") as content:
                    length = safetensors_header.header_length(content.read(8), file_size=file.size, file=file.path)
                    header = safetensors_header.parse(content.read(length), file_size=file.size, file=file.path)
                slots += [(file.path, slot.name, (file.location, slot)) for slot in header.tensors]
        self._slots = named(slots)

    def names(self) -> Iterable[str]:
        """Every tensor in the folder."""
        return self._slots.keys()

    def digest(self, name: str) -> Digest | None:  # noqa: ARG002 - a folder has none; the protocol asks
        """None: a folder's tensors have not been hashed."""
        return None

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The tensor's dtype and shape, from the header of its file."""
        _, slot = self._slots[name]
        return slot.dtype, slot.shape

    def tensor(self, name: str) -> Tensor:
        """The tensor, mapped from its file."""
        location, slot = self._slots[name]
        if slot.start == slot.end:
            return Tensor(slot.dtype, slot.shape, memoryview(b""))
        aligned = slot.start - slot.start % mmap.ALLOCATIONGRANULARITY
        with disk_errors(location):
            fd = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
            try:
                mapped = mmap.mmap(fd, slot.end - aligned, prot=mmap.PROT_READ, offset=aligned)
            finally:
                os.close(fd)
        return Tensor(slot.dtype, slot.shape, memoryview(mapped)[slot.start - aligned :])


@dataclass(frozen=True, slots=True)
class WeightsChange:
    """What differs between two models' tensors. Names are sorted; `identical` counts the tensors that do not differ."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[TensorChange, ...]
    identical: int


def compare(
    a: TensorSource, b: TensorSource, *, rank: bool = True, report: Callable[[int, int], None] | None = None
) -> WeightsChange:
    """How the tensors of `b` differ from those of `a`. `report` is called with the tensors done and in all."""
    ours, theirs = set(a.names()), set(b.names())
    common = sorted(ours & theirs)
    changed = []
    for count, name in enumerate(common, start=1):
        known = a.digest(name)
        if known is None or known != b.digest(name):
            change = compare_tensors(name, a.tensor(name), b.tensor(name), rank=rank)
            changed += [change] if change else []
        if report is not None:
            report(count, len(common))
    added, removed = tuple(sorted(theirs - ours)), tuple(sorted(ours - theirs))
    return WeightsChange(added, removed, tuple(changed), len(common) - len(changed))


def named(entries: Iterable[tuple[str, str, T]]) -> Mapping[str, T]:
    """Entries, each with the path of its file and the name of its tensor, by the names of `TensorSource`."""
    listed = list(entries)
    uses = Counter(name for _, name, _ in listed)
    return {(name if uses[name] == 1 else f"{path}:{name}"): entry for path, name, entry in listed}
