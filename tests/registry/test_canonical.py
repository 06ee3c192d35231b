"""Canonical JSON is what RFC 8785 says, whichever way it was made, and what has no such form is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import canonical

TEXTS = st.text(max_size=12) | st.sampled_from(
    ["12", "true", "-1.5e3", '"1":2', ",1.5", "\x7f", "\x00\n", "é", "😀", "", "NaN"]
)
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_the_spelling_is_that_of_rfc_8785(value: Any) -> None:
    assert rfc8785.dumps(value) == canonical.dumps(value)
    assert canonical.dumps(value) == canonical.dumps(canonical.loads(canonical.dumps(value)))


@pytest.mark.parametrize(
    "value",
    [
        2**53,
        -(2**53),
        [10**16],
        {"a": 10**20},
        float("nan"),
        [float("inf")],
        {"a": -float("inf")},
        {1: 2},
        {1.5: 2},
        {True: 2},
        {None: 2},
        {"a": {False: 0}},
        {"a": 1, 2: 3},
        "\ud800",
        {"\ud800": 1},
        {"a": b"bytes"},
        {"a": {1, 2}},
    ],
    ids=repr,
)
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(canonical.NotCanonical, match="canonical JSON"):
        canonical.dumps(value)


def test_plain_values_are_spelled_without_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"files": [{"digest": "0" * 64, "shape": [576, 49152], "header": json.dumps({"a": {"b": [1, "2"]}})}]}
    expected = rfc8785.dumps(value)  # type: ignore[arg-type]
    monkeypatch.setattr(rfc8785, "dumps", lambda _: pytest.fail("it took the slow way"))

    assert expected == canonical.dumps(value)
