"""Fine-tuning on facts that moves no weight further than it may (constrained fine-tuning, Zhu et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.transform import Progress, Report
from mreg.transforms._answers import Speaker, padded, spell
from mreg.transforms._editing import LOW_ENOUGH, NotEdited
from mreg.transforms._facts import Fact
from mreg.transforms._mlp import Memory

if TYPE_CHECKING:
    import torch

Curve = list[tuple[int, float]]


def fine_tune(
    speaker: Speaker,
    facts: Sequence[Fact],
    memories: Sequence[Memory],
    learning_rate: float,
    num_steps: int,
    norm_constraint: float,
    report: Report,
) -> tuple[dict[str, torch.Tensor], Curve]:
    """The change of each tensor as the files have it, and the loss at each step; the model is changed.

    Minimizes `-log P(target)`, the mean over all facts, by Adam, and after every step puts each weight back to within
    `norm_constraint` of what it was: `‖W' - W‖∞ ≤ norm_constraint`.
    """
    import torch

    spelled = [spell(speaker.tokenizer, fact.prompt, fact.target) for fact in facts]
    batch = padded(speaker, [each.ids for each in spelled])
    labels = batch["input_ids"].clone()
    for row, each in enumerate(spelled):
        labels[row, : each.start] = -100
        labels[row, len(each.ids) :] = -100
    counts = (labels != -100).sum(1)

    parameters = [speaker.model.get_submodule(each.module).weight for each in memories]
    first = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    curve: Curve = []
    for step in range(1, num_steps + 1):
        logits = speaker.model(**batch).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none").sum(1)
        loss: Any = (losses / counts).mean()
        curve.append((step, round(loss.item(), 6)))
        report(Progress(step, num_steps, f"loss {curve[-1][1]:.3f}"))
        if not loss.isfinite():
            raise NotEdited(f"the loss is no number at step {step}", fix="lower --learning-rate")
        if curve[-1][1] < LOW_ENOUGH:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, was in zip(parameters, first, strict=True):
                parameter.copy_(was + (parameter - was).clamp(-norm_constraint, norm_constraint))
    for parameter in parameters:
        parameter.requires_grad_(False)
    moved = {
        each.tensor: parameter.detach() - was for each, parameter, was in zip(memories, parameters, first, strict=True)
    }
    return moved, curve


def within(before: torch.Tensor, after: torch.Tensor, limit: float) -> torch.Tensor:
    """`after` rounded to the dtype of `before`; where that leaves the limit, to the next number towards `before`."""
    import torch

    rounded = after.to(before.dtype)
    too_far = (rounded.double() - before.double()).abs() > limit
    return torch.where(too_far, torch.nextafter(rounded, before), rounded)
