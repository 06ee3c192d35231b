"""How many singular values of a matrix lie above a floor, from what it does to a few random vectors. Pure.

A randomized range finder (Halko, Martinsson and Tropp 2011): the matrix is never held, but gone over a few times, a
band of rows at a time. It only answers where nothing is left to doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Rows = Callable[[], Iterator[Floats]]
"""The bands of rows of a matrix, from the first on, as often as asked."""

WIDTH = 80
"""Directions that are looked for."""

PROBES = 8
"""Vectors by which the largest of the other directions is found."""

ROUNDS = 4
"""Times that they go through the matrix and back: then they tell it from below, to within some percent."""

SAFETY = 1.3
"""How much larger than found it is taken to be."""


def count_above(rows: Rows, columns: int, floor: Callable[[float], float]) -> int | None:
    """The singular values above `floor(the largest one)`; None where there may be more than a sketch can tell.

    Law: an answer is that of all singular values, unless a direction escaped every one of the random vectors.
    """
    chosen: Any = np.random.default_rng(0)
    sketch = np.zeros((columns, WIDTH))
    start = chosen.normal(size=(columns, WIDTH))
    for band in rows():
        sketch += band.T @ (band @ start)
    if not np.isfinite(sketch).all():
        return None
    basis = np.linalg.qr(sketch)[0]
    probes = _beside(basis, chosen.normal(size=(columns, PROBES)))
    inner = np.zeros((WIDTH, WIDTH))
    found, largest_left = np.zeros(WIDTH), 0.0
    for turn in range(ROUNDS):
        after, lengths = np.zeros_like(probes), np.zeros(PROBES)
        for band in rows():
            if turn == 0:
                within = band @ basis
                inner += within.T @ within
            through = band @ probes
            lengths += np.sum(through**2, axis=0)
            after += band.T @ through
        if turn == 0:
            found = np.sqrt(np.clip(np.linalg.eigvalsh(inner), 0, None))[::-1]
            if found[-1] > floor(float(found[0])):
                return None
        largest_left = math.sqrt(float(lengths.max()))
        probes = _beside(basis, after)
    least, beyond = floor(float(found[0])), SAFETY * largest_left
    above = int(np.sum(found > least))
    # What is left may add to a direction that was found, and make it one more above the floor.
    unsure = np.sum((found <= least) & (found**2 + beyond**2 > least**2))
    return None if beyond >= least or unsure else above


def _beside(basis: Floats, vectors: Floats) -> Floats:
    """Orthonormal vectors of the same span, less what lies in the basis."""
    left = vectors - basis @ (basis.T @ vectors)
    result: Floats = np.linalg.qr(left - basis @ (basis.T @ left))[0]
    return result
