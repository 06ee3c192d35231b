"""Whether a model differs from another by a few directions and rounding, as after a fused adapter or an edit. Pure."""

from __future__ import annotations

import math

import numpy as np
from mreg.registry.models.weights import Tensor, spacing
from mreg.registry.proof import evidence

BLOCK = 256
"""Rows and columns that are looked at: a part of a matrix of low rank has the same rank."""

LOW = 1 / 4
"""A delta of at most this part of the full rank was added as factors; training all weights gives nearly all of it."""

MOSTLY = 0.5
"""The part of a delta that its directions have to hold: what is sparse and small is no low-rank delta, though few
directions of it stand out."""


def directions(before: Tensor, after: Tensor) -> int | None:
    """The rank of what was added, where that and rounding is all there is; None where it is not.

    Rounding adds noise of variance `ulp² / 12` an element, of which no direction is stronger than about
    `√variance · (√m + √n)`, and all together no more than `m·n·variance`.
    """
    x = before.array()[:BLOCK, :BLOCK].astype(np.float64)
    y = after.array()[:BLOCK, :BLOCK].astype(np.float64)
    delta = y - x
    if not np.isfinite(delta).all():
        return None
    if not delta.any():
        return 0
    steps = spacing(y, evidence.DTYPES[after.dtype])
    if before.dtype != after.dtype:
        steps = np.maximum(steps, spacing(x, evidence.DTYPES[before.dtype]))
    variance = float(np.mean(steps**2)) / 12
    tall = delta if delta.shape[0] >= delta.shape[1] else delta.T
    # Roots of the eigenvalues, the largest first: less exact than singular values, and many times as quick.
    values = np.sqrt(np.clip(np.linalg.eigvalsh(tall.T @ tall), 0, None))[::-1]
    floor = max(2 * math.sqrt(variance) * sum(map(math.sqrt, delta.shape)), 1e-7 * float(values[0]))
    rank = int(np.sum(values > floor))
    whole, left = float(np.sum(values**2)), float(np.sum(values[rank:] ** 2))
    is_low = 0 < rank <= LOW * min(delta.shape) and left <= 2 * delta.size * variance + 1e-9 * whole
    return rank if is_low and left <= (1 - MOSTLY) * whole else None
