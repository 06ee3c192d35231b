"""Revs: what a person may type for a version, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.digests import Digest
from mreg.registry.revs import MalformedName, Rev, UnknownRev, check_ref_name, parse, resolve, suggest

from tests.histories import digest


@dataclass
class Known:
    """A registry as far as revs ask: `moves` are where a ref pointed, newest first."""

    versions: list[Digest] = field(default_factory=list)
    moves: dict[str, list[Digest | None]] = field(default_factory=dict)
    made_from: dict[Digest, list[Digest]] = field(default_factory=dict)

    def numbered(self, number: int) -> Digest | None:
        return self.versions[number - 1] if number <= len(self.versions) else None

    def ref(self, name: str, back: int) -> Digest | None:
        moves = self.moves.get(name, [])
        return moves[back] if back < len(moves) else None

    def starting(self, prefix: str) -> Sequence[Digest]:
        return [version for version in self.versions if version.startswith(prefix)]

    def parents(self, digest: Digest) -> Sequence[Digest]:
        return self.made_from.get(digest, [])

    def names(self) -> Sequence[str]:
        return [*self.moves, *(f"v{number}" for number in range(1, len(self.versions) + 1))]


A, B, C, D = (Digest(letter * 64) for letter in "abcd")
LIKE_A = Digest("a" * 63 + "b")

KNOWN = Known(
    versions=[A, B, C, D, LIKE_A],
    moves={"prod": [D, A], "chat/base": [B], "gone": [None, B], "cccccc": [A]},
    made_from={D: [B, C], C: [B], B: [A]},
)


@pytest.mark.parametrize(
    ("rev", "meant"),
    [
        ("v1", A),
        ("v4", D),
        ("v4~1", B),
        ("v4~", B),
        ("v4~2", A),
        ("v4~~", A),
        ("v4^", B),
        ("v4^2", C),
        ("v4^2~1", B),
        ("v4^2^1~1", A),
        ("v4~0", D),
        ("v4^0", D),
        ("prod", D),
        ("prod@{0}", D),
        ("prod@{1}", A),
        ("prod^2", C),
        ("chat/base", B),
        ("gone@{1}", B),
        ("b" * 6, B),
        ("d" * 64, D),
        ("d" * 6 + "^2", C),
        ("a" * 63 + "b", LIKE_A),
    ],
)
def test_a_rev_names_a_version(rev: str, meant: Digest):
    assert meant == resolve(rev, KNOWN)


def test_a_ref_that_looks_like_a_digest_is_a_ref():
    assert A == resolve("cccccc", KNOWN)


@pytest.mark.parametrize(
    ("rev", "said"),
    [
        ("v9", "no version is called 'v9'.*did you mean v"),
        ("v99999999999999999999", "no version"),
        ("prd", "no version is called 'prd'.*did you mean prod"),
        ("zzz", "no version is called 'zzz'.*mreg list"),
        ("prod@{2}", "prod has not moved 2 times"),
        ("gone", "no version is called 'gone'"),
        ("v1@{1}", "only refs move"),
        ("v1~1", "goes too far up: version aaaaaaaaaaaa has 0 parents"),
        ("v4~9", "goes too far up"),
        ("v4~999999999", "goes too far up"),
        ("v4^3", "has 2 parents"),
        ("v2^2", "has 1 parent:"),
        ("aaaaaa", "aaaaaa begins 2 digests.*more digits"),
        ("eeeeee", "no version"),
        ("bbbbb", "no version"),
        ("v0", "no version"),
        ("v01", "no version"),
    ],
)
def test_a_rev_that_names_nothing_says_what_to_do(rev: str, said: str):
    with pytest.raises(UnknownRev, match=said):
        resolve(rev, KNOWN)


@pytest.mark.parametrize(
    "text", ["", "~1", "^", "@{1}", "v1 ", "v1~x", "a b", "prod@{x}", "prod@{1", "v1@{1}@{1}", "\n"]
)
def test_what_cannot_be_a_rev_is_malformed(text: str):
    with pytest.raises(MalformedName, match="is not a rev"):
        resolve(text, KNOWN)


_BASES = st.text("abcdefv0123456789._/-", min_size=1, max_size=12)
_WALKS = st.lists(st.tuples(st.sampled_from("~^"), st.integers(0, 999)), max_size=4)


@given(_BASES, st.integers(0, 99), _WALKS)
def test_a_rev_put_together_comes_apart_again(base: str, back: int, walk: list[tuple[str, int]]):
    text = f"{base}@{{{back}}}" + "".join(f"{sign}{count}" for sign, count in walk)

    assert Rev(base, back, tuple(walk)) == parse(text)


@given(st.text(max_size=30) | st.from_regex(r"[av0-9~^@{}]{1,20}", fullmatch=True))
def test_any_text_resolves_or_is_refused_with_a_way_out(text: str):
    fix = ""
    try:
        found = resolve(text, KNOWN)
    except (UnknownRev, MalformedName) as error:
        fix = error.fix

    assert fix or found in KNOWN.versions


@given(st.integers(1, 40), st.integers(0, 45))
def test_tilde_n_is_n_first_parents(length: int, up: int):
    line = [digest(number) for number in range(1, length + 1)]
    known = Known(versions=line, made_from={child: [parent] for parent, child in pairwise(line)})
    if up < length:
        assert line[length - 1 - up] == resolve(f"v{length}~{up}", known) == resolve(f"v{length}" + "^" * up, known)
    else:
        with pytest.raises(UnknownRev):
            resolve(f"v{length}~{up}", known)


@pytest.mark.parametrize("name", ["prod", "chat/base", "a", "0", "a" * 128, "v1.5", "abcdef", "a.b-c_d/e"])
def test_names_that_a_ref_may_have(name: str):
    assert name == check_ref_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "Prod", "a b", "../up", "a..b", "a/", "/a", "-a", ".a", "v1", "v20", "a" * 129, "é", "a\n", "a@{1}", "f" * 64],
)
def test_names_that_a_ref_may_not_have(name: str):
    with pytest.raises(MalformedName):
        check_ref_name(name)


@given(st.text(max_size=200))
def test_a_ref_name_that_is_accepted_can_be_typed_as_a_rev(name: str):
    try:
        check_ref_name(name)
    except MalformedName:
        return
    assert A == resolve(name, Known(versions=[A], moves={name: [A]}))


def test_a_suggestion_is_the_nearest_name():
    assert "did you mean prod? `mreg list`" == suggest("prdo", ["prod", "base"], "`mreg list`")
    assert "`mreg list`" == suggest("xyz", ["prod", "base"], "`mreg list`")
