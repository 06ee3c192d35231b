"""`prefer`: what was chosen becomes likelier than what was rejected, of pairs that it was not shown too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.registry.transform import Material
from mreg.transforms.prefer import METHODS, PreferParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Run, Stock, material, rows, tensors, tree


def margin(folder: Path, adapter: Path | None = None) -> float:
    """By how much the chosen halves of held-out pairs are likelier than the rejected ones, a token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def likelihood(prompt: str, completion: str) -> float:
        before = len(tokenizer(prompt).input_ids)
        ids = tokenizer(prompt + completion, return_tensors="pt").input_ids
        labels = ids.masked_fill(torch.arange(ids.shape[1])[None] < before, -100)
        with torch.no_grad():
            return -float(model(ids, labels=labels).loss)

    pairs = tiny.pair_rows(held_out=True)
    halves = [[likelihood(row["prompt"], row[half]) for half in ("chosen", "rejected")] for row in pairs]
    return sum(chosen - rejected for chosen, rejected in halves) / len(pairs)


@pytest.mark.parametrize(
    ("method", "tuning", "data"),
    [("dpo", "lora", "pairs"), ("dpo", "full", "pairs"), ("kto", "lora", "labels"), ("simpo", "lora", "pairs")],
)
def test_it_prefers_what_it_was_not_shown(run: Run, stock: Stock, method: str, tuning: str, data: str):
    ran = run("prefer", stock.base, data=data, method=method, tuning=tuning, max_steps=12, learning_rate=2e-3)

    facts = ran.outcome.facts
    after = margin(ran.output) if tuning == "full" else margin(stock.base, ran.output)
    assert after > margin(stock.base) + 0.3
    assert facts["final_margin"] > facts["first_margin"] + 0.05
    assert facts["final_loss"] < facts["first_loss"]


def test_the_facts_are_those_of_the_run(run: Run, stock: Stock):
    facts = run("prefer", stock.base, data="pairs", tuning="full", max_steps=3).outcome.facts

    parameters = sum(tensor.numel() for tensor in tensors(stock.base).values())
    assert [3, 3, 3] == [len(facts[name]) for name in ("losses", "margin_curve", "accuracy_curve")]
    assert parameters == facts["parameters"] == facts["trainable_parameters"]
    assert (6 + 2) * parameters * facts["tokens"] == facts["flops"]
    assert 0.693147 == facts["first_loss"]


def test_another_reference_changes_what_is_learnt(run: Run, stock: Stock):
    options = {"data": "pairs", "max_steps": 1, "learning_rate": 1e-3}
    own = run("prefer", stock.base, **options)
    other = run("prefer", stock.base, more={"reference": stock.other}, **options)

    assert 0.693147 == own.outcome.facts["first_loss"] != other.outcome.facts["first_loss"]
    assert tree(own.output) != tree(other.output)


def test_losses_are_added_up(run: Run, stock: Stock):
    losses = {"loss_type": ("sigmoid", "bco_pair"), "loss_weights": (1.0, 0.5)}

    facts = run("prefer", stock.base, data="pairs", max_steps=1, **losses).outcome.facts

    assert facts["first_loss"] == pytest.approx((1 + 0.5 * 2) * 0.693147, abs=1e-5)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"method": "ppo"}, "Input should be"),
        ({"beta": 0}, "greater than 0"),
        ({"method": "orpo", "loss_type": "sigmoid"}, "loss_type does nothing with orpo"),
        ({"method": "kto", "loss_type": "ipo"}, "kto has no loss ipo, only kto, apo_zero_unpaired"),
        ({"method": "kto", "per_device_train_batch_size": 1}, "kto compares the rows of a batch"),
        ({"simpo_gamma": 1.0}, "simpo_gamma does nothing with dpo"),
        ({"loss_type": ("sigmoid", "sft"), "loss_weights": (1,)}, "1 loss_weights for 2 loss_type"),
        ({"loss_type": "exo_pair"}, "needs a label_smoothing"),
        ({"method": "cpo", "tuning": "prompt"}, "cpo cannot train prompt"),
        ({"tuning": "full", "rank": 4}, "rank does nothing with full"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(params: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        PreferParams.model_validate(params)


@pytest.mark.parametrize("method", METHODS)
def test_resolved_params_validate_to_themselves(method: str):
    params = PreferParams.model_validate({"method": method})

    assert params == PreferParams.model_validate(params.model_dump(mode="json"))


def test_defaults_that_hang_on_the_method_are_recorded():
    simpo, dpo = PreferParams(method="simpo"), PreferParams(tuning="full")

    assert (2.0, 0.0, ("simpo",), 1e-5) == (simpo.beta, simpo.cpo_alpha, simpo.loss_type, simpo.learning_rate)
    assert (0.1, None, ("sigmoid",), 1e-6) == (dpo.beta, dpo.cpo_alpha, dpo.loss_type, dpo.learning_rate)


def refusal(materials: tuple[Material, ...], given: list[dict[str, Any]], **params: Any) -> str:
    with pytest.raises(MregError) as told:
        check(PreferParams.model_validate(params), materials, (rows(given),))
    return str(told.value)


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TURN = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"prompt": "a", "completion": "b"}], "rows has the columns prompt, completion: a row has `prompt`, `chosen`"),
        ([PAIR, {**PAIR, "rejected": None}], "row 2 of rows has no usable rejected"),
        ([PAIR, {**PAIR, "rejected": "b"}], "row 2 of rows has the same as chosen and as rejected"),
        ([PAIR, {**PAIR, "chosen": TURN}], "row 2 of rows mixes text with messages"),
        ([{"chosen": "a b", "rejected": "c"}], "row 1 of rows has no prompt to be found"),
        ([], "rows has no rows"),
    ],
    ids=str,
)
def test_rows_that_prefer_nothing_are_refused(stock: Stock, given: list[dict[str, Any]], told: str):
    source = material(stock.base)
    dataset = rows(given or [PAIR])
    if not given:
        dataset = type(dataset)("rows", dataset.columns, 0, lambda: iter([]))

    with pytest.raises(MregError) as refused:
        check(PreferParams(), (source,), (dataset,))

    assert str(refused.value).startswith(told)


def test_kto_wants_labels_that_are_true_or_false(stock: Stock):
    row = {"prompt": "a", "completion": "b", "label": 1}

    assert refusal((material(stock.base),), [row], method="kto").startswith("row 1 of rows has no usable label")


def test_a_reference_is_for_methods_that_have_one(stock: Stock):
    both = material(stock.base), material(stock.other, "reference")

    assert refusal(both, [PAIR], method="orpo").startswith("orpo has no reference model")


def test_a_reference_has_the_same_tokens(stock: Stock, tmp_path: Path):
    from transformers import AutoTokenizer

    other = tiny.make_model(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)

    assert "'<new>'" in refusal((material(stock.base), material(other, "reference")), [PAIR])
