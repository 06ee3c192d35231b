"""Heritage: which of our versions a model of unknown origin came from, ranked, with the evidence.

Digests of tensors come first: they are known of every version and cost nothing. Of what they leave open, one piece of a
few tensors of each version is read, and only the versions that are nearest there are looked at whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.digests import Digest
from mreg.registry.models.adapters import Part, parts_of
from mreg.registry.models.folder import FolderListing, look
from mreg.registry.models.intake import store_folder
from mreg.registry.models.manifest import Manifest
from mreg.registry.models.weight_sources import FolderTensors, TensorSource, named
from mreg.registry.models.weights import Tensor
from mreg.registry.proof.heritage_search import Origin, Search
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


@dataclass(frozen=True)
class Heritage:
    """What could be told of a model, the likeliest first. `digest` and `weights` are what it would be imported as.

    `measured` counts the versions that were held against it whole, of `versions` that there are.
    """

    digest: str
    weights: str
    origins: tuple[Origin, ...]
    measured: int = 0
    versions: int = 0


def heritage(registry: Registry, folder: Path, *, report: Callable[[int, int], None]) -> Heritage:
    """Hold a model folder against every version: by digests first, by the distance of the weights next.

    Nothing is stored or recorded. Raises what is wrong with the folder.
    """
    listing = look(folder, trust={"code", "pickle"}, follow_symlinks=True)
    manifest = store_folder(listing, None)
    versions = registry.versions()
    digest, weights = manifest.version_digest, manifest.weights_digest
    equal = [version for version in versions if version.weights == weights]
    if equal:
        found = sorted((_equal(version, digest) for version in equal), key=lambda origin: origin.kind != "identical")
        return Heritage(digest, weights, tuple(found), 0, len(versions))
    model = _Model(listing, manifest)
    if manifest.is_adapter:
        origins, measured = _bases(registry, versions, model, _adapter_config(folder)), 0
    else:
        origins, measured = Search(registry, versions, model, report).origins()
    return Heritage(digest, weights, tuple(origins), measured, len(versions))


def _equal(version: Version, digest: Digest) -> Origin:
    same = version.digest == digest
    said = "every file, byte for byte" if same else "the same weights, in other files or beside other files"
    return Origin((version,), "identical" if same else "same-weights", 0.0, 1.0, said)


class _Model:
    """The tensors of the folder, with the digests that were found when it was read."""

    def __init__(self, listing: FolderListing, manifest: Manifest) -> None:
        self._tensors = FolderTensors(listing)
        self._digests = dict(named((file.path, t.name, t.digest) for file in manifest.files for t in file.tensors))
        self.gguf = next((file.location for file in listing.files if file.path.endswith(".gguf")), None)

    def names(self) -> Iterable[str]:
        return self._tensors.names()

    def digest(self, name: str) -> Digest | None:
        return self._digests[name]

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        return self._tensors.layout(name)

    def tensor(self, name: str) -> Tensor:
        return self._tensors.tensor(name)


def _adapter_config(folder: Path) -> dict[str, Any]:
    parsed: Any = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return parsed if isinstance(parsed, dict) else {}


def _bases(
    registry: Registry, versions: Sequence[Version], adapter: TensorSource, config: dict[str, Any]
) -> list[Origin]:
    """The versions that an adapter could stand on. Its weights do not tell models of one shape apart, so the one that
    its config names comes first, and then the oldest."""
    parts = parts_of(adapter)
    said = str(config.get("base_model_name_or_path") or "")
    fitting = []
    for version in versions if parts else ():
        if version.adapter:
            continue
        held = {tensor.name: tensor.shape for tensor in registry.manifest(version).tensors()}
        if all(part.weight in held and part.fits(held[part.weight]) for part in parts):
            fitting.append((not _is_named(registry, version, said), version.number, version))
    fitting.sort(key=lambda one: one[:2])
    return [_base(version, parts, config, said if not other else "", len(fitting)) for other, _, version in fitting]


def _base(version: Version, parts: Sequence[Part], config: dict[str, Any], said: str, count: int) -> Origin:
    told = f"all {len(parts)} modules of the {config.get('peft_type')} have its shapes"
    more = f", and its config names {said}" if said else f", as those of {count} versions do" if count > 1 else ""
    return Origin((version,), "adapter", 0.0, 0.0, told + more)


def _is_named(registry: Registry, version: Version, said: str) -> bool:
    """Whether the name of a base that a config gives is that of where a version came from, or of a ref on it."""
    last = said.rstrip("/").rpartition("/")[2]
    if not last:
        return False
    refs = {ref for ref, at in registry.refs().items() if at.digest == version.digest}
    source = (version.source or "").partition("@")[0].rstrip("/").rpartition("/")[2]
    return last in {source, *(ref.rpartition("/")[2] for ref in refs)} or said in refs
