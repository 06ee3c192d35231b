"""Combine models of one shape into their weighted mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._folder import FLOATS, ModelFolder, Slot, copy_rest, rewrite

if TYPE_CHECKING:
    import torch

# With equal tensor shapes, these still say that two models compute different things.
SAME = ("model_type", "architectures", "num_attention_heads", "num_key_value_heads", "hidden_act")


class MergeParams(Params):
    """The options of `merge`."""

    method: Literal["linear"] = "linear"
    """How the weights are combined: `linear` is the weighted mean (Wortsman et al. 2022)."""

    weights: tuple[float, ...] = ()
    """One weight for the source and one for each other model, in the order given; all equal unless said."""

    normalize: bool = True
    """Divide the weights by their sum."""


def check(params: MergeParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse parents that differ in architecture, tensors or vocabulary, and weights that do not fit them."""
    del rows
    for material in materials:
        _check.complete_model(material, "merged")
    shares(params, len(materials))
    first = materials[0]
    for other in materials[1:]:
        for key in SAME:
            if first.config.get(key) != other.config.get(key):
                said = f"{key} is {first.config.get(key)} in {first.name} and {other.config.get(key)} in {other.name}"
                raise Refused(said, fix="merge versions that have a common ancestor")
        _check.same_tensors(first, other, fix="merge versions whose tensors have the same names and shapes")
        _check.same_vocabulary(first, other, fix="merge models that share one tokenizer")


def run(job: Job, params: MergeParams, report: Report) -> Facts:
    """Sum `weight * tensor` in float32, parent by parent, and round once to the dtype of the source."""
    folders = [job.path("source"), *job.paths("others")]
    weights = shares(params, len(folders))

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = parents[0].tensor(slot.name)
        if slot.dtype in FLOATS:
            yield linear([parent.tensor(slot.name) for parent in parents], weights).to(tensor.dtype)
        else:
            yield tensor

    with ExitStack() as stack:
        parents = [stack.enter_context(ModelFolder(folder)) for folder in folders]
        left_out = copy_rest(folders[0], job.output)
        rewrite(parents[0], job.output, lambda slot: [slot], make, report)
        return {"weights": weights, "tensors": len(parents[0].slots), "left_out": left_out}


def shares(params: MergeParams, parents: int) -> list[float]:
    """The weight of each parent. Raises BadParams where there are not as many, or they cannot be normalized."""
    if parents < 2:
        raise BadParams("a merge needs two models or more", fix="name the others with `--with`")
    weights = list(params.weights or [1.0] * parents)
    if len(weights) != parents:
        raise BadParams(f"{len(weights)} weights for {parents} models", fix="give one for the source, then one a model")
    if not params.normalize:
        return weights
    if sum(weights) == 0:
        raise BadParams(
            "weights that sum to 0 cannot be normalized", fix="give other weights, or switch `normalize` off"
        )
    return [weight / sum(weights) for weight in weights]


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum in float32. Law: products and sums are rounded one by one in order, so the bits are the same
    on every machine, which a fused multiply-add would not give."""
    import torch

    total = torch.zeros(tensors[0].shape, dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        product = tensor.to(torch.float32) * weight
        total = total + product
    return total


TRANSFORM = Transform(
    params=MergeParams,
    inputs=(Input("source", "the model whose files and dtype the result has"), Input("others", "the rest", many=True)),
    determinism="exact",
    version=1,
    run=run,
    check=check,
)
