"""Versions side by side: their scores by question, which are missing, and which version no other beats. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.measures import metrics

if TYPE_CHECKING:
    from mreg.registry.measures.scores import Score


@dataclass(frozen=True, slots=True)
class Column:
    """One question that was put to some of the versions, with its answers by version."""

    title: str
    metric: str
    data: str | None
    answers: Mapping[str, Score]

    def value(self, version: str) -> float | None:
        """What a version scored, where it was asked and gave a number."""
        score = self.answers.get(version)
        return None if score is None else score.value


def columns(scores: Sequence[Score], wanted: Sequence[str] = ()) -> list[Column]:
    """The questions, in the order in which they were first put; with `wanted`, those of these metrics only.

    Questions that read alike are told apart by the settings in which they differ.
    """
    asked: dict[tuple[object, ...], list[Score]] = {}
    for score in scores:
        if not wanted or score.metric in wanted:
            asked.setdefault(score.question, []).append(score)
    plain = [_title(several[0]) for several in asked.values()]
    found = []
    for several in asked.values():
        first = several[0]
        alike = [other[0] for other in asked.values() if _title(other[0]) == _title(first)]
        title = _title(first)
        if plain.count(title) > 1:
            names = {name for one in alike for name in one.settings}
            differing = [name for name in sorted(names) if len({repr(one.settings.get(name)) for one in alike}) > 1]
            title += " " + " ".join(f"{name}={first.settings.get(name)}" for name in differing)
        found.append(Column(title, first.metric, first.data, {one.version: one for one in several}))
    return found


def front(versions: Sequence[str], objectives: Sequence[Column]) -> frozenset[str]:
    """The Pareto front: the versions that no other is at least as good as in everything and better in something.

    All of them must have a value for every objective. Alike ones are on the front together.
    """
    points = {version: [_signed(column, version) for column in objectives] for version in versions}
    return frozenset(
        version for version, point in points.items() if not any(_beats(other, point) for other in points.values())
    )


def objectives(versions: Sequence[str], everything: Sequence[Column]) -> list[Column]:
    """The columns that every version has a value for; the number of parameters only repeats the size."""
    return [
        column
        for column in everything
        if column.metric != "parameters" and all(column.value(version) is not None for version in versions)
    ]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def _signed(column: Column, version: str) -> float:
    value = column.value(version)
    assert value is not None, "objectives has only columns without gaps"
    return value if metrics.metric(column.metric).better == "lower" else -value


def _title(score: Score) -> str:
    return score.name if metrics.metric(score.metric).against else score.name.partition(" from ")[0]
