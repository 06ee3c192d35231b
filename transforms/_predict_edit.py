"""An edit as predictions: a matrix with a few directions added, which are found again in what came out."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from mreg.registry.models.weights import same_bytes
from mreg.transforms._predicting import IN_F32, prediction, shared

if TYPE_CHECKING:
    from mreg.registry.models.weights import Array
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

MOST = 1 << 16
"""Numbers that the directions of a matrix may take: they stand in the head of its object."""

LARGEST = 1 << 26
"""Elements of a matrix beyond which the search would take too much memory."""

SPARE, TURNS, FINEST = 8, 4, 10
"""Directions to search beyond those wanted, how often each factor is fitted, and the powers of two that weigh apart."""


def predictions(made: Made) -> Iterator[tuple[str, Prediction]]:
    """What each matrix is that an edit changed, as far as its directions are few."""
    source = made.inputs["source"][0]
    for name in shared(made.output, [source]):
        before, after = source.tensor(name), made.output.tensor(name)
        if len(before.shape) != 2 or same_bytes(before.data, after.data):
            continue
        rank = _told(made, name)
        rows, columns = before.shape
        if not 0 < rank < min(rows, columns) or rank * (rows + columns) > MOST or rows * columns > LARGEST:
            continue
        change = after.array().astype(np.float32) - before.array().astype(np.float32)
        if np.isfinite(change).all():
            left, right = directions(after.array().astype(np.float32), change, rank)
            factors = {"left": _text(left), "right": _text(right)}
            yield name, prediction("factors", [(source, name)], {**IN_F32, "rank": rank, **factors})


def _told(made: Made, name: str) -> int:
    ranks, edits = made.facts.get("rank"), made.facts.get("edits")
    rank = ranks.get(name, edits) if isinstance(ranks, dict) else edits
    return rank if type(rank) is int else 1


def directions(after: Array, change: Array, rank: int) -> tuple[Array, Array]:
    """Factors of so many rows each: `change` is near `leftᵀ @ right`, and nearest where `after` was rounded least.

    They begin as the largest singular directions, which are found in the span of a few random ones (Halko et al. 2011).
    A step of rounding is as large as its weight, so that small weights tell the change best: the factors are fitted in
    turns, by least squares over these steps. It does not matter that the bits depend on the machine: they are stored.
    """
    # A fixed seed: the same edit is stored the same way.
    width = min(rank + SPARE, *change.shape)
    span = change @ np.random.default_rng(0).standard_normal((change.shape[1], width)).astype(np.float32)
    for _ in range(2):
        basis = np.linalg.qr(span)[0]
        span = change @ (change.T @ basis)
    basis = np.linalg.qr(span)[0]
    u, s, v = np.linalg.svd(basis.T @ change, full_matrices=False)
    left, right = (basis @ u[:, :rank]).T, s[:rank, None] * v[:rank]
    exponents = np.frexp(after)[1]
    certain = np.ldexp(np.float32(1), 2 * np.clip(exponents.max() - exponents, 0, FINEST))
    for _ in range(TURNS):
        left = _fitted(certain, certain * change, right)
        right = _fitted(certain.T, (certain * change).T, left)
    return left, right


def _fitted(certain: Array, weighted: Array, factor: Array) -> Array:
    """The other factor, each row of the matrix by itself."""
    rank = len(factor)
    squares = (factor[:, None] * factor[None]).reshape(rank * rank, -1)
    grams = (certain @ squares.T).reshape(-1, rank, rank).astype(np.float64)
    sides = (weighted @ factor.T)[..., None].astype(np.float64)
    # A row that nothing is known of stays zero.
    result: Array = (np.linalg.pinv(grams, hermitian=True) @ sides)[..., 0].T.astype(np.float32)
    return result


def _text(factor: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(factor, "<f4").tobytes()).decode()
