"""Set the smallest weights of every linear layer to zero."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mreg.registry.transform import Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._architecture import linear_layers
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite
from pydantic import Field

if TYPE_CHECKING:
    import torch


class PruneParams(Params):
    """The options of `prune`."""

    method: Literal["magnitude"] = "magnitude"
    """How a weight's importance is judged: by its absolute value."""

    sparsity: float = Field(ge=0, lt=1)
    """The fraction of each matrix that becomes zero."""

    scope: Literal["per-tensor"] = "per-tensor"
    """Where weights compete with each other: within one matrix."""

    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers to leave alone: module names, or `re:` and a regular expression."""


def check(params: PruneParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse an adapter and a quantized model."""
    del params, rows
    _check.complete_model(materials[0], "pruned")


def run(job: Job, params: PruneParams, report: Report) -> Facts:
    """Magnitude pruning (Han et al. 2015), as `torch.nn.utils.prune.l1_unstructured`; the first of equal weights go."""
    zeros = pruned = total = 0

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        nonlocal zeros, pruned, total
        tensor = source.tensor(slot.name)
        total += slot.elements
        if slot.name in matrices:
            tensor = without_smallest(tensor, round(params.sparsity * slot.elements))
            zeros += int((tensor == 0).sum())
            pruned += slot.elements
        yield tensor

    with ModelFolder(job.path("source")) as source:
        matrices = linear_layers(source, params.ignore).weights
        left_out = copy_rest(source.path, job.output)
        rewrite(source, job.output, lambda slot: [slot], make, report)
    return {
        "matrices": len(matrices),
        "parameters": total,
        "zeros": zeros,
        "sparsity": zeros / pruned,
        "model_sparsity": zeros / total,
        "left_out": left_out,
    }


def without_smallest(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A copy in which the `count` elements of smallest magnitude are zero; of equal ones, those that come first."""
    import torch

    if count == 0:
        return tensor
    sizes = tensor.abs().reshape(-1)
    threshold = torch.kthvalue(sizes, count).values
    smaller = sizes < threshold
    equal = (sizes == threshold).nonzero().reshape(-1)[: count - int(smaller.sum())]
    smaller[equal] = True
    return tensor.masked_fill(smaller.reshape(tensor.shape), 0)


TRANSFORM = Transform(
    params=PruneParams,
    inputs=(Input("source", "the model to prune"),),
    determinism="exact",
    version=1,
    run=run,
    check=check,
)
