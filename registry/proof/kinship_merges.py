"""How a model could have come from two others, or from a base and an adapter. Pure but for reading.

Shares are those that fit best, by least squares; what makes a merge of it is that with them every element comes out to
within rounding, which no other model does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mreg.registry.models.adapters import with_adapter
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import spacing
from mreg.registry.proof import evidence
from mreg.registry.proof.evidence import Floats
from mreg.registry.proof.kinship import common_matrices, sampled

PIECE = 1 << 16
"""Elements that are looked at in each of the matrices."""

MATRICES = 6
"""Matrices that are looked at for a merge."""

MOST_STEPS = 2.0
"""How many steps of its dtype nearly all elements may be off."""

NEARLY_ALL = 0.999
LEAST_SHARE = 0.02
"""A parent with a smaller share than this was no parent."""

FEWEST = 256
"""Elements that have to tell how much of a model, or of what it learnt, was taken."""

ROUNDS = 8
"""Of assigning elements and fitting factors in turn."""

CLEAR = 8.0
"""Steps of the dtype by which models have to differ in an element for it to tell anything."""


@dataclass(frozen=True)
class Merged:
    """That a model is a merge: in words, and within how many steps of its dtype nearly every element is."""

    told: str
    steps: float


@dataclass(frozen=True)
class _Piece:
    """The first elements of one matrix in several models, and the size of a rounding step of the child there."""

    given: tuple[Floats, ...]
    child: Floats
    step: Floats
    cosine: float

    def steps(self, exact: Floats) -> float:
        return float(np.quantile(np.abs(self.child - exact) / self.step, NEARLY_ALL))


def as_merge(a: TensorSource, b: TensorSource, child: TensorSource) -> Merged | None:
    """The child as `xA + yB`, with one x and y for the model, or with those of an arc for each matrix; else None."""
    pieces = _pieces([a, b], child)
    together = _shares(pieces)
    if together is not None:
        alpha, beta = together
        steps = max(piece.steps(alpha * piece.given[0] + beta * piece.given[1]) for piece in pieces)
        if steps <= MOST_STEPS and min(abs(alpha), abs(beta)) > LEAST_SHARE:
            return Merged(f"{alpha:.3g} of %s and {beta:.3g} of %s", steps)
    places, worst = [], 0.0
    for piece in pieces:
        each = _shares([piece])
        if each is None or min(each) <= LEAST_SHARE:
            return None
        worst = max(worst, piece.steps(each[0] * piece.given[0] + each[1] * piece.given[1]))
        # sin((1 - t)·ω) / sin(t·ω) is the ratio of the shares, which gives t where ω is known.
        angle = math.acos(max(-1.0, min(1.0, piece.cosine)))
        ratio = each[0] / each[1]
        places.append(math.atan2(math.sin(angle), ratio + math.cos(angle)) / angle if angle > 1e-6 else each[1])
    if worst > MOST_STEPS or not places or max(places) - min(places) > 0.02:
        return None
    return Merged(f"the point at {float(np.mean(places)):.3g} of the arc from %s to %s", worst)


def as_task_merge(base: TensorSource, a: TensorSource, b: TensorSource, child: TensorSource) -> Merged | None:
    """The child as a base and, element by element, what one model learnt, or the other, or both, or neither: TIES and
    DARE. None where that leaves elements unexplained, or one of the four explains them all."""
    pieces = _pieces([base, a, b], child)
    if not pieces:
        return None
    origin = [np.concatenate([piece.given[place] for piece in pieces]) for place in range(3)]
    moved = np.concatenate([piece.child for piece in pieces]) - origin[0]
    step = np.concatenate([piece.step for piece in pieces])
    first, second = origin[1] - origin[0], origin[2] - origin[0]
    clear = (np.abs(first) > CLEAR * step) | (np.abs(second) > CLEAR * step)
    if int(clear.sum()) < FEWEST:
        return None
    alone = [float(np.mean(np.abs(moved - one)[clear] <= step[clear])) for one in (0 * first, first, second)]
    if max(alone) > 1 - LEAST_SHARE:
        return None
    learnt, moved, step = np.stack([first, second])[:, clear], moved[clear], step[clear]
    starts = itertools.product(*([*_factors(moved, one, step), 0.0] for one in learnt))
    kinds, steps = min((_patterns(moved, learnt, step, p, q) for p, q in starts), key=lambda one: one[1])
    if steps > 1:
        return None
    one, other, both = (f"{float(np.mean(kinds == kind)):.0%}%" for kind in (1, 2, 3))
    told = f"element by element what %s learnt ({one}), what %s did ({other}), both ({both}) or neither"
    return Merged(told, steps)


def _patterns(moved: Floats, learnt: Floats, step: Floats, p: float, q: float) -> tuple[Any, float]:
    """Which of `0`, `p·first`, `q·second` and a sum of both each element is nearest to, and how many steps nearly all
    are off: the factors are fitted and the elements assigned in turn, from these factors on."""
    factors = np.array([[0.0, 0.0], [p, 0.0], [0.0, q], [0.0, 0.0]])
    off = np.abs(moved - factors[:3] @ learnt) / step
    left = off.min(axis=0) > 1
    for _ in range(ROUNDS):
        if int(left.sum()) >= FEWEST // 4:
            weighted = learnt[:, left] / step[left]
            factors[3] = np.linalg.lstsq(weighted.T, moved[left] / step[left], rcond=None)[0]
        off = np.abs(moved - factors @ learnt) / step
        kinds = off.argmin(axis=0)
        left = kinds == 3
    return kinds, float(np.quantile(off.min(axis=0), NEARLY_ALL))


def as_fused(
    base: TensorSource, adapter: TensorSource, config: Mapping[str, Any], child: TensorSource
) -> Merged | None:
    """The child as a base with an adapter in it; None where it is not, or where the formula is not known here."""
    fused = with_adapter(base, adapter, config)
    held = set(child.names())
    if not fused or any(name not in held for name in fused):
        return None
    steps = 0.0
    for name in sampled(sorted(fused), MATRICES):
        exact, lost = fused[name].numbers()
        if child.layout(name)[1] != exact.shape or child.layout(name)[0] not in evidence.DTYPES:
            return None
        steps = max(steps, evidence.worst_excess(child.tensor(name), exact, lost))
        if steps > MOST_STEPS:
            return None
    formula = next(iter(fused.values())).told
    return Merged(f"{formula} in {len(fused)} matrices of %s, with those of %s", steps)


def _pieces(parents: Sequence[TensorSource], child: TensorSource) -> list[_Piece]:
    names = common_matrices(parents[0], child)
    for parent in parents[1:]:
        held = set(common_matrices(parent, child))
        names = [name for name in names if name in held]
    differ = [
        name
        for name in names
        if any(one.digest(name) is None or one.digest(name) != child.digest(name) for one in parents)
    ]
    found = []
    for name in sampled(differ, MATRICES):
        after = child.tensor(name)
        whole = [one.tensor(name).array().reshape(-1) for one in parents[-2:]]
        given = tuple(one.tensor(name).array().reshape(-1)[:PIECE].astype(np.float64) for one in parents)
        values = after.array().reshape(-1)[:PIECE].astype(np.float64)
        step = np.maximum(spacing(values, evidence.DTYPES[after.dtype]), 1e-6 * np.abs(values).mean())
        step = np.maximum(step, spacing(given[0], evidence.DTYPES[after.dtype]))
        found.append(_Piece(given, values, step, _cosine(whole[0], whole[1])))
    return found


def _cosine(x: Any, y: Any) -> float:
    one, two = x.astype(np.float32), y.astype(np.float32)
    lengths = math.sqrt(float(one @ one) * float(two @ two))
    return float(one @ two) / lengths if lengths else 1.0


def _shares(pieces: Sequence[_Piece]) -> tuple[float, float] | None:
    """The x and y of `x·first + y·second` that fit best; None where the two are too alike to tell."""
    if not pieces:
        return None
    gram, right = np.zeros((2, 2)), np.zeros(2)
    # Where the two are few steps apart, rounding takes the side of the larger share and would make it larger yet.
    apart = [np.abs(piece.given[0] - piece.given[1]) > CLEAR * piece.step for piece in pieces]
    enough = sum(int(far.sum()) for far in apart) >= FEWEST
    for piece, far in zip(pieces, apart, strict=True):
        chosen = far if enough else slice(None)
        x, y, z = (each[chosen] / piece.step[chosen] for each in (*piece.given, piece.child))
        xx, xy, yy, xz, yz = (float(np.sum(one * other)) for one, other in ((x, x), (x, y), (y, y), (x, z), (y, z)))
        gram += [[xx, xy], [xy, yy]]
        right += [xz, yz]
    if abs(np.linalg.det(gram)) <= 1e-12 * gram[0, 0] * gram[1, 1]:
        return None
    alpha, beta = np.linalg.solve(gram, right)
    return float(alpha), float(beta)


def _factors(moved: Floats, learnt: Floats, step: Floats) -> list[float]:
    """What a task vector was multiplied by where it alone was kept, or nearly so: the ratios that come most often, at
    most two; none where there are too few that tell."""
    clear = (np.abs(learnt) > CLEAR * step) & (np.abs(moved) > CLEAR / 2 * step)
    ratios = moved[clear] / learnt[clear]
    logs = np.sort(np.log(ratios[(ratios > 0.01) & (ratios < 20)]))
    found: list[float] = []
    while logs.size >= FEWEST // 2 and len(found) < 2:
        # The narrowest window with a tenth of the ratios holds the commonest; its middle is the factor.
        width = max(8, logs.size // 10)
        start = int(np.argmin(logs[width - 1 :] - logs[: logs.size - width + 1]))
        middle = float(np.median(logs[start : start + width]))
        found.append(float(np.exp(middle)))
        logs = logs[np.abs(logs - middle) > 0.2]
    return found
