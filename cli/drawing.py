"""Graphs in text: the lanes beside a log, and a tree of descent. Pure; nodes are whatever can be a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TypeVar

Node = TypeVar("Node")

# Which of the four directions a cell is connected to: up, down, left, right.
_CELLS = {
    (0, 0, 0, 0): " ", (1, 1, 0, 0): "│", (0, 0, 1, 1): "─", (1, 0, 0, 0): "│", (0, 1, 0, 0): "│",
    (1, 1, 0, 1): "├", (1, 1, 1, 0): "┤", (0, 1, 1, 1): "┬", (1, 0, 1, 1): "┴", (1, 1, 1, 1): "┼",
    (0, 1, 0, 1): "╭", (0, 1, 1, 0): "╮", (1, 0, 0, 1): "╰", (1, 0, 1, 0): "╯",
    (0, 0, 0, 1): "─", (0, 0, 1, 0): "─",
}  # fmt: skip

_DEEP = 12
"""From this depth on an only child is drawn below its parent instead of beside it, so that a chain stays narrow."""


class Lanes:
    """The lanes of a history drawn newest first. Each lane waits for the version that it leads down to."""

    def __init__(self) -> None:
        self._lanes: list[object] = []
        # Where a version without parents was just drawn: what stands right below it would read as its parent.
        self._ended: int | None = None

    def place(self, node: Node, parents: Sequence[Node]) -> tuple[str, list[str], str]:
        """Draw a version: what its own line begins with, the lines below it in which lanes join or fork, and what every
        further line beside it begins with.

        A version must come after everything that was made from it.
        """
        if node in self._lanes:
            column = self._lanes.index(node)
        else:
            column = self._free(avoid=self._ended)
            self._lanes[column] = node
        self._ended = None if parents else column
        own = "".join("* " if place == column else _bar(lane) for place, lane in enumerate(self._lanes))
        bends = []
        first, *others = dict.fromkeys(parents) or (None,)
        before = self._active()
        self._lanes[column] = None
        targets = []
        if first in self._lanes and first is not None:
            lane = self._lanes.index(first)
            targets.append(lane)
            if lane > column:
                # Of two lanes to one version the left one goes on, and in a line of its own: a fork in the same line
                # would leave open which of the two the right one joins.
                self._lanes[column], self._lanes[lane] = first, None
                bends.append(self._bend(before, column, targets))
                before, targets = self._active(), []
        else:
            self._lanes[column] = first
        for parent in others:
            if parent not in self._lanes:
                self._lanes[self._free(start=column)] = parent
            if self._lanes.index(parent) != column:
                targets.append(self._lanes.index(parent))
        if targets:
            bends.append(self._bend(before, column, targets))
        while self._lanes and self._lanes[-1] is None:
            self._lanes.pop()
        return own.rstrip(), bends, "".join(map(_bar, self._lanes)).rstrip()

    def _active(self) -> list[bool]:
        return [lane is not None for lane in self._lanes]

    def _free(self, start: int = 0, avoid: int | None = None) -> int:
        """The first lane from `start` on that waits for nothing; a new one if need be."""
        for place in count(start):
            if place == len(self._lanes):
                self._lanes.append(None)
            if self._lanes[place] is None and place != avoid:
                return place
        raise AssertionError("unreachable")

    def _bend(self, before: Sequence[bool], column: int, targets: Sequence[int]) -> str:
        """The line in which the lane of a version joins or opens other lanes."""
        joined = {column, *targets}
        first, last = min(joined), max(joined)
        drawn = ""
        for place, lane in enumerate(self._lanes):
            up, down = place < len(before) and before[place], lane is not None
            inside = first <= place <= last
            if place in joined:
                cell = _CELLS[up, down, place > first, place < last]
            else:
                # A lane that is only crossed keeps its line, so that no joint is seen where there is none.
                cell = "│" if up else "─" if inside else " "
            drawn += cell + ("─" if first <= place < last else " ")
        return drawn.rstrip()


def _bar(lane: object) -> str:
    return "  " if lane is None else "│ "


def tree(
    roots: Sequence[Node], below: Callable[[Node], Sequence[Node]], label: Callable[[Node, Node | None, bool], str]
) -> Iterator[str]:
    """The lines of a forest. A node that comes a second time is labelled as such and not opened again.

    `label` is given the node, the one above it, and whether it was shown before.
    """
    seen: set[Node] = set()
    # Node, the one above, what its own line and what the lines below it begin with, depth.
    waiting: list[tuple[Node, Node | None, str, str, int]] = [(root, None, "", "", 0) for root in reversed(roots)]
    while waiting:
        node, above, head, margin, depth = waiting.pop()
        again = node in seen
        yield head + label(node, above, again)
        if again:
            continue
        seen.add(node)
        children = list(below(node))
        if len(children) == 1 and depth >= _DEEP:
            waiting.append((children[0], node, f"{margin}↓ ", margin, depth + 1))
            continue
        for place, child in reversed(list(enumerate(children))):
            is_last = place == len(children) - 1
            waiting.append(
                (child, node, margin + ("└─ " if is_last else "├─ "), margin + ("   " if is_last else "│  "), depth + 1)
            )
