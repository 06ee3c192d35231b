"""`reward`: a model that ranks pairs it was not shown, in a form that others can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms.reward import RewardParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Run, Stock, material, rows, tensors, tree


def margins(folder: Path, adapter: Path | None = None) -> list[float]:
    """By how much held-out chosen halves are rewarded above the rejected ones."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def reward(row: dict[str, Any], half: str) -> float:
        ids = tokenizer(row["prompt"] + row[half] + tokenizer.eos_token, return_tensors="pt").input_ids
        with torch.no_grad():
            return float(model(ids).logits)

    return [reward(row, "chosen") - reward(row, "rejected") for row in tiny.pair_rows(held_out=True)]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_it_ranks_what_it_was_not_shown(run: Run, stock: Stock, tuning: str):
    ran = run("reward", stock.base, data="pairs", tuning=tuning, max_steps=15, learning_rate=1e-3)

    after = margins(ran.output) if tuning == "full" else margins(stock.base, ran.output)
    facts = ran.outcome.facts
    assert min(after) > 1
    assert (4, 1.0) == (facts["judged"], facts["accuracy"])
    assert facts["margin"] > 1
    assert facts["final_loss"] < 0.3 < facts["first_loss"]


def test_the_config_tells_what_it_became_and_the_rest_stays(run: Run, stock: Stock):
    ran = run("reward", stock.base, data="pairs", max_steps=1)

    config = json.loads((ran.output / "config.json").read_text())
    before, after = tree(stock.base), tree(ran.output)
    assert ["LlamaForSequenceClassification"] == config["architectures"]
    assert ({"0": "LABEL_0"}, {"LABEL_0": 0}) == (config["id2label"], config["label2id"])
    assert ["config.json", "model.safetensors"] == [name for name in before if before[name] != after.get(name)]
    assert {torch.bfloat16} == {tensor.dtype for tensor in tensors(ran.output).values()}
    assert {"score.weight"} == tensors(ran.output).keys() - tensors(stock.base).keys()


def test_the_head_that_wrote_text_is_gone(run: Run, stock: Stock):
    ran = run("reward", stock.sharded, data="pairs", max_steps=1)

    index = json.loads((ran.output / "model.safetensors.index.json").read_text())
    assert tensors(ran.output).keys() == index["weight_map"].keys()
    assert {"lm_head.weight"} == tensors(stock.sharded).keys() - tensors(ran.output).keys()


def test_an_adapter_of_a_reward_model_can_be_fused(run: Run, stock: Stock):
    adapter = run("reward", stock.base, data="pairs", tuning="lora", max_steps=15, learning_rate=1e-3).output

    fused = run("fuse", adapter, more={"base": stock.base})

    assert fused.outcome.error is None
    assert margins(fused.output) == pytest.approx(margins(stock.base, adapter), rel=0.05)


def test_pairs_that_are_too_long_are_left_out_and_counted(run: Run, stock: Stock):
    some = run("reward", stock.base, data="pairs", max_steps=1, max_length=26)
    none = run("reward", stock.base, data="pairs", max_steps=1, max_length=8)

    assert 0 < some.outcome.facts["too_long"] < some.outcome.facts["rows"] == 4
    assert "no pair fits into 8 tokens: raise --max-length" == none.outcome.error


def test_kinds_that_put_tokens_before_the_input_are_refused():
    with pytest.raises(ValidationError, match="prompt cannot train a reward model"):
        RewardParams(tuning="prompt")


def test_rows_that_prefer_nothing_are_refused(stock: Stock):
    pair = {"chosen": "yes", "rejected": "no"}

    with pytest.raises(MregError) as told:
        check(RewardParams(), (material(stock.base),), (rows([pair, {**pair, "rejected": "yes"}]),))

    assert str(told.value).startswith("row 2 of rows has the same as chosen and as rejected")
