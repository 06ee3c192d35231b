"""Reversion: what of a version one step made, and whether it can be put back exactly, by digests alone. Pure.

The law: where a step's change is in the later version bit for bit as the step left it, what was there before the step
can stand there again, and everything else stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.models.manifest import Manifest

Held = tuple[str, tuple[int, ...], Digest]
"""A tensor without its bytes: dtype, shape and digest."""

INDEX = "model.safetensors.index.json"

STALE = (".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".pt", ".pth", ".tflite")
"""Other forms of the weights, which would no longer be true beside changed ones, and what a trainer leaves."""


FUSE = "fuse"
"""The transform that makes a whole model of an adapter and its base."""


@dataclass(frozen=True)
class Content:
    """A model as digests: its tensors by name, and the files beside them by path."""

    tensors: Mapping[str, Held]
    files: Mapping[str, Digest]


@dataclass(frozen=True)
class Reversion:
    """What is put back: the tensors and the files that the step changed."""

    tensors: tuple[str, ...]
    files: tuple[str, ...]


class NotExact(Refused):
    """A step cannot be taken out of a later version by weights; `name` is the tensor or file in the way, if one is."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message, fix="make the chain again without it: `mreg rebase --drop`")
        self.name = name


def content_of(manifest: Manifest) -> Content:
    """What a manifest lists. Weights in subfolders count as files."""
    weights = {file.path for file in manifest.files if "/" not in file.path and file.header is not None}
    tensors = {
        tensor.name: (tensor.dtype, tensor.shape, tensor.digest)
        for file in manifest.files
        if file.path in weights
        for tensor in file.tensors
    }
    files = {file.path: file.digest for file in manifest.files if file.path not in weights and is_beside(file.path)}
    return Content(tensors, files)


def is_beside(path: str) -> bool:
    """Whether a file holds no weights in any form, nor says where they are."""
    return path != INDEX and not path.endswith(STALE)


def revert(source: Content, step: Content, before: Content) -> Reversion:
    """What taking `step` back, which was made from `before`, puts back in `source`. Raises NotExact."""
    if came := sorted({*step.tensors} ^ {*before.tensors}):
        did = "added" if came[0] in step.tensors else "took away"
        raise NotExact(f"it {did} {came[0]}", name=came[0])
    tensors = [name for name in step.tensors if step.tensors[name] != before.tensors[name]]
    files = [path for path in sorted({*step.files, *before.files}) if step.files.get(path) != before.files.get(path)]
    for name in tensors:
        if step.tensors[name][:2] != before.tensors[name][:2]:
            raise NotExact(f"it changed the dtype or the shape of {name}", name=name)
        if source.tensors.get(name) != step.tensors[name]:
            raise NotExact(f"{name} was changed again after it", name=name)
    for path in files:
        if source.files.get(path) != step.files.get(path):
            raise NotExact(f"{path} was changed again after it", name=path)
    if not tensors and not files:
        raise NotExact("it changed nothing")
    return Reversion(tuple(tensors), tuple(files))


def before_of(step: Step) -> Digest | None:
    """The version that a step was done on; for the fusing of an adapter, its base."""
    inputs = dict(step.inputs)
    return inputs.get("base") if step.transform == FUSE else inputs.get("source")


def through(steps: Sequence[Step], step: Step) -> tuple[Step, ...]:
    """The step, and of an adapter and its fusing into what it was trained on also the other: one is void without it.

    The last of them is what changed the model.
    """
    made = {one.version: one for one in steps}
    if step.transform == FUSE:
        adapter = made[dict(step.inputs)["source"]]
        return (adapter, step) if adapter.inputs and before_of(adapter) == before_of(step) else (step,)
    fused = [one for one in steps if one.transform == FUSE and dict(one.inputs)["source"] == step.version]
    return (step, fused[0]) if [before_of(one) for one in fused] == [before_of(step)] else (step,)


def step_of(steps: Sequence[Step], version: str) -> Step:
    """The one of `steps` that made the version whose digest begins so. Raises Refused where none did."""
    found = [step for step in steps if len(version) >= 6 and step.version.startswith(version)]
    if len(found) != 1:
        raise Refused(
            f"no step on the way to the source made {version[:12]!r}",
            fix="`mreg lineage REV --up` shows those that did",
        )
    (step,) = found
    if before_of(step) is None:
        raise Refused(f"{version[:12]} was imported, no step made it", fix="name a version that a step made")
    return step
