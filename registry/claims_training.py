"""What a training claims, of which weights can only tell that it could be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mreg.registry import evidence
from mreg.registry.claim import Claim, Made, common, is_same

MOST_CHANGE = 0.5
"""A training that moves a matrix by more than half its norm made another model of it."""


def trained(made: Made) -> Iterator[Claim]:
    """That it could be a training of its source: more cannot be told without doing it again."""
    names, missing = common(made.source, made.output)
    if missing and not made.params.get("add_tokens"):
        yield Claim("a training keeps the architecture", "contradicted", missing)
        return
    worst, where, changed = 0.0, "", 0
    frozen = _frozen(made.params, names)
    for name in names:
        if is_same(made, name):
            continue
        changed += 1
        if name in frozen:
            yield Claim("frozen layers are what they were", "contradicted", f"{name} changed")
            return
        before, after = made.source.tensor(name), made.output.tensor(name)
        if before.shape == after.shape and evidence.is_float(before) and evidence.is_float(after):
            moved = evidence.rounding_error(before, evidence.numbers(after))
            if moved > worst:
                worst, where = moved, name
    if frozen:
        yield Claim("frozen layers are what they were", "proved", f"{len(frozen)} tensors, bit for bit")
    what = "it could be a training of its source"
    if not changed:
        yield Claim(what, "contradicted", "no tensor changed")
    elif worst > MOST_CHANGE:
        yield Claim(what, "contradicted", f"{where} moved by {worst:.2g} of its norm")
    else:
        yield Claim(
            what, "consistent", f"{changed} of {len(names)} tensors moved, {where} most: {worst:.2g} of its norm"
        )


def _frozen(params: Mapping[str, Any], names: list[str]) -> set[str]:
    """The tensors that the params say were not trained."""
    layers, patterns = params.get("layers") or (), [str(one) for one in params.get("freeze") or ()]
    frozen = set()
    for name in names:
        layer = re.search(r"\.(?:layers|layer|h|blocks)\.(\d+)\.", name)
        outside = bool(layers) and (layer is None or int(layer[1]) not in layers)
        if outside or any(pattern != "backbone" and re.search(pattern, name) for pattern in patterns):
            frozen.add(name)
    return frozen
