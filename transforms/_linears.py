"""Linear layers as they are known before any work starts: by the usual names of their weights, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from mreg.registry.errors import Refused
from mreg.registry.transform import Material
from mreg.transforms._architecture import is_match

# Names of `nn.Linear` modules in the models of transformers. GPT-2 calls a Conv1D `c_proj`, whose sides are swapped.
USUAL = re.compile(
    r"(?:^|\.)(?!c_proj)(?:\w+_proj|fc\d|[qkvo]|wi(?:_\d)?|wo|query|key|value|dense|query_key_value|dense_\w+|lm_head)$"
)

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes (rows, columns) of weights by name."""


def known_linears(source: Material, ignore: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The weights that are surely of linear layers, less the ignored ones. Raises Refused where `ignore` leaves none.

    Empty where nothing is sure; what a model really has is known when its config is built, by `linear_layers`.
    """
    tied = source.config.get("tie_word_embeddings", False)
    found: dict[str, tuple[int, ...]] = {
        name: shape
        for name, (_, shape) in source.tensors.items()
        if len(shape) == 2
        and name.endswith(".weight")
        and USUAL.search(module := name.removesuffix(".weight"))
        and not (tied and module.endswith("lm_head"))
    }
    if not found and any(name.endswith("c_attn.weight") for name in source.tensors):
        raise Refused(
            f"the layers of {source.name} are Conv1D, as GPT-2's are, and no linear layers",
            fix="quantize a model with linear layers, such as a Llama or a Qwen",
        )
    kept = {
        name: shape
        for name, shape in found.items()
        if not any(is_match(name.removesuffix(".weight"), pattern) for pattern in ignore)
    }
    if found and not kept:
        raise Refused(
            f"all {len(found)} linear layers of {source.name} are ignored",
            fix=f"ignore fewer; they are called such as {next(iter(found)).removesuffix('.weight')}",
        )
    return kept


def divides(shapes: Shapes, group_size: int) -> None:
    """Refuse groups that do not divide the columns of a matrix, naming one and a size that fits all. -1 always does."""
    for name in sorted(shapes):
        columns = shapes[name][1]
        if group_size > 0 and columns % group_size:
            common = math.gcd(*(shape[1] for shape in shapes.values()))
            fits = max(size for size in range(1, min(common, group_size) + 1) if common % size == 0)
            raise Refused(
                f"groups of {group_size} do not divide the {columns} columns of {name}",
                fix=f"use a group size of {fits}, or -1 for one scale a row, or ignore it",
            )
