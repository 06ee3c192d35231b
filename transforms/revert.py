"""Take one step's effect out of a later version, exactly: what it changed becomes what it was before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mreg.registry.chains import reversion
from mreg.registry.chains.recipe import Step
from mreg.registry.chains.reversion import Content
from mreg.registry.transform import Facts, Input, Job, Params, Progress, Report, Transform
from mreg.transforms._contents import content_of
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite

if TYPE_CHECKING:
    import torch


class RevertParams(Params):
    """The options of `revert`."""

    version: str
    """The version whose step is taken out, by its digest or 6 digits of it or more; `mreg revert` takes any name."""


def run(job: Job, params: RevertParams, report: Report) -> Facts:  # noqa: ARG001  said in the inputs
    """Put back what the step changed; what it did not change stays byte for byte. Raises NotExact.

    Where the source is what the step made, the version before it comes out, files, shards, headers and all.
    """
    with (
        ModelFolder(job.path("source")) as source,
        ModelFolder(job.path("step")) as step,
        ModelFolder(job.path("before")) as before,
    ):
        now, was = content_of(source), content_of(before)
        put_back = reversion.revert(now, content_of(step), was)
        is_whole = len({given.digest for given in job.inputs if given.role in ("source", "step")}) == 1
        left_out: list[str] = []
        if is_whole:
            shutil.copytree(before.path, job.output, dirs_exist_ok=True)
            report(Progress(1, 1))
        else:
            left_out = copy_rest(source.path, job.output)
            for path in put_back.files:
                (job.output / path).unlink(missing_ok=True)
                if path in was.files:
                    (job.output / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(before.path / path, job.output / path)

            def make(slot: Slot) -> Iterator[torch.Tensor]:
                yield (before if slot.name in put_back.tensors else source).tensor(slot.name)

            rewrite(source, job.output, lambda slot: [slot], make, report)
        with ModelFolder(job.output) as output:
            got = content_of(output)
    names, paths = set(put_back.tensors), set(put_back.files)
    tensors = {name: was.tensors[name] if name in names else held for name, held in now.tensors.items()}
    files = {
        path: beside.files[path]
        for path in {*now.files, *was.files}
        if path in (beside := was if path in paths else now).files
    }
    assert is_whole or got == Content(tensors, files), "what was written is not the source with the step taken out"
    return {
        "tensors": len(put_back.tensors),
        "restored": {name: got.tensors[name][2] for name in put_back.tensors},
        "files": list(put_back.files),
        "kept": len(got.tensors) - len(put_back.tensors),
        "left_out": left_out,
    }


def _step(params: RevertParams, steps: Sequence[Step]) -> str:
    return reversion.step_of(steps, params.version).version


def _before(params: RevertParams, steps: Sequence[Step]) -> str | None:
    return reversion.before_of(reversion.step_of(steps, params.version))


TRANSFORM = Transform(
    params=RevertParams,
    inputs=(
        Input("source", "the version to take the step out of", takes="any"),
        Input("step", "the version that the step made", takes="any", derived=True, trace=_step, named="version"),
        Input("before", "the version that the step was done on", takes="any", derived=True, trace=_before),
    ),
    determinism="exact",
    version=1,
    run=run,
)
