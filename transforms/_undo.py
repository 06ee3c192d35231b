"""Taking an edit back: the matrices that it changed become again what they were, and nothing else changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mreg.registry import digests
from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Job, Report
from mreg.transforms._contents import tensors_of
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite

if TYPE_CHECKING:
    import torch

NAME = "edit"


def last_edit(steps: Sequence[Step]) -> Step:
    """The newest edit on the way to a version that was not taken back since; `steps` lead to it, itself the last.

    Raises Refused where there is none.
    """
    made = {step.version: step for step in steps}
    at: Step | None = steps[-1]
    undone: set[Digest] = set()
    while at is not None and at.inputs:
        inputs = dict(at.inputs)
        if at.transform == NAME and at.mode == "apply":
            if at.params.get("undo"):
                undone.add(inputs["edited"])
            elif at.version not in undone:
                return at
        at = made.get(inputs["source"]) if "source" in inputs else None
    raise Refused("no edit led to this version, so there is none to undo", fix="`mreg log REV` shows what led to it")


def undo(job: Job, report: Report) -> Facts:
    """Give the version before the edit back, or, where steps followed, the source without the edit.

    Exact: what the edit changed must still be in the source as the edit left it, and is replaced by what was before.
    Raises Refused otherwise.
    """
    with (
        ModelFolder(job.path("source")) as source,
        ModelFolder(job.path("edited")) as edited,
        ModelFolder(job.path("before")) as before,
    ):
        were, are = tensors_of(before), tensors_of(edited)
        changed = [name for name in are if are[name] != were.get(name)]
        now = tensors_of(source)
        for name in changed:
            if now.get(name) != are[name]:
                raise Refused(
                    f"{name} was changed again after the edit, so that taking the edit back would not be exact",
                    fix="undo the steps after it first, or make the chain again without it: `mreg rebase --drop`",
                )
        is_edited = now == are
        if is_edited:
            # Files, shards and headers too: the very version that was there before.
            shutil.copytree(before.path, job.output, dirs_exist_ok=True)
        else:
            copy_rest(source.path, job.output)

            def make(slot: Slot) -> Iterator[torch.Tensor]:
                yield before.tensor(slot.name) if slot.name in changed else source.tensor(slot.name)

            rewrite(source, job.output, lambda slot: [slot], make, report)
        expected = {**now, **{name: were[name] for name in changed}}
        with ModelFolder(job.output) as output:
            got = tensors_of(output)
        assert got == expected, "what was written is not what was there before"
    return {
        "restored": {name: got[name][2] for name in changed},
        "matrices": changed,
        "weights": digests.of_weights((name, *rest) for name, rest in got.items()),
        "weights_before_edit": digests.of_weights((name, *rest) for name, rest in were.items()),
        "gone": got == were if is_edited else all(got[name] == were[name] for name in changed),
    }
