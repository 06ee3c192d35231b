"""Verdicts: how a replayed step compares with the recorded one. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mreg.registry.log.events import Content, StepJudged

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import WeightsChange

Verdict = Literal["bytes", "tensors", "close", "different", "failed", "not-attempted"]

N = TypeVar("N", int, float)

MOST_ULPS = 1 << 53
"""From here on JSON does not carry a whole number exactly; a distance that large says nothing more."""

ORDER: tuple[Verdict, ...] = ("bytes", "tensors", "close", "different", "failed", "not-attempted")
"""From strongest to weakest."""


def weakest(verdicts: Iterable[str]) -> str:
    """The verdict of a chain: that of its weakest step."""
    return max(verdicts, key=lambda verdict: ORDER.index(verdict), default="not-attempted")


def is_reproduced(verdict: str) -> bool:
    """Whether the verdict says that the recorded version came out again, within the tolerance."""
    return verdict in ("bytes", "tensors", "close")


def same(recorded: Content | Any, again: Content) -> Verdict | None:
    """`bytes` or `tensors` when the digests say so; None when the numbers have to be looked at."""
    if again.digest == recorded.digest:
        return "bytes"
    return "tensors" if again.weights == recorded.weights else None


def judge(change: WeightsChange, tolerance: float, order: Sequence[str] = ()) -> dict[str, Any]:
    """The verdict on weights that differ, with the numbers that decide: the fields of a StepJudged.

    `close` means the same tensors with the same shapes and dtypes, every one within a relative L2 distance of
    `tolerance`, and nothing infinite or NaN that was not so before. `order` has the names of the recorded tensors as
    the manifest lists them.
    """
    if not (change.changed or change.added or change.removed):
        return {"verdict": "different", "reason": "its weights differ in files whose tensors are not told apart"}
    within = all(
        tensor.dtype[0] == tensor.dtype[1]
        and tensor.rel_l2 is not None
        and tensor.rel_l2 <= tolerance
        and tensor.non_finite == 0
        for tensor in change.changed
    )
    same_names = not change.added and not change.removed
    reason = "" if same_names else f"{len(change.added)} tensors more, {len(change.removed)} fewer"
    judged: dict[str, Any] = {
        "verdict": "close" if within and same_names else "different",
        "reason": reason,
        "changed_tensors": len(change.changed),
        "first_tensor": _first(change, order),
    }
    if change.changed:
        # What cannot be compared is farthest.
        worst = max(change.changed, key=lambda tensor: math.inf if tensor.rel_l2 is None else tensor.rel_l2)
        ulps = _largest(tensor.max_ulps for tensor in change.changed)
        judged |= {
            "max_abs": _largest(tensor.max_abs for tensor in change.changed),
            "max_rel": _largest(tensor.max_rel for tensor in change.changed),
            "max_ulps": ulps if ulps is not None and ulps < MOST_ULPS else None,
            "rel_l2": worst.rel_l2,
            "worst_tensor": worst.name,
        }
    return judged


def _first(change: WeightsChange, order: Sequence[str]) -> str | None:
    """The first tensor that differs or is gone; where there is none, the first that came."""
    apart = {tensor.name for tensor in change.changed} | set(change.removed)
    return next(iter([*(name for name in order if name in apart), *sorted(apart), *change.added]), None)


def _largest(values: Iterable[N | None]) -> N | None:
    return max((value for value in values if value is not None), default=None)


def diverges(verdict: str) -> bool:
    """Whether what came out is not, bit for bit, what later steps once worked on."""
    return verdict not in ("bytes", "tensors")


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two environments differ, by dotted name: (recorded, now)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*recorded, *now}):
        before, after = recorded.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.update(differences(before, after, f"{prefix}{name}."))
        elif before != after:
            found[f"{prefix}{name}"] = (before, after)
    return found


def unattempted(version: Any, transform: str, reason: str) -> StepJudged:
    """A step that was not done again, and why."""
    return StepJudged(version=version, transform=transform, verdict="not-attempted", reason=reason)
