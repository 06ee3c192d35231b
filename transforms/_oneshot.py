"""Pruning by what goes through a model: Wanda and SparseGPT as llmcompressor has them, decoder layer by decoder layer.

Its results are those of the papers' own code: every layer is measured on what comes out of the pruned layers before it.
As there, Wanda rounds down how many weights of an output go, and SparseGPT takes one more than asked of each block of
columns that it decides on together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.transform import Job, Progress, Report
from mreg.transforms._activations import load
from mreg.transforms._layers import LAYER
from mreg.transforms._llmcompressor import NotCalibrated, kept_on
from mreg.transforms._sparse import Pattern

if TYPE_CHECKING:
    import torch


def in_layers(names: Sequence[str]) -> tuple[str, ...]:
    """Those modules that are part of a numbered layer: the ones that are measured and pruned."""
    return tuple(name for name in names if LAYER.search(f"{name}."))


def prune_by_samples(
    job: Job,
    config: Mapping[str, Any],
    samples: Sequence[Sequence[int]],
    report: Report,
    *,
    method: str,
    names: Sequence[str],
    sparsity: float,
    pattern: Pattern | None,
    block_size: int,
    dampening_frac: float,
) -> dict[str, torch.Tensor]:
    """The weights of the modules in `names`, pruned, in float32; nothing else of the model changes.

    `wanda` (Sun et al. 2023) takes the smallest |W|·‖x‖₂ of every output; `sparsegpt` (Frantar and Alistarh 2023) those
    whose loss costs least by the inverse of XXᵀ + dampening_frac·mean(diag), and updates what is left. Raises
    NotCalibrated.
    """
    import datasets
    from llmcompressor.entrypoints.oneshot import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
    from loguru import logger

    datasets.disable_caching()
    model = load(job.path("source"), config, job.device)
    modules = dict(model.named_modules())
    kinds = sorted({type(modules[layer_of(name)]).__name__ for name in names})
    chosen = {f"{name}.weight": modules[name] for name in names}
    options: dict[str, Any] = {
        "sparsity": sparsity,
        # The library counts what is dropped.
        "mask_structure": f"{pattern.group - pattern.keep}:{pattern.group}" if pattern else "0:0",
        "targets": kinds,
        "ignore": [name for name in modules if name not in names],
    }
    if method == "wanda":
        recipe: Any = WandaPruningModifier(**options)
    else:
        recipe = SparseGPTModifier(**options, block_size=block_size, dampening_frac=dampening_frac)
    done: list[str] = []
    failed: list[str] = []

    def listen(message: Any) -> None:
        told = str(message.record["message"])
        if told.startswith("Sparsifying "):
            done.append(told.split()[1])
            report(Progress(len(done), len(names), done[-1]))
        elif told.startswith("Failed to invert hessian"):
            failed.append(done[-1])

    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples]
    listening = logger.add(listen, level="INFO", format="{message}", catch=False)
    try:
        with kept_on(job.device):
            oneshot(
                model=model,
                dataset=datasets.Dataset.from_list(rows),
                recipe=recipe,
                batch_size=1,
                num_calibration_samples=len(rows),
                max_seq_length=max(map(len, samples)),
                shuffle_calibration_samples=False,
                sequential_targets=kinds,
            )
    finally:
        logger.remove(listening)
    if failed:
        raise NotCalibrated(
            f"what goes into {failed[0]} cannot be inverted", fix="give more samples, or raise --dampening-frac"
        )
    if left := sorted({*names} - {*done}):
        raise NotCalibrated(f"no sample went through {left[0]}", fix="give more samples, or ignore it")
    return {name: module.weight.detach().cpu() for name, module in chosen.items()}


def layer_of(module: str) -> str:
    """The layer that a module is part of: `model.layers.3` for `model.layers.3.mlp.up_proj`."""
    found = LAYER.search(f"{module}.")
    assert found is not None, module
    return module[: found.end(1)]
