"""Add a little noise to every weight: a transform as another package would bring it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mreg.registry.transform import Facts, Input, Job, Params, Report, Transform
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite
from pydantic import Field

if TYPE_CHECKING:
    import torch


class JitterParams(Params):
    """The options of `jitter`."""

    scale: float = Field(0.01, ge=0)
    """The standard deviation of the noise."""


def run(job: Job, params: JitterParams, report: Report) -> Facts:
    """Add normal noise, drawn from the seed of the job."""
    import torch

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = source.tensor(slot.name)
        yield tensor + (params.scale * torch.randn(tensor.shape)).to(tensor.dtype)

    with ModelFolder(job.path("source")) as source:
        copy_rest(source.path, job.output)
        rewrite(source, job.output, lambda slot: [slot], make, report)
    return {"seed": job.seed}


TRANSFORM = Transform(
    params=JitterParams,
    inputs=(Input("source", "the model to disturb"),),
    determinism="same-machine",
    version=1,
    run=run,
)
