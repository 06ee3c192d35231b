"""Models to measure on: real safetensors folders of a given size, with weights that do not compress to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

COLUMNS = 1024


def make(folder: Path, *, megabytes: int, shard_mb: int = 1024, tensor_mb: int = 2, seed: int = 0) -> Path:
    """A folder of bf16 tensors of `tensor_mb` each, in shards of at most `shard_mb`, with index and config."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = tensor_mb * 2**20 // (2 * COLUMNS)
    names = [f"model.layers.{place}.weight" for place in range(megabytes // tensor_mb)]
    per_shard = max(1, shard_mb // tensor_mb)
    shards = [names[start : start + per_shard] for start in range(0, len(names), per_shard)]
    where = {}
    for number, inside in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        made = {name: random.normal(0, 0.02, (rows, COLUMNS)).astype(ml_dtypes.bfloat16) for name in inside}
        save_file(made, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(inside, file))
    index = {"metadata": {"total_size": megabytes * 2**20}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    return folder


def vary(source: Path, folder: Path, *, changed: float, seed: int) -> Path:
    """A copy of a folder in which this fraction of the tensors, spread over all of them, has other values."""
    from safetensors.numpy import load_file

    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
            continue
        tensors = load_file(path)
        for place, name in enumerate(sorted(tensors)):
            if place % round(1 / changed) == 0:
                noise = random.normal(0, 0.001, tensors[name].shape)
                tensors[name] = (tensors[name].astype(np.float32) + noise).astype(ml_dtypes.bfloat16)
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    return folder
