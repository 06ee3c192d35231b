"""Refs: names that move, with a history that can be walked back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.references import earlier
from mreg.registry.revs import MalformedName, UnknownRev

from tests.histories import digest, imported

A, B, C = (digest(number) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions v1 to v4; every test has a ref of its own."""
    registry = Registry.init(tmp_path_factory.mktemp("registry"))
    for number in range(1, 5):
        registry.log.append(imported(number))
    return registry


def at(registry: Registry, name: str) -> str:
    return registry.refs()[name].name


def path(registry: Registry, name: str) -> list[str | None]:
    """Where a ref pointed, oldest first."""
    return [move["new_version"] for move in reversed(registry.ref_log(name))]


def test_a_ref_is_set_and_moved(registry: Registry):
    first = registry.set_ref("set", "v1", message="first")
    second = registry.set_ref("set", "v2")

    assert (None, "v1") == (first.old, str(first.new))
    assert ("v1", "v2") == (str(second.old), str(second.new))
    assert "v2" == at(registry, "set")
    assert ["first", ""] == [move["message"] for move in reversed(registry.ref_log("set"))]
    assert [first.event, second.event] == [move["seq"] for move in reversed(registry.ref_log("set"))]


def test_a_ref_that_is_there_already_is_not_moved(registry: Registry):
    registry.set_ref("still", "v1")
    before = len(registry.events())

    assert registry.set_ref("still", "v1").event is None
    assert before == len(registry.events())


def test_a_rollback_goes_back_and_then_further_back(registry: Registry):
    for rev in ("v1", "v2", "v3"):
        registry.set_ref("back", rev)
    first, second = registry.rollback("back"), registry.rollback("back")

    assert ("v3", "v2") == (str(first.old), str(first.new))
    assert ("v2", "v1") == (str(second.old), str(second.new))
    with pytest.raises(Refused, match="back has nowhere to go back to"):
        registry.rollback("back")
    assert ["v1", "v2", "v3", "v2", "v1"] == path(registry, "back")
    assert "rollback" == registry.ref_log("back")[0]["reason"]


def test_what_was_rolled_back_over_is_not_gone_back_to(registry: Registry):
    registry.set_ref("over", "v1")
    registry.set_ref("over", "v2")
    registry.rollback("over")
    registry.set_ref("over", "v3")

    assert "v1" == str(registry.rollback("over").new)


def test_a_rollback_to_a_version_goes_only_where_the_ref_once_was(registry: Registry):
    for rev in ("v1", "v2", "v3"):
        registry.set_ref("to", rev)

    assert "v1" == str(registry.rollback("to", to="v1").new)
    assert "v3" == str(registry.rollback("to", to="v3", message="it was good after all").new)
    with pytest.raises(Refused, match="to never was at v4"):
        registry.rollback("to", to="v4")
    assert registry.rollback("to", to="v3").event is None


def test_a_deleted_ref_comes_back_with_a_rollback(registry: Registry):
    registry.set_ref("deleted", "v1")
    gone = registry.delete_ref("deleted", message="a mistake")

    assert ("v1", None) == (str(gone.old), gone.new)
    assert "deleted" not in registry.refs()
    assert "v1" == str(registry.version("deleted@{1}"))
    assert "v1" == str(registry.rollback("deleted").new)
    assert "v1" == at(registry, "deleted")


@pytest.mark.parametrize("name", ["never", "unseen"])
def test_a_ref_that_never_was_is_neither_deleted_nor_rolled_back(registry: Registry, name: str):
    registry.set_ref("nevermind", "v1")
    for attempt in (registry.delete_ref, registry.rollback, registry.ref_log):
        with pytest.raises(UnknownRev, match=f"no ref is called '{name}'"):
            attempt(name)


def test_a_ref_is_not_deleted_twice(registry: Registry):
    registry.set_ref("twice", "v1")
    registry.delete_ref("twice")

    with pytest.raises(UnknownRev):
        registry.delete_ref("twice")


def test_a_bad_name_moves_nothing(registry: Registry):
    before = len(registry.events())
    for name in ("v7", "../up", "A"):
        with pytest.raises(MalformedName):
            registry.set_ref(name, "v1")

    assert before == len(registry.events())


def test_refs_name_versions_with_their_history(registry: Registry):
    registry.set_ref("named", "v1")
    registry.set_ref("named", "v2")

    assert ["v2", "v1"] == [str(registry.version(rev)) for rev in ("named", "named@{1}")]
    with pytest.raises(UnknownRev, match="has not moved 2 times"):
        registry.version("named@{2}")


@pytest.mark.parametrize(
    ("moves", "target"),
    [
        ([("set", A), ("set", B)], A),
        ([("set", A), ("apply", B), ("import", C), ("rollback", B)], A),
        ([("set", A), ("set", B), ("set", A)], B),
        ([("set", A), ("set", B), ("set", A), ("rollback", B)], A),
        ([("set", A), ("delete", None)], A),
        ([("set", A), ("delete", None), ("set", B)], A),
        ([("set", A), ("set", B), ("delete", None), ("rollback", B)], A),
        ([("set", A), ("set", B), ("rollback", A), ("set", C)], A),
        ([("set", A), ("set", B), ("rollback", A), ("rollback", B)], A),
    ],
)
def test_where_a_rollback_goes(moves: list[tuple[str, Digest | None]], target: Digest):
    assert target == earlier("prod", moves)


@given(st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=8))
def test_rolling_back_again_and_again_visits_every_place_backwards(places: list[Digest]):
    moves: list[tuple[str, Digest | None]] = [("set", place) for place in places]
    visited = []
    while True:
        try:
            visited.append(earlier("prod", moves))
        except Refused:
            break
        moves.append(("rollback", visited[-1]))

    distinct = [place for at, place in enumerate(places) if at == 0 or place != places[at - 1]]
    assert distinct[-2::-1] == visited
