"""How near two models are, and by what kind of step one could have come from the other. Pure but for reading.

Digests decide first, and cost nothing. Distances are relative L2 norms over matrices spread evenly through the model:
random weights of one shape are about 1.4 apart, a fine-tune of a model is mostly nearer than 0.2 to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mreg.registry.models import low_rank
from mreg.registry.models.grids import grid_of, quantized
from mreg.registry.models.layer_names import number_of
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence
from mreg.registry.proof.matching import by_layer, cuts_of, found_layers, is_equal, kept_parts

Kind = Literal["same", "cast", "prune", "edit", "fuse", "finetune", "quantize", "merge", "none"]

SAMPLES = 12
"""Matrices that are looked at in a model."""

UNRELATED = 0.7
"""From this relative distance on, two models have nothing to do with each other."""

MOST_EDITED = 1 / 4
"""An edit changes at most this part of the matrices."""

MOST_DIRECTIONS = 2
"""And each of them in so many directions."""


@dataclass(frozen=True)
class Kinship:
    """How a model could come from another: the kind of step, the distance, and what says so.

    `misfit` tells apart two parents that explain a model equally well otherwise; less is better.
    """

    kind: Kind
    distance: float
    evidence: str
    misfit: float = 0.0


def common_matrices(a: TensorSource, b: TensorSource) -> list[str]:
    """The matrices of floating-point numbers that both have in one shape, sorted by name."""
    theirs = set(b.names())
    return [
        name
        for name in sorted(a.names())
        if name in theirs
        and len(a.layout(name)[1]) == 2
        and a.layout(name)[1] == b.layout(name)[1]
        and {a.layout(name)[0], b.layout(name)[0]} <= evidence.DTYPES.keys()
    ]


def sampled(names: Sequence[str], count: int = SAMPLES) -> list[str]:
    """Names spread evenly."""
    if len(names) <= count:
        return list(names)
    return [names[round(place * (len(names) - 1) / max(1, count - 1))] for place in range(count)]


def distance(a: TensorSource, b: TensorSource, names: Sequence[str]) -> float:
    """`‖b - a‖ / ‖a‖` over these matrices together."""
    apart = size = 0.0
    for name in names:
        x, y = evidence.numbers(a.tensor(name)), evidence.numbers(b.tensor(name))
        apart += float(np.sum((y - x) ** 2))
        size += float(np.sum(x**2))
    return float(np.sqrt(apart / size)) if size else 0.0


def relate(parent: TensorSource, child: TensorSource, among: Collection[str] | None = None) -> Kinship:
    """The kind of step that would explain `child`, if it came from `parent`; with `among`, as these matrices tell."""
    if names := quantized(parent, child):
        return _quantized(parent, child, [name for name in names if among is None or name in among] or names)
    if (cut := _cut(parent, child)) is not None:
        return cut
    names = [name for name in common_matrices(parent, child) if among is None or name in among]
    ours = [name for name in child.names() if len(child.layout(name)[1]) == 2 and (among is None or name in among)]
    if not names or 2 * len(names) < len(ours):
        return Kinship("none", float("inf"), f"{len(names)} of {len(ours)} matrices in common")
    changed = [name for name in names if not is_equal(parent, name, child, name)]
    if not changed:
        return _same(parent, child, names)
    chosen = sampled(changed)
    apart = distance(parent, child, chosen) * (len(changed) / len(names)) ** 0.5
    pairs = [(parent.tensor(name), child.tensor(name)) for name in chosen]
    if all(evidence.is_cast(before, after) for before, after in pairs):
        told = f"{pairs[0][0].dtype} rounded to {pairs[0][1].dtype} in all of {len(chosen)} looked at"
        return Kinship("cast", apart, told)
    zeros = float(np.mean([evidence.zeros(after).mean() for _, after in pairs]))
    were = float(np.mean([evidence.zeros(before).mean() for before, _ in pairs]))
    if zeros > were + 0.01 and not any(evidence.survivors_changed(before, after) for before, after in pairs):
        return Kinship("prune", apart, f"{zeros:.0%} are zero, the others are what they were")
    if apart >= UNRELATED:
        return Kinship("none", apart, f"{apart:.2g} of the norm apart")
    told = f"{len(changed)} of {len(names)} matrices"
    if most := _directions(pairs):
        few = len(changed) <= max(1, MOST_EDITED * len(names)) and most <= MOST_DIRECTIONS
        return Kinship("edit" if few else "fuse", apart, f"a delta of rank {most} in {told}, and rounding")
    return Kinship("finetune", apart, f"{told} moved, by {apart:.2g} of the norm{_where(parent, child, changed)}")


def _directions(pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
    """The highest rank of what was added, where that is low in every one of these matrices; otherwise 0."""
    most = 0
    for before, after in pairs:
        rank = low_rank.directions(before, after)
        if rank is None:
            return 0
        most = max(most, rank)
    return most


def _same(parent: TensorSource, child: TensorSource, names: Sequence[str]) -> Kinship:
    """What can be told of two models whose matrices are the same."""
    vectors = [n for n in sorted(set(parent.names()) & set(child.names())) if n not in set(names)]
    moved = [name for name in vectors if not is_equal(parent, name, child, name)]
    if moved:
        told = f"all {len(names)} matrices, bit for bit; only {', '.join(moved[:3])} moved"
        return Kinship("finetune", 0.0, told)
    return Kinship("same", 0.0, f"all {len(names)} matrices, bit for bit")


def _where(parent: TensorSource, child: TensorSource, changed: Sequence[str]) -> str:
    """Which part of a model was trained, where that is less than half of its layers."""
    layers = {number for name in child.names() if (number := number_of(name)) is not None}
    moved = sorted({number for name in changed if (number := number_of(name)) is not None})
    outside = sorted(name for name in changed if number_of(name) is None)
    if len(moved) * 2 > len(layers) or not layers:
        return ""
    told = [f"layer {number}" for number in moved] + outside
    kept = sum(is_equal(parent, name, child, name) for name in set(parent.names()) & set(child.names()))
    return f"; only {', '.join(told[:4])}{' …' * (len(told) > 4)}: {kept} tensors are what they were, bit for bit"


def _cut(parent: TensorSource, child: TensorSource) -> Kinship | None:
    """A model without some layers, heads or channels of another; None where nothing was cut out."""
    before, after = by_layer(list(parent.names())), by_layer(list(child.names()))
    if len(after) < len(before) and set(before.get(None, ())) == set(after.get(None, ())):
        outside = [name for name in after.get(None, ()) if not is_equal(parent, name, child, name)]
        found = {} if outside else found_layers(parent, child)
        order = [found[number] for number in sorted(found)]
        if order and len(order) == len(after) - 1 and order == sorted(set(order)):
            told = ", ".join(map(str, order))
            return Kinship("prune", 0.0, f"layers {told} of {len(before) - 1} and all outside them, bit for bit")
        return None
    if set(parent.names()) != set(child.names()):
        return None
    cuts = cuts_of(parent, child, list(child.names()))
    if not cuts:
        return None
    layers = by_layer(list(cuts))
    for number in (min(layers, key=str), max(layers, key=str)):
        kept = kept_parts(parent, child, {name: cuts[name] for name in layers[number]})
        if kept.amiss:
            return Kinship("none", float("inf"), f"layer {number}: {kept.amiss}")
    others = [name for name in child.names() if name not in cuts and not is_equal(parent, name, child, name)]
    if others:
        return Kinship("none", float("inf"), f"{others[0]} changed, and got no smaller")
    left, dimension = len(kept.stay), max(cuts.values(), key=lambda cut: cut.before)
    share = 1 - dimension.after / dimension.before
    return Kinship("prune", 0.0, f"{share:.0%} of {len(cuts)} matrices were cut out, the {left} parts left bit for bit")


def _quantized(parent: TensorSource, child: TensorSource, names: Sequence[str]) -> Kinship:
    """Integers, or 8-bit floats, against the weights that they stand for."""
    theirs = set(parent.names())
    errors, off, misfits = [], 0.0, []
    for name in sampled([name for name in names if name in theirs]):
        weight = parent.tensor(name)
        found = grid_of(child, name, weight)
        if isinstance(found, str):
            return Kinship("none", float("inf"), found)
        errors.append(evidence.rounding_error(weight, found.restored))
        off = max(off, found.off(weight))
        misfits.append(found.misfit(weight))
    if not errors:
        return Kinship("none", float("inf"), "no matrix in common")
    error = float(np.mean(errors))
    if error >= UNRELATED:
        return Kinship("none", error, f"its integers are {error:.2g} of the norm from the weights")
    told = "" if off else ", each rounded to the nearest"
    said = f"its numbers are the weights to within {error:.2g} of the norm{told}"
    return Kinship("quantize", error, said, off + float(np.mean(misfits)))
