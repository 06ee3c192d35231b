"""Stacking layers of several models into one, each tensor as it is: the passthrough merge of mergekit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Material, Report
from mreg.transforms._folder import ModelFolder, Slot, change_config, rewrite
from mreg.transforms._layers import COUNTS, LAYER, count_layers

if TYPE_CHECKING:
    import torch

Stack = Sequence[tuple[int, int]]
"""The layers of the result, each as the place of its model (0 is the source) and its number there."""

FORM = re.compile(r"(\d+):(\d+)-(\d+)")
FIX = "write MODEL:START-END, such as 0:0-12 for the first 12 layers of the source; 1 is the first other model"

INPUT_SIDE = re.compile(
    r"(?:^|\.)(?:wte|wpe|embeddings?|embed_in|\w*embed_tokens|\w*embed_positions|word_embeddings\w*)\."
)
"""Tensors outside the layers that come before them; all others come after."""


def read_slices(slices: Sequence[str], layers: Sequence[int]) -> Stack:
    """The stack that slices stand for. `layers` has how many each model has. Raises BadParams."""
    if not slices:
        raise BadParams("passthrough needs --slices", fix=FIX)
    stack: list[tuple[int, int]] = []
    for text in slices:
        found = FORM.fullmatch(text)
        if found is None:
            raise BadParams(f"{text!r} is no slice of layers", fix=FIX)
        model, start, end = map(int, found.groups())
        if model >= len(layers):
            raise BadParams(f"the slice {text} takes layers of model {model}, of {len(layers)}", fix=FIX)
        if not start < end <= layers[model]:
            raise BadParams(f"the slice {text} takes layers that are not there", fix=f"there are {layers[model]}")
        stack += [(model, number) for number in range(start, end)]
    return stack


def check_stack(slices: Sequence[str], materials: Sequence[Material]) -> None:
    """Refuse slices that name no layers, and models whose layers or whose other tensors do not fit each other."""
    counts = [count_layers(one.name, one.config, one.tensors) for one in materials]
    stack = read_slices(slices, counts)
    first = materials[0]
    layer = _shapes(first, 0)
    for model, number in sorted(set(stack)):
        other = materials[model]
        theirs = _shapes(other, number)
        for name in sorted({*layer, *theirs}):
            if layer.get(name) != theirs.get(name):
                raise Refused(
                    f"{name} is {layer.get(name, 'missing')} in layer 0 of {first.name} and "
                    f"{theirs.get(name, 'missing')} in layer {number} of {other.name}",
                    fix="stack layers of one shape",
                )
    here = _shapes(first, None)
    for end in (materials[stack[0][0]], materials[stack[-1][0]]):
        if here != _shapes(end, None):
            raise Refused(
                f"{first.name} and {end.name} differ outside their layers",
                fix="stack models of one width and vocabulary",
            )
    stacked([one.config for one in materials], stack, counts)


def stacked(configs: Sequence[Mapping[str, Any]], stack: Stack, layers: Sequence[int]) -> dict[str, Any]:
    """What changes in the source's config. A list with an entry for each layer takes those of the stacked ones."""
    source = configs[0]
    changes: dict[str, Any] = {key: len(stack) for key in COUNTS if source.get(key) == layers[0]}
    for key, value in source.items():
        if not isinstance(value, list) or not value or "layer" not in key:
            continue
        held = [config.get(key) for config in configs]
        if any(not isinstance(one, list) or len(one) != count for one, count in zip(held, layers, strict=True)):
            raise Refused(f"{key} in config.json names single layers", fix="stack no layers of this model")
        changes[key] = [held[model][number] for model, number in stack]  # type: ignore[index]  # lists, as was seen
    return changes


def stack_layers(folders: Sequence[ModelFolder], slices: Sequence[str], output: Path, report: Report) -> Stack:
    """Write the stack into `output`, in the shards of the source, which gives the other files and the dtypes too.

    What stands before the layers is that of the first slice's model, what stands behind them that of the last one's.
    """
    source = folders[0]
    layers = [count_layers("the model", folder.config, folder.slots) for folder in folders]
    stack = read_slices(slices, layers)
    # Each new layer is written where the source has the one of its number, and all further ones with its last.
    homes: dict[int, list[int]] = {}
    for new in range(len(stack)):
        homes.setdefault(min(new, layers[0] - 1), []).append(new)

    def plan(slot: Slot) -> list[Slot]:
        found = LAYER.search(slot.name)
        if found is None:
            return [slot]
        return [replace(slot, name=_renamed(slot.name, new)) for new in homes.get(int(found[1]), [])]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        dtype = source.tensor(slot.name).dtype
        found = LAYER.search(slot.name)
        if found is None:
            end = stack[0] if INPUT_SIDE.search(slot.name) else stack[-1]
            yield folders[end[0]].tensor(slot.name).to(dtype)
            return
        for new in homes.get(int(found[1]), []):
            model, number = stack[new]
            yield folders[model].tensor(_renamed(slot.name, number)).to(dtype)

    rewrite(source, output, plan, make, report)
    change_config(source.path, output, **stacked([folder.config for folder in folders], stack, layers))
    return stack


def _renamed(name: str, number: int) -> str:
    found = LAYER.search(name)
    assert found is not None, name
    return f"{name[: found.start(1)]}{number}{name[found.end(1) :]}"


def _shapes(material: Material, layer: int | None) -> dict[str, str]:
    """The shapes of the tensors of a layer, by their names in layer 0; those outside the layers for None."""
    shapes = {}
    for name, (_, shape) in material.tensors.items():
        found = LAYER.search(name)
        if (None if found is None else int(found[1])) == layer:
            shapes[name if found is None else _renamed(name, 0)] = "x".join(map(str, shape))
    return shapes
