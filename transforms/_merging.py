"""The arithmetic of merging, one pure function a method: the tensors of one name in, the merged tensor out.

All of them compute in float32, element by element and in the order of the models, with each operation rounded by
itself. So the bits are the same on every machine, which a fused multiply-add or a parallel sum would not give. The few
sums over a whole tensor (slerp, model stock) are made in float64 in an order that is fixed too.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Mask = Callable[[int], "torch.Tensor"]
"""Which elements stay of the task vector of the model with this place: booleans of the tensor's shape."""

COLLINEAR = 0.9995
"""The cosine from which two tensors are interpolated straight, since the sine of their angle is no good divisor."""

CHUNK = 1 << 20


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum (Wortsman et al. 2022)."""
    import torch

    total = torch.zeros(tensors[0].shape, dtype=torch.float32)
    for tensor, weight in zip(tensors, weights, strict=True):
        product = tensor.to(torch.float32) * weight
        total = total + product
    return total


def slerp(first: torch.Tensor, other: torch.Tensor, t: float) -> torch.Tensor:
    """The point at `t` of the arc from `first` to `other` (Shoemake 1985), the tensors taken as vectors.

    Nearly collinear tensors, and those of length 0, are interpolated straight.
    """
    lengths = math.sqrt(dot(first, first)) * math.sqrt(dot(other, other))
    cosine = max(-1.0, min(1.0, dot(first, other) / lengths)) if lengths else 1.0
    if abs(cosine) > COLLINEAR:
        return linear((first, other), (1 - t, t))
    angle = math.acos(cosine)
    shares = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    return linear((first, other), shares)


def task_arithmetic(
    base: torch.Tensor, tensors: Sequence[torch.Tensor], weights: Sequence[float], scale: float, *, normalize: bool
) -> torch.Tensor:
    """`base + scale * sum(weight * (tensor - base))` (Ilharco et al. 2023); `normalize` divides by the weights."""
    return base + combined(task_vectors(base, tensors), weights, scale, elect=False, normalize=normalize)


def ties(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float,
    *,
    normalize: bool,
) -> torch.Tensor:
    """Trim, elect a sign, and merge what agrees with it (Yadav et al. 2023)."""
    trimmed = (largest(vector, keep) for vector, keep in zip(task_vectors(base, tensors), densities, strict=True))
    return base + combined(trimmed, weights, scale, elect=True, normalize=normalize)


def dare(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    scale: float,
    mask: Mask,
    *,
    elect: bool,
    normalize: bool,
) -> torch.Tensor:
    """Drop at random, and rescale what stays by 1 / density (Yu et al. 2024); `elect` goes on as TIES does."""
    import torch

    dropped = (
        torch.where(mask(place), vector / keep, torch.zeros_like(vector)) if keep < 1 else vector
        for place, (vector, keep) in enumerate(zip(task_vectors(base, tensors), densities, strict=True))
    )
    return base + combined(dropped, weights, scale, elect=elect, normalize=normalize)


def model_stock(base: torch.Tensor, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The mean pulled towards the base, and by how much it was not (Jang et al. 2024): the ratio t, for each tensor.

    With the mean cosine c of the angles between N task vectors, `t = N c / (1 + (N - 1) c)`, and the result is
    `t * mean + (1 - t) * base`. Where that has no value, t is 0.
    """
    vectors = list(task_vectors(base, tensors))
    lengths = [math.sqrt(dot(vector, vector)) for vector in vectors]
    cosines = [
        max(-1.0, min(1.0, dot(vectors[a], vectors[b]) / max(lengths[a] * lengths[b], 1e-6)))
        for a in range(len(vectors))
        for b in range(a + 1, len(vectors))
    ]
    cosine, count = math.fsum(cosines) / len(cosines), len(vectors)
    divisor = 1 + (count - 1) * cosine
    ratio = 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor
    return linear((*tensors, base), (*[ratio / count] * count, 1 - ratio)), ratio


def task_vectors(base: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What each model learnt on top of the base."""
    import torch

    yield from (tensor.to(torch.float32) - base.to(torch.float32) for tensor in tensors)


def combined(
    vectors: Iterator[torch.Tensor], weights: Sequence[float], scale: float, *, elect: bool, normalize: bool
) -> torch.Tensor:
    """The weighted task vectors as one. With `elect`, only those count that have the sign of their sum, by element."""
    import torch

    weighted = [vector * weight for vector, weight in zip(vectors, weights, strict=True)]
    total = weighted[0]
    for vector in weighted[1:]:
        total = total + vector
    # One after the other: `sum` gives other bits from Python 3.12 on.
    divisor: Any = reduce(operator.add, weights)
    if elect:
        up = total >= 0
        # What is zero has no sign and agrees with nobody.
        agrees = [torch.where(up, vector > 0, vector < 0) for vector in weighted]
        total, divisor = torch.zeros_like(total), torch.zeros_like(total)
        for vector, weight, mask in zip(weighted, weights, agrees, strict=True):
            total = total + torch.where(mask, vector, torch.zeros_like(vector))
            divisor = divisor + mask.to(torch.float32) * weight
        divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
    if normalize:
        total = total / divisor
    return total * scale


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """The `density` largest of a tensor by magnitude, the rest zero; of equal ones the first stay, and at least one."""
    import torch

    if density >= 1 or not tensor.numel():
        return tensor
    flat = tensor.reshape(-1)
    keep = max(1, int(density * tensor.numel()))
    order = torch.argsort(flat.abs(), descending=True, stable=True)
    kept = torch.zeros_like(flat)
    kept[order[:keep]] = flat[order[:keep]]
    return kept.reshape(tensor.shape)


def drawn(seed: int, name: str, place: int, density: float, shape: Sequence[int]) -> torch.Tensor:
    """Which elements stay, each with probability `density`, independently; the same with every version of torch."""
    import torch
    from mreg.registry.proof import evidence_merge

    return torch.from_numpy(evidence_merge.drawn(seed, name, place, density, shape))


def dot(first: torch.Tensor, other: torch.Tensor) -> float:
    """The inner product of two tensors. Law: products of two float32 are exact in float64, and added in fixed pairs."""
    import torch

    sums = []
    one, two = first.reshape(-1), other.reshape(-1)
    for start in range(0, len(one), CHUNK):
        chunk = slice(start, start + CHUNK)
        values = one[chunk].to(torch.float64) * two[chunk].to(torch.float64)
        while len(values) > 1:
            half = len(values) // 2
            rest = values[2 * half :]
            values = torch.cat((values[:half] + values[half : 2 * half], rest))
        sums.append(float(values.sum()))
    return math.fsum(sums)
