"""What the tensors of a new version may be like: guesses to store them against, the best first.

A transform that can say what it does element by element is asked (`Transform.predict`); otherwise a tensor is held
against the one of the same name in each model that it was made from. A guess is only tried, so a wrong one costs a
moment. What gives none is stored by itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mreg.registry.models.folder import FolderListing
from mreg.registry.models.manifest import Manifest, TensorEntry
from mreg.registry.store.prediction import Prediction

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import TensorSource
    from mreg.registry.proof.claim import Made
    from mreg.registry.registry import Registry
    from mreg.registry.versions import Version

_MODELS = 3
"""The models that a tensor is held against at most."""


@dataclass(frozen=True)
class Guesses:
    """By the name of an output's tensor; one that two files use is prefixed with the file's path and a colon."""

    like: Sequence[Mapping[str, TensorEntry]] = ()
    predicted: Mapping[str, Sequence[Prediction]] = field(default_factory=dict)

    def of(self, file: str, name: str, dtype: str, shape: tuple[int, ...]) -> list[Prediction]:
        """The guesses for a tensor."""
        found = list(self.predicted.get(name) or self.predicted.get(f"{file}:{name}") or ())
        for model in self.like:
            entry = model.get(name) or model.get(f"{file}:{name}")
            if entry is not None and (entry.dtype, entry.shape) == (dtype, shape):
                found.append(Prediction("same", (entry.digest,)))
        return found


NOTHING = Guesses()


@dataclass(frozen=True)
class Done:
    """A step that was done: what is known of it besides its output."""

    transform: str
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    inputs: Sequence[tuple[str, Version]]
    seed: int | None = None


def of_step(registry: Registry, done: Done, output: TensorSource | FolderListing) -> Guesses:
    """Guesses for what a step left as `output`. Never fails: what cannot be predicted is said, and stored without."""
    given = [(role, version, registry.manifest(version)) for role, version in done.inputs]
    like = [_named(manifest) for _, _, manifest in given][:_MODELS]
    try:
        predicted = _predicted(registry, done, given, output)
    except Exception as error:  # hours of work are not thrown away for a few bytes
        registry.log.notify(f"what {done.transform} gives could not be predicted, so it takes more room ({error})")
        predicted = {}
    return Guesses(like, predicted)


def _predicted(
    registry: Registry,
    done: Done,
    inputs: Sequence[tuple[str, Version, Manifest]],
    output: TensorSource | FolderListing,
) -> dict[str, list[Prediction]]:
    from mreg.registry.transform import UnknownTransform

    try:
        known = registry.engine.find(done.transform)
    except UnknownTransform:
        return {}
    if known.predict is None:
        return {}
    # Needed by no one who records what mreg has no transform for.
    from pydantic import ValidationError

    try:
        complete = known.params.model_validate(dict(done.params))
    except ValidationError:
        return {}
    found: dict[str, list[Prediction]] = {}
    made = _made(registry, done, complete.model_dump(mode="json"), inputs, output)
    for name, prediction in known.predict(complete, made):
        found.setdefault(name, []).append(prediction)
    return found


def _made(
    registry: Registry,
    done: Done,
    params: Mapping[str, Any],
    inputs: Sequence[tuple[str, Version, Manifest]],
    output: TensorSource | FolderListing,
) -> Made:
    from mreg.registry.models.weight_sources import FolderTensors, StoredTensors
    from mreg.registry.proof.claim import Made

    sources: dict[str, tuple[TensorSource, ...]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for role, version, manifest in inputs:
        sources[role] = (*sources.get(role, ()), StoredTensors(manifest, registry.store))
        file = manifest.file("adapter_config.json")
        if version.adapter and file is not None:
            configs[role] = json.loads(registry.store.read_bytes(file.digest))
    made = FolderTensors(output) if isinstance(output, FolderListing) else output
    return Made(done.transform, params, done.facts, sources, configs, made, config={}, is_adapter=False, seed=done.seed)


def _named(manifest: Manifest) -> Mapping[str, TensorEntry]:
    entries = [(file.path, tensor) for file in manifest.files for tensor in file.tensors]
    uses = Counter(tensor.name for _, tensor in entries)
    return {(tensor.name if uses[tensor.name] == 1 else f"{path}:{tensor.name}"): tensor for path, tensor in entries}
