"""Curves: what was measured at which step, as facts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Point = tuple[int, float]

MOST = 200
"""Points of a curve that are kept."""


def facts_of(name: str, curve: Sequence[Point]) -> dict[str, Any]:
    """The first and the last value of a curve that has any, and the curve: `losses`, or such as `reward_curve`."""
    plural = "losses" if name == "loss" else f"{name}_curve"
    return {f"first_{name}": curve[0][1], f"final_{name}": curve[-1][1], plural: thin(curve)}


def thin(curve: Sequence[Point]) -> list[Point]:
    """Every n-th point, and the last, so that at most MOST are left."""
    step = max(1, -(-len(curve) // (MOST - 1)))
    return [point for place, point in enumerate(curve) if place % step == 0 or place == len(curve) - 1]
