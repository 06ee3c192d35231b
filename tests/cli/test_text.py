"""Numbers read as people say them; text from outside cannot act on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.cli import text


@given(st.text())
def test_cleaned_text_is_one_line_without_control_or_direction_characters(words: str) -> None:
    cleaned = text.clean(words)

    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in cleaned)
    assert not any(unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI") for c in cleaned)


def test_plain_text_is_left_alone() -> None:
    assert "Ein schönes Modell, 日本語 ✓" == text.clean("Ein schönes Modell, 日本語 ✓")


def test_an_escape_sequence_is_spelled_out() -> None:
    assert "\\x1b[2Jgone" == text.clean("\x1b[2Jgone")


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (269_060_552, "269 MB"),
        (1_234_567_890, "1.23 GB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert shown == text.size(count)


@pytest.mark.parametrize(("count", "shown"), [(272, "272"), (99_648, "99,648"), (134_515_008, "134.5 M")])
def test_amounts(count: int, shown: str) -> None:
    assert shown == text.amount(count)


@pytest.mark.parametrize(
    ("duration", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations(duration: float, shown: str) -> None:
    assert shown == text.seconds(duration)


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0, "0 %"), (0.00001, "< 0.1 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1, "100 %")]
)
def test_a_fraction_is_only_nothing_or_all_when_it_is(fraction: float, shown: str) -> None:
    assert shown == text.percent(fraction)


def test_a_curve_goes_from_its_first_to_its_last_value() -> None:
    assert "4 → 1  █▆▃▁" == text.fact("losses", [[1, 4.0], [2, 3.0], [3, 2.0], [4, 1.0]])


def test_a_table_of_measures_is_told_by_its_ends() -> None:
    errors = {"a": 0.2, "b": 0.05, "c": 0.1, "d": 0.3, "e": 0.1}

    assert "5, from 0.05 (b) to 0.3 (d)" == text.fact("errors", errors)


@given(st.lists(st.floats(allow_nan=True), max_size=500))
def test_a_sparkline_is_never_wider_than_asked(values: list[float]) -> None:
    assert len(text.sparkline(values, width=40)) <= 40


def test_of_a_value_of_many_lines_the_first_is_shown() -> None:
    assert "def reward(**columns): … (3 lines)" == text.value("def reward(**columns):\n    n = 1\n    return n\n")
