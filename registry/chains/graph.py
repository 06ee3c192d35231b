"""The lineage graph: who came from whom. Pure; the same model can be made twice, so it may hold cycles."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.digests import Digest

if TYPE_CHECKING:
    import networkx

Neighbours = Callable[[Digest], Iterable[Digest]]


@dataclass(frozen=True, slots=True)
class Edge:
    """`child` was made from `parent` by `transform`, in which the parent played `role`."""

    parent: Digest
    child: Digest
    transform: str
    role: str
    run: str


def reach(start: Digest, neighbours: Neighbours) -> list[Digest]:
    """All that can be reached from `start`, without it, nearest first; `neighbours` gives parents or children."""
    seen = {start}
    found: list[Digest] = []
    waiting = deque([start])
    while waiting:
        for near in neighbours(waiting.popleft()):
            if near not in seen:
                seen.add(near)
                found.append(near)
                waiting.append(near)
    return found


class Lineage:
    """The part of the graph around one version. `numbers` gives the `v…` number of every digest in it."""

    def __init__(self, centre: Digest, edges: Iterable[Edge], numbers: Mapping[Digest, int]) -> None:
        self.centre = centre
        self.edges = list(edges)
        self.numbers = numbers
        self._parents: dict[Digest, list[Digest]] = {}
        self._children: dict[Digest, list[Digest]] = {}
        for edge in self.edges:
            self._parents.setdefault(edge.child, []).append(edge.parent)
            self._children.setdefault(edge.parent, []).append(edge.child)

    def parents(self, version: Digest) -> list[Digest]:
        """What it was made from, in the order of the inputs, without repetition."""
        return list(dict.fromkeys(self._parents.get(version, ())))

    def children(self, version: Digest) -> list[Digest]:
        """What was made from it, in the order of the log."""
        return list(dict.fromkeys(self._children.get(version, ())))

    def ancestors(self) -> list[Digest]:
        """Everything that the centre came from, nearest first."""
        return reach(self.centre, self.parents)

    def descendants(self) -> list[Digest]:
        """Everything that came from the centre, nearest first."""
        return reach(self.centre, self.children)

    def part(self, *, up: bool, down: bool) -> Lineage:
        """Only the ancestors, only the descendants, or both, and the edges among them."""
        keep = {self.centre}
        keep.update(self.ancestors() if up else ())
        keep.update(self.descendants() if down else ())
        edges = [edge for edge in self.edges if edge.parent in keep and edge.child in keep]
        return Lineage(self.centre, edges, {digest: self.numbers[digest] for digest in keep})

    def to_networkx(self) -> networkx.MultiDiGraph[Digest]:
        """The same graph for networkx: nodes are digests, edges carry `transform`, `role` and `run`."""
        import networkx

        graph: networkx.MultiDiGraph[Digest] = networkx.MultiDiGraph()
        for digest, number in self.numbers.items():
            graph.add_node(digest, version=f"v{number}")
        for edge in self.edges:
            graph.add_edge(edge.parent, edge.child, transform=edge.transform, role=edge.role, run=edge.run)
        return graph
