"""The lineage graph, with cycles and all."""

from __future__ import annotations

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.chains.graph import Edge, Lineage, reach
from mreg.registry.digests import Digest

from tests.histories import digest

A, B, C, D = (digest(number) for number in range(1, 5))


def edge(parent: Digest, child: Digest, transform: str = "prune", role: str = "source") -> Edge:
    return Edge(parent, child, transform, role, f"{parent[-1]}-{child[-1]}")


def lineage(centre: Digest, *edges: Edge) -> Lineage:
    ends = {centre, *(end for one in edges for end in (one.parent, one.child))}
    return Lineage(centre, edges, {end: number for number, end in enumerate(sorted(ends), start=1)})


def test_ancestors_and_descendants_are_told_apart_nearest_first():
    graph = lineage(C, edge(A, B), edge(B, C), edge(C, D))

    assert [B, A] == graph.ancestors()
    assert [D] == graph.descendants()


def test_parents_come_in_the_order_of_the_inputs_and_once():
    graph = lineage(C, edge(B, C), edge(A, C, role="others"), edge(B, C, role="others"))

    assert [B, A] == graph.parents(C)
    assert [] == graph.parents(A)


def test_a_cycle_is_walked_once():
    graph = lineage(A, edge(A, B), edge(B, A), edge(A, A))

    assert [B] == graph.ancestors() == graph.descendants()


def test_a_part_keeps_only_what_leads_up_or_down():
    graph = lineage(B, edge(A, B), edge(B, C), edge(A, D), edge(D, C))

    up, down = graph.part(up=True, down=False), graph.part(up=False, down=True)
    assert [edge(A, B)] == up.edges
    assert {A, B} == up.numbers.keys()
    assert [edge(B, C)] == down.edges
    assert {B, C} == down.numbers.keys()
    assert {B} == graph.part(up=False, down=False).numbers.keys()


_EDGES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), max_size=20)


@given(_EDGES, st.integers(1, 7))
def test_it_reaches_what_networkx_reaches(pairs: list[tuple[int, int]], centre: int):
    graph = lineage(digest(centre), *(edge(digest(parent), digest(child)) for parent, child in pairs))
    theirs = graph.to_networkx()

    assert nx.ancestors(theirs, graph.centre) == set(graph.ancestors())
    assert nx.descendants(theirs, graph.centre) == set(graph.descendants())
    assert len(pairs) == theirs.number_of_edges()


@given(_EDGES)
def test_reach_gives_the_nearest_first(pairs: list[tuple[int, int]]):
    near: dict[Digest, list[Digest]] = {}
    for parent, child in pairs:
        near.setdefault(digest(parent), []).append(digest(child))
    theirs = nx.DiGraph([(digest(parent), digest(child)) for parent, child in pairs])
    theirs.add_node(digest(1))
    far = nx.single_source_shortest_path_length(theirs, digest(1))
    found = reach(digest(1), lambda version: near.get(version, ()))

    assert sorted(far[version] for version in found) == [far[version] for version in found]
    assert len(found) == len(set(found)) == len(far) - 1


def test_the_networkx_graph_carries_what_a_drawing_needs():
    theirs = lineage(A, edge(A, B, "merge", "others")).to_networkx()

    assert {"version": "v1"} == theirs.nodes[A]
    assert [(A, B, {"transform": "merge", "role": "others", "run": "1-2"})] == list(theirs.edges(data=True))
