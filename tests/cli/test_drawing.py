"""Graphs in text say neither more nor less than the graph."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from mreg.cli.drawing import Lanes, tree

Parents = dict[int, list[int]]


@st.composite
def histories(draw: st.DrawFn) -> Parents:
    """Versions by number, each with parents of lower numbers."""
    parents: Parents = {}
    for number in range(1, draw(st.integers(1, 14)) + 1):
        known = st.integers(1, number - 1) if number > 1 else st.nothing()
        parents[number] = draw(st.lists(known, max_size=3, unique=True)) if number > 1 else []
    return parents


def drawn(parents: Parents) -> list[tuple[int | None, str]]:
    """Every line of the drawing, with the version that stands on it."""
    lanes = Lanes()
    rows: list[tuple[int | None, str]] = []
    for number in sorted(parents, reverse=True):
        own, bends, _ = lanes.place(number, parents[number])
        rows += [(number, own), *((None, bend) for bend in bends)]
    return rows


def followed(rows: list[tuple[int | None, str]], start: int) -> set[int]:
    """Where one comes to by walking down the lanes from the version on line `start`."""
    column = rows[start][1].index("*")
    lanes, found, own_bends, bent = {column}, set(), True, None
    for number, row in rows[start + 1 :]:
        if number is not None:
            own_bends = False
            bent = row.index("*")
            if bent in lanes:
                found.add(number)
            lanes = {lane for lane in lanes if row[lane : lane + 1] == "│"}
            continue
        ends = {place for place in range(0, len(row), 2) if _is_joint(row, place)}
        if own_bends:
            lanes = (lanes - {column}) | {place for place in ends if row[place] in "├┤┬╭╮┼"}
        else:
            lanes = {bent if row[lane] in "╯╰┴" else lane for lane in lanes if bent is not None}
    return found


def _is_joint(row: str, place: int) -> bool:
    """Whether a cell takes part in the bend, and is not a lane that the bend crosses."""
    return row[place] in "├┤┬┴┼╭╮╰╯"


@given(histories())
def test_walking_down_the_lanes_from_a_version_leads_to_its_parents_and_nowhere_else(parents: Parents) -> None:
    rows = drawn(parents)

    walked = {number: followed(rows, line) for line, (number, _) in enumerate(rows) if number is not None}

    assert {number: set(above) for number, above in parents.items()} == walked


@given(histories())
def test_no_lane_is_left_over_at_the_end(parents: Parents) -> None:
    lanes = Lanes()

    *_, (_, _, beside) = (lanes.place(number, parents[number]) for number in sorted(parents, reverse=True))

    assert "" == beside


def test_a_star_stays_two_lanes_wide() -> None:
    parents: Parents = {1: [], 2: [1], 3: [1], 4: [1]}

    assert ["*", "│ *", "├─╯", "│ *", "├─╯", "*"] == [row for _, row in drawn(parents)]


def test_a_merge_opens_a_lane_and_the_common_parent_closes_it() -> None:
    parents: Parents = {1: [], 2: [1], 3: [1], 4: [2, 3]}

    assert ["*", "├─╮", "│ *", "* │", "├─╯", "*"] == [row for _, row in drawn(parents)]


def test_a_tree_shows_every_version_once_in_full() -> None:
    children = {1: [2, 3], 2: [4], 3: [4], 4: []}

    lines = list(tree([1], lambda node: children[node], lambda node, _, again: f"v{node}{' (above)' * again}"))

    assert ["v1", "├─ v2", "│  └─ v4", "└─ v3", "   └─ v4 (above)"] == lines


def test_a_long_chain_stays_narrow() -> None:
    lines = list(tree([0], lambda node: [node + 1] if node < 5000 else [], lambda node, *_: str(node)))

    assert 5001 == len(lines)
    assert max(map(len, lines)) < 50


def test_a_circle_ends() -> None:
    lines = list(tree(["a"], lambda node: {"a": ["b"], "b": ["a"]}[node], lambda node, _, again: node + "!" * again))

    assert ["a", "└─ b", "   └─ a!"] == lines
