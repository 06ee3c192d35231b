"""Bisection: the culprit is found, with as few tests as there can be."""

from __future__ import annotations

import random

import pytest
from mreg.registry.chains.bisection import Search, begin, lead_for
from mreg.registry.chains.graph import reach
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused

from tests.histories import digest

History = dict[Digest, list[Digest]]


def line(length: int) -> History:
    return {digest(number): [digest(number - 1)] if number else [] for number in range(length)}


def random_history(chosen: random.Random) -> History:
    """Up to sixty versions, most made from the last one or two, every fourth a merge."""
    history: History = {digest(0): []}
    for number in range(1, chosen.randint(4, 60)):
        latest = [digest(n) for n in range(max(0, number - 4), number)]
        history[digest(number)] = chosen.sample(latest, 2 if chosen.random() < 0.25 and len(latest) > 1 else 1)
    return history


def find(search: Search, history: History, culprit: Digest) -> tuple[frozenset[Digest], int]:
    """Ask until nothing is left to ask; the answer, and how many tests it took."""
    tests = 0
    while (version := search.next()) is not None:
        is_bad = version == culprit or culprit in reach(version, history.__getitem__)
        search, tests = search.told(version, "bad" if is_bad else "good"), tests + 1
    return search.culprits, tests


def test_the_planted_step_is_found_in_random_histories_with_merges():
    chosen = random.Random(5)
    for _ in range(200):
        history = random_history(chosen)
        bad = digest(len(history) - 1)
        search = begin([digest(0)], bad, history.__getitem__)
        culprit = chosen.choice(sorted(search.suspects))
        found, tests = find(search, history, culprit)

        assert {culprit} == found
        assert tests <= search.least_tests + 1


def test_a_thousand_steps_in_a_row_take_ten_tests():
    history = line(1025)
    search = begin([digest(0)], digest(1024), history.__getitem__)

    assert 10 == search.least_tests
    assert {10} == {find(search, history, digest(culprit))[1] for culprit in range(1, 1025, 101)}


def test_what_cannot_be_tested_is_gone_around():
    history = line(9)
    search = begin([digest(0)], digest(8), history.__getitem__)
    middle = search.next()
    assert middle is not None
    found, _ = find(search.told(middle, "skip"), history, digest(7))

    assert {digest(7)} == found


def test_where_nothing_can_be_tested_all_that_is_left_is_told():
    search = begin([digest(0)], digest(3), line(4).__getitem__)
    while (version := search.next()) is not None:
        search = search.told(version, "skip")

    assert {digest(1), digest(2), digest(3)} == search.culprits


def test_a_direct_child_of_a_good_version_needs_no_test():
    search = begin([digest(0)], digest(1), line(2).__getitem__)

    assert (None, {digest(1)}) == (search.next(), search.culprits)


def test_good_and_bad_in_the_wrong_order_are_refused():
    for good, bad in ((3, 1), (2, 2)):
        with pytest.raises(Refused):
            begin([digest(good)], digest(bad), line(4).__getitem__)


def test_answers_that_are_sometimes_wrong_are_asked_for_until_one_is_far_enough_ahead():
    chosen = random.Random(3)
    lead, wrong = lead_for(0.95, 0.2, 6), 0
    for _ in range(2000):
        ahead = 0
        while abs(ahead) < lead:
            ahead += 1 if chosen.random() > 0.2 else -1
        wrong += ahead < 0

    assert 1 == lead_for(0.95, 0.0, 6)
    assert wrong / 2000 <= 0.05 / 6
