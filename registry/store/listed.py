"""Which objects a manifest lists, read quickly: for those who go through all versions and need nothing else of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.digests import Digest

if TYPE_CHECKING:
    from mreg.registry.store.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Listed:
    """The objects of a version: `weights`, which an eviction takes, are tensors and GGUF files, `others` all else."""

    weights: frozenset[Digest]
    others: frozenset[Digest]

    @property
    def all(self) -> frozenset[Digest]:
        """Every object but the manifest's own."""
        return self.weights | self.others


def listed(store: ObjectStore, manifest: Digest) -> Listed:
    """What a stored manifest lists. Raises MissingObject or DamagedObject.

    It is verified as any object is, so there is in it what was written, which `Manifest.from_bytes` had let pass.
    """
    files = json.loads(store.read_bytes(manifest))["files"]
    tensors = {Digest(one["digest"]) for file in files for one in file.get("tensors", ())}
    plain = [(file["path"], Digest(file["digest"])) for file in files if "header" not in file]
    others = {digest for path, digest in plain if not path.endswith(".gguf")}
    return Listed(frozenset(tensors | {digest for _, digest in plain} - others), frozenset(others))
