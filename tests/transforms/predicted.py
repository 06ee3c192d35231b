"""Runs held against what their transforms predict of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mreg.registry.digests import Digest
from mreg.registry.models.weight_sources import FolderTensors
from mreg.registry.models.weights import Array, Tensor
from mreg.registry.proof.claim import Made
from mreg.registry.store.prediction import Prediction, predict
from mreg.registry.transform import Transform
from mreg.transforms._predicting import digest_of


class Held:
    """A tensor in memory, as one that is stored."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype, self.shape = tensor.dtype, tensor.shape
        self._elements = tensor.array().reshape(-1)

    def read(self, start: int, stop: int) -> Array:
        assert 0 <= start <= stop <= len(self._elements)
        return self._elements[start:stop]


@dataclass(frozen=True)
class Outcome:
    """The predictions of a run, the best first, and of each the share of elements that it gets wrong."""

    predictions: dict[str, list[Prediction]]
    wrong: dict[str, list[float]]

    def worst(self, place: int = 0) -> float:
        """The largest share among the guesses of this place."""
        return max(shares[place] for shares in self.wrong.values() if place < len(shares))

    def operations(self) -> set[str]:
        return {one.operation for each in self.predictions.values() for one in each}


def outcome_of(
    transform: Transform[Any],
    params: Mapping[str, Any],
    facts: Mapping[str, Any],
    inputs: Mapping[str, list[Path]],
    output: Path,
    *,
    seed: int | None = 7,
) -> Outcome:
    """What `transform` predicts of `output`, computed from the files of its inputs and compared bit for bit."""
    complete = transform.params.model_validate(dict(params))
    sources = {role: tuple(FolderTensors(path) for path in paths) for role, paths in inputs.items()}
    configs = {
        role: json.loads((paths[0] / "adapter_config.json").read_text())
        for role, paths in inputs.items()
        if (paths[0] / "adapter_config.json").exists()
    }
    after = FolderTensors(output)
    stored: dict[Digest, Tensor] = {
        digest_of(one, name): one.tensor(name)
        for one in (*(source for role in sources.values() for source in role), after)
        for name in one.names()
    }
    told = complete.model_dump(mode="json")
    made = Made(transform.name, told, facts, sources, configs, after, config={}, is_adapter=False, seed=seed)
    assert transform.predict is not None
    outcome = Outcome({}, {})
    for name, prediction in transform.predict(complete, made):
        # Params are stored as JSON.
        kept = Prediction(prediction.operation, prediction.inputs, json.loads(json.dumps(prediction.params)))
        outcome.predictions.setdefault(name, []).append(kept)
        outcome.wrong.setdefault(name, []).append(wrong(kept, stored, after.tensor(name)))
    return outcome


def wrong(prediction: Prediction, stored: Mapping[Digest, Tensor], after: Tensor) -> float:
    """The share of elements that a prediction gets wrong."""
    inputs = [Held(stored[digest]) for digest in prediction.inputs]
    actual = after.array().reshape(-1)
    guess = predict(prediction.operation, prediction.params, inputs, after.dtype, after.shape, 0, len(actual))
    unsigned = f"u{actual.dtype.itemsize}"
    assert (actual.dtype, actual.shape) == (guess.dtype, guess.shape)
    return float(np.mean(actual.view(unsigned) != guess.view(unsigned))) if len(actual) else 0.0
