"""Numbered layers in the names of tensors: `model.layers.3.mlp.up_proj.weight` is `mlp.up_proj.weight` of layer 3."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")

INPUT_SIDE = re.compile(
    r"(?:^|\.)(?:wte|wpe|embeddings?|embed_in|\w*embed_tokens|\w*embed_positions|word_embeddings\w*)\."
)
"""Tensors outside the layers that come before them; all others come after."""


def number_of(name: str) -> int | None:
    """The layer that a tensor is part of; None for those outside all layers."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def within(name: str) -> str:
    """What a tensor is called within its layer; its whole name outside all layers."""
    found = LAYER.search(name)
    return name[found.end() :] if found else name


def renumbered(name: str, number: int) -> str:
    """The name of the same tensor in another layer. Outside all layers it has but one."""
    found = LAYER.search(name)
    return f"{name[: found.start(1)]}{number}{name[found.end(1) :]}" if found else name


def count(names: Iterable[str]) -> int:
    """How many layers there are: one more than the highest number."""
    return max((number for name in names if (number := number_of(name)) is not None), default=-1) + 1
