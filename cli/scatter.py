"""Points in a plane as plain text, for a terminal and for a pipe. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 60, 14


@dataclass(frozen=True)
class Point:
    """A labelled point; what is `marked` is drawn with a star."""

    x: float
    y: float
    label: str
    marked: bool = False


def draw(points: Sequence[Point], x: str, y: str, spelled_x: Sequence[str], spelled_y: Sequence[str]) -> list[str]:
    """The lines of a plot, the axes named `x` and `y`; `spelled_…` are the least and the greatest of each."""
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    # Marked points are drawn last, so that nothing covers them.
    for point in sorted(points, key=lambda point: point.marked):
        column = _place(point.x, [one.x for one in points], WIDTH - 1)
        row = HEIGHT - 1 - _place(point.y, [one.y for one in points], HEIGHT - 1)
        words = ("*" if point.marked else "o") + " " + point.label
        # At the right edge the label stands before the point.
        start = column if column + len(words) <= WIDTH else max(0, column - len(words) + 1)
        if start != column:
            words = f"{point.label} {words[0]}"
        for offset, letter in enumerate(words[: WIDTH - start]):
            grid[row][start + offset] = letter
    low, high = spelled_y
    edge = max(len(low), len(high))
    lines = [y]
    for place, row_of in enumerate(grid):
        tick = high if place == 0 else low if place == HEIGHT - 1 else ""
        lines.append(f"{tick.rjust(edge)} |{''.join(row_of)}".rstrip())
    lines.append(f"{' ' * edge} +{'-' * WIDTH}")
    least, most = spelled_x
    lines.append(f"{' ' * edge}  {least}{most.rjust(WIDTH - len(least))}")
    lines.append(f"{' ' * edge}  {x.center(WIDTH)}".rstrip())
    return lines


def _place(value: float, values: Sequence[float], most: int) -> int:
    low, high = min(values), max(values)
    return round((value - low) / (high - low) * most) if high > low else most // 2
