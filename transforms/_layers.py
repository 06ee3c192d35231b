"""Dropping whole layers of a model: its folder is written again without them, and says so in its config."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Report
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest, rewrite

if TYPE_CHECKING:
    import torch

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def count_layers(name: str, config: Mapping[str, Any], tensors: Iterable[str]) -> int:
    """How many layers a model has. Raises Refused where its config and its tensors do not agree on it."""
    told: int | None = next((config[key] for key in COUNTS if isinstance(config.get(key), int)), None)
    numbers = {int(found[1]) for tensor in tensors if (found := LAYER.search(tensor))}
    if told is None or numbers != set(range(told)):
        raise Refused(
            f"the layers of {name} cannot be told apart", fix="give a model with one stack of numbered layers"
        )
    return told


def spread(keep: int, layers: int, name: str) -> tuple[int, ...]:
    """`keep` of the `layers` of NAME, as evenly as can be, with the first and the last (Sanh et al. 2019)."""
    if keep > layers:
        raise BadParams(f"{name} has {layers} layers, {keep} of them cannot be kept", fix=f"keep at most {layers}")
    return tuple(round(place * (layers - 1) / max(1, keep - 1)) for place in range(keep))


def shortened(config: Mapping[str, Any], keep: Sequence[int], layers: int) -> dict[str, Any]:
    """What changes in a config of so many `layers` when only those in `keep` are left.

    A list with an entry for each layer loses those of the dropped ones. Raises Refused for lists that name layers.
    """
    changes: dict[str, Any] = {key: len(keep) for key in COUNTS if config.get(key) == layers}
    for key, value in config.items():
        if not isinstance(value, list) or not value or "layer" not in key:
            continue
        if len(value) != layers:
            raise Refused(f"{key} in config.json names single layers", fix="drop no layers of this model")
        changes[key] = [value[place] for place in keep]
    return changes


def drop_layers(source: ModelFolder, keep: Sequence[int], output: Path, report: Report) -> list[str]:
    """Write `source` into `output` with the layers in `keep` only, numbered anew; what is left keeps its bytes.

    Returns the stale forms of the weights left out.
    """
    layers = count_layers("the model", source.config, source.slots)
    numbers = {old: new for new, old in enumerate(keep)}

    def plan(slot: Slot) -> list[Slot]:
        found = LAYER.search(slot.name)
        if found is None:
            return [slot]
        number = int(found[1])
        if number not in numbers:
            return []
        return [replace(slot, name=f"{slot.name[: found.start(1)]}{numbers[number]}{slot.name[found.end(1) :]}")]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        if plan(slot):
            yield source.tensor(slot.name)

    left_out = copy_rest(source.path, output)
    rewrite(source, output, plan, make, report)
    change_config(source.path, output, **shortened(source.config, keep, layers))
    return left_out
