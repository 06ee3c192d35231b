"""Heritage of every version of a chain that was really trained: its parent and its kind, given only its folder."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mreg.registry import Registry
from mreg.registry.proof.heritage import Heritage, Origin
from mreg.transforms._engine import LocalEngine

from tests import tiny
from tests.transforms.conftest import make_job

Weights = dict[str, torch.Tensor]
Work = Callable[..., Path]
LAYERS, STEPS, LENGTH = 3, 15, 32

TOLD = {
    "sft-1e-5": (["base"], "finetune"),
    "sft-5e-5": (["base"], "finetune"),
    "sft-4e-4": (["base"], "finetune"),
    "rl-like": (["sft-5e-5"], "finetune"),
    "adapter": (["base"], "adapter"),
    "fused": (["base", "adapter"], "fuse"),
    "last-layer": (["sft-4e-4"], "finetune"),
    "rank-one": (["sft-1e-5"], "edit"),
    "pruned": (["sft-5e-5"], "prune"),
    "int8": (["sft-4e-4"], "quantize"),
    "int8-by-row": (["last-layer"], "quantize"),
    "mean": (["sft-1e-5", "sft-4e-4"], "merge"),
    "rolled-back": (["base"], "identical"),
    "resharded": (["sft-4e-4"], "same-weights"),
    "cast": (["sft-5e-5"], "cast"),
    "arc": (["sft-5e-5", "sft-4e-4"], "merge"),
    "ties": (["sft-5e-5", "sft-4e-4", "base"], "merge"),
    "fewer-channels": (["sft-4e-4"], "prune"),
    "fewer-layers": (["sft-1e-5"], "prune"),
    "stack": (["base", "sft-4e-4"], "merge"),
    "gguf": (["sft-5e-5"], "quantize"),
}
"""Each version but the base, held against those before it: the versions it came from, and how."""

KEPT = ("sft-1e-5", "sft-5e-5", "sft-4e-4", "rl-like", "adapter", "fused", "last-layer", "rank-one", "pruned", "mean",
        "cast", "ties")  # fmt: skip
"""Those that are imported, so that what comes after them is held against them too."""


def train(
    folder: Path, source: Path, rate: float, steps: int, seed: int, only: Callable[[str], bool] = lambda name: True
) -> Path:
    """Real steps of AdamW in float32, rounded to the dtype of the source."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = only(name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    text = torch.tensor([each % 250 for each in tiny.TEXT.encode()])
    chosen = np.random.default_rng(seed)
    for _ in range(steps):
        rows = torch.stack([text[at : at + LENGTH] for at in chosen.integers(0, len(text) - LENGTH, 8)])
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before, trained = load_file(source / "model.safetensors"), model.state_dict()
    after = {name: trained[name].to(tensor.dtype).contiguous() for name, tensor in before.items()}
    save_file(after, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def change(folder: Path, source: Path, edit: Callable[[Weights], Weights]) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    save_file(edit(load_file(source / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rank_one(weights: Weights) -> Weights:
    name = "model.layers.1.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(3)
    rows, columns = weights[name].shape
    u, v = torch.randn(rows, 1, generator=generator), torch.randn(1, columns, generator=generator)
    return {**weights, name: (weights[name].float() + 0.02 * u @ v).to(weights[name].dtype)}


def reshard(folder: Path, source: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(source / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002": names[::2], "model-00002-of-00002": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / f"{shard}.safetensors", metadata={"format": "pt"})
    where = {name: f"{shard}.safetensors" for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.fixture
def work(engine: LocalEngine, tmp_path: Path) -> Work:
    """`work("prune", folder, sparsity=0.5)` in this process: the output."""
    numbers = itertools.count()

    def run(name: str, source: Path, *, more: dict[str, Path | list[Path]] | None = None, **params: Any) -> Path:
        job = make_job(engine, tmp_path / str(next(numbers)), name, source, more or {}, tmp_path, None, params)
        job.output.mkdir()
        torch.manual_seed(job.seed)
        transform = engine.find(name)
        transform.run(job, transform.params.model_validate(job.params), lambda progress: None)
        return job.output

    return run


def make_chain(root: Path, work: Work) -> dict[str, Path]:
    torch.set_num_threads(1)
    random = tiny.make_model(root / "random", layers=LAYERS, tied=False, hidden_size=64)
    base = train(root / "base", random, 3e-3, 30, seed=0)
    made = {"base": base}
    for name, rate in (("sft-1e-5", 1e-5), ("sft-5e-5", 5e-5), ("sft-4e-4", 4e-4)):
        made[name] = train(root / name, base, rate, STEPS, seed=1)
    gentle, middle, strong = (made[name] for name in ("sft-1e-5", "sft-5e-5", "sft-4e-4"))
    made["rl-like"] = train(root / "rl-like", middle, 1e-6, 8, seed=2)
    made["adapter"] = work("extract", strong, more={"base": base}, rank=4)
    made["fused"] = work("fuse", made["adapter"], more={"base": base})
    is_last = lambda name: f"layers.{LAYERS - 1}." in name or "lm_head" in name  # noqa: E731  one line is enough
    made["last-layer"] = train(root / "last-layer", strong, 1e-4, 5, seed=3, only=is_last)
    made["rank-one"] = change(root / "rank-one", gentle, rank_one)
    made["pruned"] = work("prune", middle, sparsity=0.5)
    made["int8"] = work("quantize", strong, method="int8", group_size=-1)
    made["int8-by-row"] = work("quantize", made["last-layer"], method="dynamic-int8")
    made["mean"] = work("merge", gentle, more={"others": strong}, weights=[0.5, 0.5])
    made["rolled-back"] = shutil.copytree(base, root / "rolled-back")
    made["resharded"] = reshard(root / "resharded", strong)
    made["cast"] = work("cast", middle, dtype="float32")
    made["arc"] = work("merge", middle, more={"others": strong}, method="slerp", t=0.3)
    others: dict[str, Any] = {"others": strong, "base": base}
    made["ties"] = work("merge", middle, more=others, method="ties", density=[0.5])
    made["fewer-channels"] = work("prune", strong, method="structured", structure="channels", sparsity=0.25)
    made["fewer-layers"] = work("prune", gentle, method="structured", structure="layers", sparsity=0.25)
    stacked = {"method": "passthrough", "slices": ["0:0-2", "1:1-3"]}
    made["stack"] = work("merge", base, more={"others": strong}, **stacked)
    made["gguf"] = work("quantize", middle, method="gguf", gguf_type="Q8_0")
    return made


def test_every_version_of_a_chain_is_told_its_parent_and_its_kind(work: Work, tmp_path: Path):
    pytest.importorskip("gguf")
    chain = make_chain(tmp_path, work)
    registry = Registry.init(tmp_path / "registry")
    registry.import_model(chain["base"], ref="base")
    found: dict[str, Heritage] = {}
    for name in TOLD:
        found[name] = registry.heritage(chain[name])
        if name in KEPT:
            registry.import_model(chain[name], ref=name, base="base" if name == "adapter" else None)
    names = {version.name: ref for ref, version in registry.refs().items()}

    def told(origin: Origin) -> tuple[list[str], str]:
        return [names[version.name] for version in origin.versions], origin.kind

    assert TOLD == {name: told(heritage.origins[0]) for name, heritage in found.items()}
