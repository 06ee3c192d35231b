"""Algebra on recipes: which steps a change touches, and where each takes its inputs from."""

from __future__ import annotations

from mreg.registry.chains.rewriting import Changes, Insert, Key, Place, rewrite, settle

from tests.histories import digest
from tests.registry.test_recipe import imported, step

CHAIN = (imported(1), step(2, "finetune", 1), step(3, "prune", 2, sparsity=0.5), step(4, "cast", 3))
DIAMOND = (imported(1), step(2, "prune", 1), step(3, "cast", 1), step(4, "merge", 2, 3), step(5, "quantize", 4))


def given(number: int) -> Place:
    return Place(given=digest(number))


def made(number: int) -> Place:
    return Place(made=Key(digest(number)))


def test_without_changes_nothing_is_to_be_done():
    rewritten = rewrite(DIAMOND, Changes())

    assert ((), given(5)) == (rewritten.steps, rewritten.result)
    assert (digest(2), digest(3), digest(4), digest(5)) == rewritten.kept


def test_what_took_a_dropped_step_takes_its_source():
    rewritten = rewrite(CHAIN, Changes(drop=frozenset({digest(2)})))

    assert [("prune", given(1)), ("cast", made(3))] == [(one.transform, one.inputs[0][1]) for one in rewritten.steps]
    assert (digest(2),) == rewritten.dropped


def test_a_change_touches_only_what_comes_after_it():
    rewritten = rewrite(DIAMOND, Changes(settings={digest(2): {"sparsity": 0.3}}))

    assert [Key(digest(number)) for number in (2, 4, 5)] == [one.key for one in rewritten.steps]
    assert (("source", made(2)), ("others", given(3))) == rewritten.steps[1].inputs
    assert (digest(3),) == rewritten.kept


def test_settings_overrule_what_was_recorded_and_leave_the_rest():
    chain = (imported(1), step(2, "prune", 1, sparsity=0.5, scope="per-tensor"))
    (only,) = rewrite(chain, Changes(settings={digest(2): {"sparsity": 0.3}})).steps

    assert {"sparsity": 0.3, "scope": "per-tensor"} == only.params


def test_another_base_touches_everything():
    rewritten = rewrite(DIAMOND, Changes(onto={digest(1): digest(9)}))

    assert [2, 3, 4, 5] == [number for number in range(2, 6) if Key(digest(number)) in {s.key for s in rewritten.steps}]
    assert given(9) == rewritten.steps[0].inputs[0][1]


def test_an_inserted_step_stands_between():
    rewritten = rewrite(CHAIN, Changes(inserts={digest(2): (Insert("cast", {"dtype": "float32"}),)}))
    inserted, pruned, _ = rewritten.steps

    assert ("insert", (("source", given(2)),)) == (inserted.kind, inserted.inputs)
    assert Place(made=inserted.key) == pruned.inputs[0][1]


def test_a_step_inserted_at_the_end_gives_the_result():
    rewritten = rewrite(CHAIN, Changes(inserts={digest(4): (Insert("cast"),)}))

    assert [rewritten.result.made] == [one.key for one in rewritten.steps]


def test_dropping_the_last_step_gives_what_it_worked_on():
    assert given(3) == rewrite(CHAIN, Changes(drop=frozenset({digest(4)}))).result


def test_what_led_only_to_a_dropped_step_is_not_done_again():
    changes = Changes(drop=frozenset({digest(4)}), settings={digest(3): {"dtype": "float16"}})
    rewritten = rewrite(DIAMOND, changes)

    assert [("quantize", given(2))] == [(one.transform, one.inputs[0][1]) for one in rewritten.steps]


def test_a_known_answer_takes_the_place_of_its_step():
    steps = rewrite(CHAIN, Changes(drop=frozenset({digest(2)}))).steps
    settled = settle(steps, steps[0].key, digest(7))

    assert (("source", given(7)),) == settled[1].inputs
