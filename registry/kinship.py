"""How near two or three models are, and by what kind of step one could have come from the others. Pure but for reading.

Distances are relative L2 norms over matrices spread evenly through the model. Random weights of one shape are about
1.4 apart, a fine-tune of a model is mostly nearer than 0.2 to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from mreg.registry import evidence
from mreg.registry.weight_sources import TensorSource
from mreg.registry.weights import delta_rank, spacing

Kind = Literal["same", "cast", "prune", "edit", "fuse", "finetune", "quantize", "merge", "none"]

SAMPLES = 12
"""Matrices that are looked at in a model."""

UNRELATED = 0.7
"""From this relative distance on, two models have nothing to do with each other."""

LOW_RANK = 1 / 4
"""A delta of at most this part of the full rank was added as factors; training all weights gives nearly all of it."""

MOST_EDITED = 1 / 4
"""An edit changes at most this part of the matrices."""


@dataclass(frozen=True)
class Kinship:
    """How a model could come from another: the kind of step, the distance, and what says so."""

    kind: Kind
    distance: float
    evidence: str


def common_matrices(a: TensorSource, b: TensorSource) -> list[str]:
    """The matrices that both have in one shape, sorted by name."""
    theirs = set(b.names())
    names = [name for name in sorted(a.names()) if name in theirs]
    return [name for name in names if len(_shape(a, name)) == 2 and _shape(a, name) == _shape(b, name)]


def sampled(names: Sequence[str], count: int = SAMPLES) -> list[str]:
    """Names spread evenly."""
    if len(names) <= count:
        return list(names)
    return [names[round(place * (len(names) - 1) / (count - 1))] for place in range(count)]


def distance(a: TensorSource, b: TensorSource, names: Sequence[str]) -> float:
    """`‖b - a‖ / ‖a‖` over these matrices together."""
    apart = size = 0.0
    for name in names:
        x, y = evidence.numbers(a.tensor(name)), evidence.numbers(b.tensor(name))
        apart += float(np.sum((y - x) ** 2))
        size += float(np.sum(x**2))
    return float(np.sqrt(apart / size)) if size else 0.0


def relate(parent: TensorSource, child: TensorSource) -> Kinship:
    """The kind of step that would explain `child`, if it came from `parent`."""
    if any(name.endswith(".weight_packed") for name in child.names()):
        return _quantized(parent, child)
    names = common_matrices(parent, child)
    if not names:
        return Kinship("none", float("inf"), "no matrix in common")
    same = [name for name in names if _is_same(parent, child, name)]
    changed = [name for name in names if name not in set(same)]
    if not changed:
        return Kinship("same", 0.0, f"all {len(names)} matrices, bit for bit")
    chosen = sampled(changed)
    apart = distance(parent, child, chosen) * len(changed) / len(names)
    pairs = [(parent.tensor(name), child.tensor(name)) for name in chosen]
    if all(evidence.is_cast(before, after) for before, after in pairs):
        return Kinship(
            "cast", apart, f"{pairs[0][0].dtype} rounded to {pairs[0][1].dtype} in all of {len(chosen)} looked at"
        )
    zeros = float(np.mean([evidence.zeros(after).mean() for _, after in pairs]))
    were = float(np.mean([evidence.zeros(before).mean() for before, _ in pairs]))
    if zeros > were + 0.01 and not any(evidence.survivors_changed(before, after) for before, after in pairs):
        return Kinship("prune", apart, f"{zeros:.0%} are zero, the others are what they were")
    if apart >= UNRELATED:
        return Kinship("none", apart, f"{apart:.2g} of the norm apart")
    moved = f"{len(changed)} of {len(names)} matrices"
    ranks = [delta_rank(before.array(), after.array()) for before, after in pairs]
    full = min(min(before.shape) for before, _ in pairs)
    known = [rank for rank in ranks if rank is not None]
    if known and max(known) <= full * LOW_RANK:
        kind: Kind = "edit" if len(changed) <= MOST_EDITED * len(names) and max(known) <= 2 else "fuse"
        return Kinship(
            kind, apart, f"a delta of rank {max(known)} of {full} in {len(changed)} of {len(names)} matrices"
        )
    moved = f"{len(changed)} of {len(names)} matrices moved"
    return Kinship("finetune", apart, f"{moved}, by {apart:.2g} of the norm")


def as_merge(a: TensorSource, b: TensorSource, child: TensorSource) -> tuple[float, float, float] | None:
    """`(x, y, steps)` where the child is xA + yB to within `steps` of its dtype; None where it is not.

    The two shares are those that fit best, by least squares over the matrices looked at.
    """
    names = [name for name in common_matrices(a, child) if name in set(common_matrices(b, child))]
    gram, right = np.zeros((2, 2)), np.zeros(2)
    held = []
    for name in sampled(names):
        x, y, z = (evidence.numbers(one.tensor(name)).reshape(-1) for one in (a, b, child))
        gram += [[x @ x, x @ y], [x @ y, y @ y]]
        right += [x @ z, y @ z]
        held.append(name)
    if not held or abs(np.linalg.det(gram)) <= 1e-9 * gram[0, 0] * gram[1, 1]:
        return None
    alpha, beta = (float(one) for one in np.linalg.solve(gram, right))
    steps = 0.0
    for name in held:
        after = child.tensor(name)
        exact = alpha * evidence.numbers(a.tensor(name)) + beta * evidence.numbers(b.tensor(name))
        got = evidence.numbers(after)
        size = np.maximum(spacing(got, evidence.DTYPES[after.dtype]), 1e-6 * np.abs(got).mean())
        steps = max(steps, float(np.quantile(np.abs(got - exact) / size, 0.999)))
    return (alpha, beta, steps) if steps <= 2 and min(abs(alpha), abs(beta)) > 0.02 else None


def _quantized(parent: TensorSource, child: TensorSource) -> Kinship:
    """Packed integers against the weights that they stand for."""
    theirs = set(parent.names())
    packed = sorted(name.removesuffix("_packed") for name in child.names() if name.endswith(".weight_packed"))
    names = sampled([name for name in packed if name in theirs])
    if not names:
        return Kinship("none", float("inf"), "no tensor in common")
    errors = []
    for name in names:
        weight, scale = parent.tensor(name), child.tensor(f"{name}_scale")
        words = child.tensor(f"{name}_packed")
        bits = 32 * words.shape[1] // weight.shape[1] if len(weight.shape) == 2 else 0
        if bits not in (2, 4, 8) or weight.shape[0] != words.shape[0] or weight.shape[1] % scale.shape[1]:
            return Kinship("none", float("inf"), f"{name} has another shape")
        scales = np.repeat(evidence.numbers(scale), weight.shape[1] // scale.shape[1], axis=1)
        integers = evidence.unpacked(words, bits, weight.shape[1])
        errors.append(evidence.rounding_error(weight, integers * scales))
    error = float(np.mean(errors))
    if error >= UNRELATED:
        return Kinship("none", error, f"its integers are {error:.2g} of the norm from the weights")
    return Kinship("quantize", error, f"its integers are the weights to within {error:.2g} of the norm")


def _is_same(a: TensorSource, b: TensorSource, name: str) -> bool:
    known = a.digest(name)
    if known is not None and b.digest(name) is not None:
        return known == b.digest(name)
    return evidence.same_bits(a.tensor(name), b.tensor(name))


def _shape(source: TensorSource, name: str) -> tuple[int, ...]:
    return source.tensor(name).shape
