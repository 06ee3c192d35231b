"""The search for what a model came from among versions that it is none of, nearest first."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mreg.registry.models.gguf_file import GgufFile
from mreg.registry.models.layer_names import within
from mreg.registry.models.weight_sources import StoredTensors, TensorSource
from mreg.registry.proof import kinship, kinship_merges
from mreg.registry.proof.heritage_layers import stacked
from mreg.registry.proof.heritage_pieces import Pieces
from mreg.registry.proof.kinship import Kinship
from mreg.registry.proof.kinship_gguf import relate_gguf
from mreg.registry.proof.kinship_merges import Merged
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

MOST_MEASURED = 6
"""Versions that are held against the model whole: those that share most with it, or are nearest where it was read."""

MOST_TRIED = 3
"""Of the sets of versions that come near the model when they are added, how many are looked at whole."""

NEARER = 0.75
"""A version is what a model was trained from, rather than an older one, if it is nearer than this part of the way."""

EXACT = ("same", "cast", "prune", "merge", "fuse", "edit", "quantize")
"""Kinds that explain all of a model, before those that say only that it is near."""


class Model(TensorSource, Protocol):
    """The model that is asked about. `gguf` is where it lies, if it is a file of that kind."""

    gguf: Path | None


@dataclass(frozen=True)
class Origin:
    """One answer: the version, or those of a merge, how the model could have come from it, and what says so.

    `shared` is the fraction of the model's tensors that the first version has, bit for bit.
    """

    versions: tuple[Version, ...]
    kind: str
    distance: float
    shared: float
    evidence: str


class Search:
    """A model that is none of ours, held against those that are."""

    def __init__(
        self, registry: Registry, versions: Sequence[Version], model: Model, report: Callable[[int, int], None]
    ) -> None:
        self.registry = registry
        self.model = model
        self.report = report
        self.manifests = {version.digest: registry.manifest(version) for version in versions}
        self.whole = [version for version in versions if not version.adapter]
        self.adapters = [version for version in versions if version.adapter]
        self.named = {name: digest for name in model.names() if (digest := model.digest(name))}
        self.gguf = None if model.gguf is None else GgufFile(model.gguf)

    def origins(self) -> tuple[list[Origin], int]:
        """Every answer, the likeliest first, and how many versions were looked at whole."""
        if self.gguf is not None:
            return self._of_gguf(self.gguf)
        if (stack := self._stacked()) is not None:
            return [stack], 0
        manifests = {version.digest: self.manifests[version.digest] for version in self.whole}
        pieces = Pieces(self.model, manifests, self.registry.store)
        likely = self._likely(pieces)
        found: list[Origin] = []
        for count, version in enumerate(likely, start=1):
            kin = kinship.relate(self._stored(version), self.model)
            if kin.kind != "none":
                found.append(self._origin(version, kin))
            self.report(count, len(likely))
        found = self._told_apart(sorted(found, key=_likelihood))
        if not found or found[0].kind in ("fuse", "finetune"):
            found = [*self._merges(pieces), *found]
        return found, len(likely)

    def _likely(self, pieces: Pieces) -> list[Version]:
        """The versions worth looking at whole, the nearest first."""
        shared = {version.digest: self._shared(version) for version in self.whole}
        near = {version.digest: pieces.distance(version.digest) for version in self.whole}
        fitting = [v for v in self.whole if shared[v.digest] or near[v.digest] < kinship.UNRELATED or self._alike(v)]
        return sorted(fitting, key=lambda v: (-shared[v.digest], near[v.digest], v.number))[:MOST_MEASURED]

    def _told_apart(self, found: Sequence[Origin]) -> list[Origin]:
        """The answers, the likeliest first; those that one kind explains are looked at once more where they differ."""
        if not found:
            return []
        best = found[0]
        alike = [origin for origin in found if origin.kind == best.kind]
        if best.kind not in EXACT:
            first = _parent(alike)
            return [first, *(origin for origin in found if origin.versions != first.versions)]
        if len(alike) == 1 or best.kind == "same":
            return list(found)
        names = self._differing([origin.versions[0] for origin in alike])
        again = [(kinship.relate(self._stored(o.versions[0]), self.model, names), o) for o in alike]
        again.sort(key=lambda one: (one[0].kind != best.kind, *_fit(one[0], one[1].versions[0])))
        ranked = [origin for _, origin in again]
        return [*ranked, *(origin for origin in found if origin not in ranked)]

    def _differing(self, versions: Sequence[Version]) -> set[str]:
        """The tensors that these versions do not all have in common."""
        held = [{t.name: t.digest for t in self.manifests[version.digest].tensors()} for version in versions]
        return {name for name in held[0] if len({tensors.get(name) for tensors in held}) > 1}

    def _of_gguf(self, file: GgufFile) -> tuple[list[Origin], int]:
        """Every version is held against one matrix, the nearest of them against more."""
        first = [(relate_gguf(self._stored(version), file, count=1), version) for version in self.whole]
        near = sorted((one for one in first if one[0].kind != "none"), key=lambda one: _fit(*one))[:MOST_MEASURED]
        names = self._differing([version for _, version in near]) if near else set()
        found = [(relate_gguf(self._stored(version), file, among=names), version) for _, version in near]
        found = sorted((one for one in found if one[0].kind != "none"), key=lambda one: _fit(*one))
        return [self._origin(version, kin) for kin, version in found], len(near)

    def _stacked(self) -> Origin | None:
        """What layers of several versions explain, bit for bit."""
        by_digest = {version.digest: version for version in self.whole}
        found = stacked(self.named, {digest: self.manifests[digest] for digest in by_digest})
        if found is None:
            return None
        versions = tuple(by_digest[digest] for digest in found.versions)
        told = found.told({version.digest: version.name for version in versions})
        return Origin(versions, "merge", 0.0, self._shared(versions[0]), f"{told}, bit for bit")

    def _merges(self, pieces: Pieces) -> list[Origin]:
        """What two versions, or a base and an adapter, explain to within rounding."""
        near = {v.digest: v for v in self.whole if pieces.distance(v.digest) < kinship.UNRELATED}
        merges: list[tuple[float, Origin]] = []

        def note(kind: str, versions: tuple[Version, ...], merged: Merged | None, more: str = "") -> None:
            if merged is not None:
                told = merged.told % tuple(str(version) for version in versions[:2])
                said = f"{told}{more}, to within {merged.steps:.2g} steps of its dtype"
                merges.append((merged.steps, Origin(versions, kind, 0.0, self._shared(versions[0]), said)))

        for adapter in self.adapters:
            base = None if adapter.base is None else near.get(adapter.base)
            if base is not None:
                sources = self._stored(base), self._stored(adapter)
                note("fuse", (base, adapter), kinship_merges.as_fused(*sources, self._config(adapter), self.model))
        for some in pieces.adding_up(list(near), 2)[:MOST_TRIED] if not merges else ():
            a, b = (near[digest] for digest in some)
            note("merge", (a, b), kinship_merges.as_merge(self._stored(a), self._stored(b), self.model))
        for some in pieces.adding_up(list(near), 3)[:MOST_TRIED] if not merges else ():
            base, a, b = (near[digest] for digest in some)
            three = self._stored(base), self._stored(a), self._stored(b)
            note("merge", (a, b, base), kinship_merges.as_task_merge(*three, self.model), f", {base} the base")
        order = sorted(merges, key=lambda one: (round(one[0], 1), [version.number for version in one[1].versions]))
        return [origin for _, origin in order]

    def _origin(self, version: Version, kin: Kinship) -> Origin:
        return Origin((version,), kin.kind, kin.distance, self._shared(version), kin.evidence)

    def _shared(self, version: Version) -> float:
        """The fraction of the model's tensors that a version has, under whatever name."""
        held = {tensor.digest for tensor in self.manifests[version.digest].tensors()}
        return sum(digest in held for digest in self.named.values()) / max(len(self.named), 1)

    def _alike(self, version: Version) -> bool:
        """Whether a version has tensors of the same names within their layers, so that parts of it may be left."""
        held = {within(tensor.name) for tensor in self.manifests[version.digest].tensors()}
        ours = {within(name.removesuffix("_packed")) for name in self.model.names()}
        return len(held & ours) * 2 > len(ours)

    def _stored(self, version: Version) -> StoredTensors:
        return StoredTensors(self.manifests[version.digest], self.registry.store)

    def _config(self, version: Version) -> dict[str, Any]:
        file = self.manifests[version.digest].file("adapter_config.json")
        parsed: Any = json.loads(self.registry.store.read_bytes(file.digest)) if file else {}
        return parsed if isinstance(parsed, dict) else {}


def _parent(near: Sequence[Origin]) -> Origin:
    """Which of the versions that a model is near to it was trained from, as far as distances can tell.

    The nearest; but trainings from one base on alike data go one way, the gentle one less far, so an older version that
    is hardly farther away, and shares as much, is the likelier one.
    """
    chosen = near[0]
    while True:
        older = [
            origin
            for origin in near
            if origin.versions[0].number < chosen.versions[0].number
            and origin.distance * NEARER < chosen.distance
            and origin.shared >= chosen.shared
        ]
        if not older:
            break
        chosen = min(older, key=lambda origin: origin.distance)
    if chosen is near[0]:
        return chosen
    nearest = (
        f"{near[0].versions[0]} is nearer ({near[0].distance:.2g}), but not by as much as what was trained from it"
    )
    return replace(chosen, evidence=f"{chosen.evidence}; {nearest}")


def _likelihood(origin: Origin) -> tuple[bool, float, float, int]:
    """What explains all of a model comes before what is merely near; of equals what shares most, then the oldest."""
    return (origin.kind not in EXACT, origin.distance, -origin.shared, origin.versions[0].number)


def _fit(kin: Kinship, version: Version) -> tuple[float, float, int]:
    return (kin.misfit, kin.distance, version.number)
