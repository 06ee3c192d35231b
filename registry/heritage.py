"""Heritage: which of our versions a model of unknown origin came from, with the evidence."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry import kinship
from mreg.registry.evidence import same_bits
from mreg.registry.folder import look
from mreg.registry.importing import take_in
from mreg.registry.manifest import Manifest
from mreg.registry.versions import Version
from mreg.registry.weight_sources import FolderTensors, StoredTensors

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

MOST_MEASURED = 12
"""Versions that are held against the model as numbers; those that share most tensors and shapes with it."""

PAIRS_OF = 5
"""Of so many nearest versions every two are tried as the parents of a merge."""


@dataclass(frozen=True)
class Origin:
    """One answer: the version, or the two of a merge, how the model could have come from it, and what says so.

    `shared` is the fraction of the model's tensors that the version has, bit for bit.
    """

    versions: tuple[Version, ...]
    kind: str
    distance: float
    shared: float
    evidence: str


@dataclass(frozen=True)
class Heritage:
    """What could be told of a model, the likeliest first. `digest` and `weights` are what it would be imported as."""

    digest: str
    weights: str
    origins: tuple[Origin, ...]


def heritage(registry: Registry, folder: Path, *, report: Callable[[int, int], None]) -> Heritage:
    """Hold a model folder against every version: by digests first, by the distance of the weights next.

    Nothing is stored or recorded. Raises what is wrong with the folder.
    """
    listing = look(folder, trust={"code", "pickle"}, follow_symlinks=True)
    content = take_in(listing, None, lambda done, total: None)
    versions = registry.versions()
    for version in versions:
        if version.weights == content.weights:
            same = version.digest == content.digest
            kind = "identical" if same else "same-weights"
            said = "every file, byte for byte" if same else "the same weights, in other files or beside other files"
            return Heritage(content.digest, content.weights, (Origin((version,), kind, 0.0, 1.0, said),))
    model = FolderTensors(folder)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        origins = _bases(registry, versions, model, json.loads(adapter.read_text(encoding="utf-8")))
    else:
        origins = _parents(registry, versions, model, report)
    return Heritage(content.digest, content.weights, tuple(origins))


def _parents(
    registry: Registry, versions: list[Version], model: FolderTensors, report: Callable[[int, int], None]
) -> list[Origin]:
    """The versions that the model could have been made from in one step, the nearest first."""
    manifests = {version.digest: registry.manifest(version) for version in versions if not version.adapter}
    whole = [version for version in versions if version.digest in manifests]
    likely = sorted(whole, key=lambda one: -_overlap(manifests[one.digest], model))[:MOST_MEASURED]
    origins = []
    for count, version in enumerate(likely, start=1):
        stored = StoredTensors(manifests[version.digest], registry.store)
        found = kinship.relate(stored, model)
        if found.kind != "none":
            origins.append(Origin((version,), found.kind, found.distance, _shared(stored, model), found.evidence))
        report(count, len(likely))
    origins.sort(key=_likelihood)
    near = [origin.versions[0] for origin in origins if origin.kind == "finetune"][:PAIRS_OF]
    merges = []
    for a, b in itertools.combinations(sorted(near, key=lambda version: version.number), 2):
        first, second = (StoredTensors(manifests[one.digest], registry.store) for one in (a, b))
        shares = kinship.as_merge(first, second, model)
        if shares is not None:
            said = f"{shares[0]:.3g} of {a} and {shares[1]:.3g} of {b}, within {shares[2]:.2g} steps of its dtype"
            merges.append((shares[2], Origin((a, b), "merge", 0.0, 0.0, said)))
    return [*(origin for _, origin in sorted(merges, key=lambda one: one[0])), *origins]


def _likelihood(origin: Origin) -> tuple[int, float, int]:
    """What explains all of a model comes before what is merely near; of equals the newest version."""
    exact = ("same", "cast", "prune", "edit", "fuse", "quantize")
    return (0 if origin.kind in exact else 1, origin.distance, -origin.versions[0].number)


def _bases(
    registry: Registry, versions: list[Version], adapter: FolderTensors, config: dict[str, object]
) -> list[Origin]:
    """The versions that an adapter could stand on, by its shapes."""
    shapes: dict[str, tuple[int, int]] = {}
    for name in adapter.names():
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
            rows, columns = shapes.get(module, (0, 0))
            shape = adapter.tensor(name).shape
            shapes[module] = (shape[0], columns) if ".lora_B." in name else (rows, shape[1])
    origins = []
    for version in versions:
        if version.adapter or not shapes:
            continue
        held = {tensor.name: tensor.shape for tensor in registry.manifest(version).tensors()}
        if all(held.get(f"{module}.weight") == shape for module, shape in shapes.items()):
            said = f"all {len(shapes)} modules of the {config.get('peft_type')} have their shapes"
            origins.append(Origin((version,), "adapter", 0.0, 0.0, said))
    return origins


def _overlap(manifest: Manifest, model: FolderTensors) -> float:
    """The fraction of the model's tensors that a version has by name; packed ones count by the name they stand for."""
    names = {tensor.name for tensor in manifest.tensors()}
    ours = [name.removesuffix("_packed") for name in model.names()]
    return sum(name in names for name in ours) / max(len(ours), 1)


def _shared(stored: StoredTensors, model: FolderTensors) -> float:
    held = set(stored.names())
    names = list(model.names())
    return sum(name in held and same_bits(stored.tensor(name), model.tensor(name)) for name in names) / max(
        len(names), 1
    )
