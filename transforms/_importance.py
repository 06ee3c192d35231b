"""How much each part of a model matters, by its weights or by what it does on samples: the lowest go first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mreg.registry.transform import Job, Report
from mreg.transforms._activations import load, observe, read_samples
from mreg.transforms._folder import FLOATS, ModelFolder, Slot
from mreg.transforms._layers import LAYER
from mreg.transforms._structured import TRANSPOSED, Plan

if TYPE_CHECKING:
    import torch

BITS = 62
"""What a whole number of 64 bits holds besides its sign, less one for rounding up."""


def by_weights(source: ModelFolder, plan: Plan) -> dict[int, torch.Tensor]:
    """By layer, the squared norm of all the weights of each part together (Fang et al. 2023).

    One score a layer where the parts are the layers. Law: the same on every machine. Squares are rounded to multiples
    of one power of two for the whole model, so that sums are of whole numbers, which no order changes.
    """
    import torch

    members: dict[int, list[tuple[Slot, int | None]]] = {layer: [] for layer in range(plan.layers)}
    for slot in source.slots.values():
        found = LAYER.search(slot.name)
        if found is None or slot.dtype not in FLOATS:
            continue
        inside = slot.name[found.end() :]
        if plan.cut is None:
            # Gains of norms are all near one, whatever their layer does.
            members[int(found[1])] += [(slot, None)] if len(slot.shape) > 1 else []
        elif inside in plan.cut.tensors:
            members[int(found[1])].append((slot, plan.cut.tensors[inside]))
    scale = _scale(source, members, plan.parts if plan.cut else 1)
    return {
        layer: torch.stack([_squares(source, slot, dimension, plan.parts, scale) for slot, dimension in slots]).sum(0)
        for layer, slots in members.items()
    }


def by_samples(
    job: Job, source: ModelFolder, plan: Plan, report: Report, *, count: int, longest: int
) -> tuple[dict[int, torch.Tensor], int]:
    """By layer, the score of each part on the first `count` rows of the data, and the number of tokens.

    Of heads and channels the root of Σ‖x_j‖²·‖W_j‖² over what the part puts out (x_j) and the weights that read it:
    Wanda's score of all those weights together. Of layers the block influence (Men et al. 2024).
    """
    import torch

    model = load(source.path, source.config, job.device)
    names = [name for name, _ in model.named_modules()]
    within = {name: found for name in names if (found := LAYER.search(f"{name}."))}
    layers = {name: int(found[1]) for name, found in within.items() if found.end() == len(name) + 1}
    reader = plan.cut.reader if plan.cut else None
    readers = {name: int(found[1]) for name, found in within.items() if name[found.end() :] == reader}
    samples = read_samples(job, count, longest, source.config)
    seen = observe(model, samples, report, modules=list(readers), layers=list(layers) if plan.cut is None else [])
    if plan.cut is None:
        return {number: torch.tensor([seen.changes[name]]) for name, number in layers.items()}, seen.tokens
    modules = dict(model.named_modules())
    scores = {}
    for name, number in readers.items():
        weight = modules[name].weight.detach().cpu().double()
        read = weight if source.config.get("model_type") in TRANSPOSED else weight.T
        scores[number] = (seen.inputs[name] * read.square().sum(1)).reshape(plan.parts, -1).sum(1).sqrt()
    return scores, seen.tokens


def _scale(source: ModelFolder, members: Mapping[int, Sequence[tuple[Slot, int | None]]], parts: int) -> float:
    """The power of two by which squares are multiplied so that no sum over a part overflows."""
    elements = max(sum(slot.elements for slot, _ in slots) for slots in members.values()) // parts
    largest = max(float(source.tensor(slot.name).abs().max()) for slots in members.values() for slot, _ in slots)
    return math.ldexp(1.0, BITS - elements.bit_length() - max(-900, math.frexp(largest**2)[1]))


def _squares(source: ModelFolder, slot: Slot, dimension: int | None, parts: int, scale: float) -> torch.Tensor:
    import torch

    tensor = source.tensor(slot.name).double()
    whole = (tensor * tensor * scale).round().to(torch.int64)
    if dimension is None:
        return whole.sum().reshape(1)
    return whole.movedim(dimension, 0).reshape(parts, -1).sum(1)
