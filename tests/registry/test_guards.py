"""Guards: what a line of text demands, and the words in which it says by how much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry.measures.guards import Guard, MalformedGuard, parse
from mreg.registry.measures.metrics import METRICS, UnknownMetric


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("perplexity(general) <= 1.05 * source", Guard("perplexity", "general", (), "<=", 1.05, "source")),
        ("perplexity(general)<=source*1.05", Guard("perplexity", "general", (), "<=", 1.05, "source")),
        (
            "accuracy( test/a , max_rows = 20 ) > parent",
            Guard("accuracy", "test/a", (("max_rows", 20),), ">", 1, "parent"),
        ),
        ("size < 1e6", Guard("size", None, (), "<", 1e6, None)),
        ("kl(general, dtype=float32) < 0.1", Guard("kl", "general", (("dtype", "float32"),), "<", 0.1, None)),
        ("ece(a.jsonl) <= 0.9 * prod@{1}", Guard("ece", "a.jsonl", (), "<=", 0.9, "prod@{1}")),
        ("task(capitals, metric=acc) >= v1~1", Guard("task", "capitals", (("metric", "acc"),), ">=", 1, "v1~1")),
        ("nll(a) >= -2.5", Guard("nll", "a", (), ">=", -2.5, None)),
    ],
)
def test_a_guard_is_read_and_spelled_so_that_it_reads_the_same(text: str, guard: Guard):
    assert guard == parse(text)
    assert guard == parse(str(guard))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no guard"),
        ("perplexity(general)", "is no guard"),
        ("perplexity(general) == 3", "is no guard"),
        ("perplexity(general <= 3", "is no guard"),
        ("perplexity(general) <= 1.05 source", "nothing to hold against"),
        ("perplexity(general) <= 1 * 2", "nothing to hold against"),
        ("perplexity <= 3", "measured on a dataset"),
        ("size(general) <= 3", "needs no dataset"),
        ("task >= 0.5", "measured on a task"),
        ("perplexity(general, 512) <= 3", "is no option"),
        ("perplexity(general, max_rows=2, max_rows=3) <= 3", "is no option"),
        ("kl(general) <= 2 * source", "compares with the source itself"),
    ],
)
def test_what_is_no_guard_is_said_to_be_none(text: str, said: str):
    with pytest.raises(MalformedGuard, match=said):
        parse(text)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UnknownMetric, match="did you mean perplexity"):
        parse("perplexty(general) <= 3")


@given(
    st.sampled_from([name for name, metric in METRICS.items() if metric.data and not metric.against]),
    st.sampled_from(["<=", "<", ">=", ">"]),
    st.floats(1e-6, 1e6),
    st.sampled_from([None, "source", "parent", "v3", "chat/base"]),
)
def test_spelling_and_reading_a_guard_gives_one_that_judges_alike(name, operator, factor, other):  # type: ignore[no-untyped-def]
    guard = Guard(name, "rows", (), operator, float(f"{factor:.6g}"), other)

    assert guard == parse(str(guard))


@pytest.mark.parametrize(
    ("operator", "verdicts"),
    [
        ("<=", (True, True, False)),
        ("<", (True, False, False)),
        (">=", (False, True, True)),
        (">", (False, False, True)),
    ],
)
def test_a_guard_holds_on_its_side_of_the_bound(operator: str, verdicts: tuple[bool, ...]):
    guard = parse(f"nll(a) {operator} 2 * source")

    assert verdicts == tuple(guard.holds(value, 1.5) for value in (2.9, 3.0, 3.1))


def test_what_is_no_number_never_holds():
    guard = parse("perplexity(a) <= 2 * source")

    assert not guard.holds(None, 3.0)
    assert not guard.holds(3.0, None)
    assert not guard.holds(float("nan"), 3.0)
    assert "perplexity(a) is not a number" == guard.words(None, 3.0, "v1")


@pytest.mark.parametrize(
    ("text", "value", "words"),
    [
        (
            "perplexity(general) <= 1.05 * source",
            31.2,
            "perplexity(general) is 31.2, 1.49 × that of v1 (20.9); at most 1.05 × is allowed",  # noqa: RUF001
        ),
        ("perplexity(general) < source", 20.9, "perplexity(general) is 20.9, 1 × that of v1 (20.9); less is demanded"),  # noqa: RUF001
        ("size <= 1000000", 2171234.0, "size is 2171234; at most 1000000 is allowed"),
        ("accuracy(test) >= 0.9", 0.25, "accuracy(test) is 0.25; at least 0.9 is needed"),
    ],
)
def test_the_words_say_by_how_much(text: str, value: float, words: str):
    assert words == parse(text).words(value, 20.9, "v1")
