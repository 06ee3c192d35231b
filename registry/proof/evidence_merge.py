"""Merges computed again, a tensor at a time: what should have come out, in float64, and what rounding may make of it.

The differences of the models to their base are taken in float32, as whoever merges takes them, so that which of them
is the largest is decided on the same numbers; all sums of them are made in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from blake3 import blake3
from mreg.registry.models.weights import Array, Tensor, spacing
from mreg.registry.proof.evidence import DTYPES, FP32_ROUNDING, Floats

CHUNK = 1 << 18
"""Elements that are worked on together, so that memory does not grow with a tensor."""

COLLINEAR = 0.9995
"""The cosine from which slerp goes straight."""

MOST_PATTERNS = 4
"""Models up to which every choice of what was dropped is tried: twice as many for each."""

CLEAR = 3.0
"""Steps of the dtype between two outcomes from which the stored one tells which it was."""


@dataclass(frozen=True)
class Recipe:
    """How task vectors are summed: a weight and a density for each model, what the sum is multiplied by, and whether a
    sign is elected and the weights divided out."""

    weights: Sequence[float]
    densities: Sequence[float]
    scale: float
    elect: bool
    normalize: bool


@dataclass(frozen=True)
class Fit:
    """How a merged tensor compares with what it should be, in steps of its dtype.

    `worst` is over all elements, `decided` over those of which it does not hang on a tie or on a rounding whether they
    stay. `kept` counts, for each model, the elements that tell whether they were kept, and those that were.
    """

    worst: float = 0.0
    decided: float = 0.0
    kept: tuple[tuple[int, int], ...] = field(default=())

    def __add__(self, other: Fit) -> Fit:
        """Both together."""
        pairs = itertools.zip_longest(self.kept, other.kept, fillvalue=(0, 0))
        kept = tuple((a[0] + b[0], a[1] + b[1]) for a, b in pairs)
        return Fit(max(self.worst, other.worst), max(self.decided, other.decided), kept)


def slerp_shares(first: Tensor, other: Tensor, t: float) -> tuple[float, float]:
    """How much of each of two tensors lies at `t` of the arc between them (Shoemake 1985); `1 - t` and `t` where they
    are nearly collinear or one is zero."""
    lengths = math.sqrt(_dot(first, first) * _dot(other, other))
    cosine = max(-1.0, min(1.0, _dot(first, other) / lengths)) if lengths else 1.0
    if abs(cosine) > COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def stock_ratio(base: Tensor, tensors: Sequence[Tensor]) -> float:
    """How far model stock goes from the base to the mean (Jang et al. 2024): by the mean cosine of the task vectors."""
    count = len(tensors)
    gram = np.zeros((count, count))
    flat = [tensor.array().reshape(-1) for tensor in (base, *tensors)]
    for start in range(0, flat[0].size, CHUNK):
        origin, *others = (each[start : start + CHUNK].astype(np.float32) for each in flat)
        vectors = np.stack([(each - origin).astype(np.float64) for each in others])
        gram += vectors @ vectors.T
    lengths = np.sqrt(np.diag(gram))
    cosines = [
        max(-1.0, min(1.0, float(gram[a, b]) / max(float(lengths[a] * lengths[b]), 1e-6)))
        for a, b in itertools.combinations(range(count), 2)
    ]
    cosine = math.fsum(cosines) / max(len(cosines), 1)
    divisor = 1 + (count - 1) * cosine
    return 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor


def drawn(seed: int, name: str, place: int, density: float, shape: Sequence[int]) -> Array:
    """Which elements DARE keeps of the task vector of the model at `place`, each with probability `density`.

    The stream of random numbers is BLAKE3 over seed, place and name of the tensor, 32 bits an element: it is the same
    with every version of every library, and for each tensor by itself.
    """
    count = math.prod(shape)
    stream = blake3(f"dare {seed} {place} {name}".encode()).digest(length=4 * count) if count else b""
    stays: Array = np.frombuffer(stream, dtype="<u4") < density * 2**32
    return stays.reshape(tuple(shape))


def fit_ties(base: Tensor, tensors: Sequence[Tensor], output: Tensor, recipe: Recipe) -> Fit:
    """Hold a tensor against trim, elect and merge (Yadav et al. 2023)."""
    flat, got = _flat(base, tensors), output.array().reshape(-1)
    cuts = [_cut(flat[0], other, keep) for other, keep in zip(flat[1:], recipe.densities, strict=True)]
    seen = [0] * len(cuts)
    found = Fit()
    for start in range(0, got.size, CHUNK):
        origin, *vectors = _vectors(flat, start)
        masks, unsure = [], np.zeros(origin.shape, bool)
        for place, (vector, (threshold, ties)) in enumerate(zip(vectors, cuts, strict=True)):
            size = np.abs(vector)
            equal = size == threshold
            rank = np.cumsum(equal) + seen[place]
            masks.append((size > threshold) | (equal & (rank <= ties)))
            seen[place] += int(equal.sum())
            if threshold > 0:
                unsure |= np.abs(size - threshold) <= spacing(np.array(threshold), DTYPES[output.dtype])
        exact, lost, close = _summed(origin, vectors, masks, recipe, output.dtype)
        off = _off(got[start : start + CHUNK], exact, lost, output.dtype)
        sure = off[~(unsure | close)]
        found += Fit(float(off.max(initial=0.0)), float(sure.max(initial=0.0)))
    return found


def fit_dare(
    base: Tensor, tensors: Sequence[Tensor], output: Tensor, recipe: Recipe, masks: Sequence[Array] | None
) -> Fit:
    """Hold a tensor against drop and rescale (Yu et al. 2024), with what was kept or, element by element, with every
    choice of what could have been: then it also counts what was kept, where the outcome tells."""
    flat, got = _flat(base, tensors), output.array().reshape(-1)
    scaled = replace(recipe, weights=[w / keep for w, keep in zip(recipe.weights, recipe.densities, strict=True)])
    divisors = list(recipe.weights)
    found = Fit()
    for start in range(0, got.size, CHUNK):
        origin, *vectors = _vectors(flat, start)
        here = slice(start, start + CHUNK)
        if masks is not None:
            chosen = [mask.reshape(-1)[here] for mask in masks]
            exact, lost, close = _summed(origin, vectors, chosen, scaled, output.dtype, divisors)
            off = _off(got[here], exact, lost, output.dtype)
            found += Fit(float(off.max(initial=0.0)), float(off[~close].max(initial=0.0)))
            continue
        found += _best_pattern(origin, vectors, got[here], scaled, output.dtype, divisors)
    return found


def _best_pattern(
    origin: Floats, vectors: Sequence[Floats], got: Array, recipe: Recipe, dtype: str, divisors: Sequence[float]
) -> Fit:
    patterns = list(itertools.product((False, True), repeat=len(vectors)))
    outcomes, offs = [], []
    unsure = np.zeros(origin.shape, bool)
    for pattern in patterns:
        masks = [np.full(origin.shape, kept) for kept in pattern]
        exact, lost, close = _summed(origin, vectors, masks, recipe, dtype, divisors)
        outcomes.append(exact)
        offs.append(_off(got, exact, lost, dtype))
        unsure |= close
    off = np.min(offs, axis=0)
    nearest = np.argmin(offs, axis=0)
    step = np.max(spacing(np.stack(outcomes), DTYPES[dtype]), axis=0)
    counted = []
    for place in range(len(vectors)):
        kept, dropped = (
            [at for at, pattern in enumerate(patterns) if pattern[place] is is_kept] for is_kept in (True, False)
        )
        apart = np.min([np.abs(outcomes[a] - outcomes[b]) for a in kept for b in dropped], axis=0)
        clear = apart > CLEAR * step
        counted.append((int(clear.sum()), int(np.isin(nearest[clear], kept).sum())))
    return Fit(float(off.max(initial=0.0)), float(off[~unsure].max(initial=0.0)), tuple(counted))


def _summed(
    origin: Floats,
    vectors: Sequence[Floats],
    masks: Sequence[Array],
    recipe: Recipe,
    dtype: str,
    divisors: Sequence[float] | None = None,
) -> tuple[Floats, Floats, Array]:
    """The merged elements, what float32 may lose of them, and where the elected sign hangs on a rounding."""
    shares = divisors or recipe.weights
    weighted = [np.where(mask, vector, 0.0) * w for vector, mask, w in zip(vectors, masks, recipe.weights, strict=True)]
    total = np.sum(weighted, axis=0)
    size = np.sum(np.abs(weighted), axis=0)
    close = np.zeros(origin.shape, bool)
    divisor = np.full(origin.shape, float(sum(shares)))
    if recipe.elect:
        close = (np.abs(total) <= size * 2.0 ** -(_digits(dtype))) & (size > 0)
        up = total >= 0
        agrees = [np.where(up, each > 0, each < 0) for each in weighted]
        total = np.sum([np.where(agree, each, 0.0) for each, agree in zip(weighted, agrees, strict=True)], axis=0)
        divisor = np.sum([agree * share for agree, share in zip(agrees, shares, strict=True)], axis=0)
        divisor = np.where(divisor == 0, 1.0, divisor)
    if recipe.normalize:
        with np.errstate(divide="ignore", invalid="ignore"):
            total, size = total / divisor, size / np.abs(divisor)
    lost = (np.abs(origin) + np.abs(recipe.scale) * size) * FP32_ROUNDING * (len(vectors) + 2)
    return origin + total * recipe.scale, lost, close


def _off(got: Array, exact: Floats, lost: Floats, dtype: str) -> Floats:
    values = got.astype(np.float64)
    steps = np.maximum(spacing(values, DTYPES[dtype]), spacing(exact, DTYPES[dtype]))
    off: Floats = np.maximum(np.abs(values - exact) - lost, 0.0) / steps
    return np.where(np.isfinite(off), off, np.inf)


def _flat(base: Tensor, tensors: Sequence[Tensor]) -> list[Array]:
    return [tensor.array().reshape(-1) for tensor in (base, *tensors)]


def _vectors(flat: Sequence[Array], start: int) -> list[Floats]:
    origin, *others = (each[start : start + CHUNK].astype(np.float32) for each in flat)
    return [origin.astype(np.float64), *((each - origin).astype(np.float64) for each in others)]


def _cut(base: Array, other: Array, density: float) -> tuple[float, int]:
    """The size from which an element of a task vector stays, and how many of exactly that size do."""
    if density >= 1 or not base.size:
        return -1.0, 0
    sizes = np.abs(other.astype(np.float32) - base.astype(np.float32))
    keep = max(1, int(density * sizes.size))
    threshold = float(np.partition(sizes, sizes.size - keep)[sizes.size - keep])
    return threshold, keep - int(np.sum(sizes > threshold))


def _digits(dtype: str) -> int:
    return {"BF16": 8, "F16": 11, "F8_E4M3": 4, "F8_E5M2": 3}.get(dtype, 22)


def _dot(first: Tensor, other: Tensor) -> float:
    one, two = first.array().reshape(-1), other.array().reshape(-1)
    sums = [
        _numbers(one[start : start + CHUNK]) @ _numbers(two[start : start + CHUNK])
        for start in range(0, one.size, CHUNK)
    ]
    return math.fsum(float(each) for each in sums)


def _numbers(values: Array) -> Floats:
    """Elements in float64."""
    return values.astype(np.float64)
