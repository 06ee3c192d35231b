"""Tensors large enough to be encoded, stored by hand as residuals of one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mreg.registry.digests import Digest
from mreg.registry.store.objects import ObjectStore
from mreg.registry.store.prediction import Prediction
from mreg.registry.store.spans import Held

from tests.strategies import MadeTensor, safetensors, write_folder

SHAPE = (64, 64)


def weights(seed: int, *, steps: int = 0) -> np.ndarray:
    """Weights as they are trained, in float32, and a few training steps later."""
    made = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) * np.float32(0.02)
    for step in range(steps):
        noise = np.random.default_rng([seed, step]).standard_normal(SHAPE).astype(np.float32)
        made = made + np.float32(1e-6) * noise
    return made


def model_of(folder: Path, *tensors: np.ndarray) -> Path:
    """A folder that imports as a model with these tensors."""
    made = [
        MadeTensor(f"model.layers.{place}.weight", "F32", tensor.shape, tensor.tobytes())
        for place, tensor in enumerate(tensors)
    ]
    config = b'{"model_type": "llama"}\n'
    return write_folder(folder, {"config.json": config, "model.safetensors": safetensors(made, {"format": "pt"})})


def put(store: ObjectStore, tensor: np.ndarray, *like: Digest, small: bool = True) -> Digest:
    """Store a tensor, against others where that pays."""
    predictions = [Prediction("same", (digest,)) for digest in like]
    with store.batch() as batch:
        return batch.put_tensor("F32", tensor.shape, Held(tensor.tobytes()), small=small, predictions=predictions)
