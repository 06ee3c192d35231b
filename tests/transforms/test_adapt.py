"""`adapt`: text of a domain becomes likelier, general text is measured, new tokens begin as what spelled them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms._vocabulary import add_tokens
from mreg.transforms.adapt import AdaptParams, _mix, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Here, Stock, material, rows, tensors, tree


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A domain of capitals, and general text."""
    folder = tmp_path_factory.mktemp("data")
    domain = [{"text": row["prompt"] + row["completion"]} for row in tiny.prompt_rows()] * 6
    return [
        tiny.write_rows(folder / "domain.jsonl", domain),
        tiny.write_rows(folder / "general.jsonl", tiny.text_rows()),
    ]


OPTIONS = {"max_length": 64, "max_steps": 25, "learning_rate": 5e-3, "eval_fraction": 0.2}


def test_text_held_out_becomes_likelier_and_general_text_is_told_of(here: Here, stock: Stock, data: list[Path]):
    _, facts = here("adapt", stock.base, data=data, **OPTIONS)

    assert facts["perplexity_after"] < 0.3 * facts["perplexity_before"]
    assert facts["general_perplexity_after"] < facts["general_perplexity_before"]
    assert 0.15 < facts["general_blocks"] / facts["rows"] < 0.25


def test_general_text_mixed_in_is_forgotten_less(here: Here, stock: Stock, data: list[Path]):
    _, little = here("adapt", stock.base, data=data, general_fraction=0.05, **OPTIONS)
    _, half = here("adapt", stock.base, data=data, general_fraction=0.5, **OPTIONS)

    assert half["general_blocks"] > little["general_blocks"]
    assert half["general_perplexity_after"] < little["general_perplexity_after"]


def test_an_adapter_is_trained_if_asked_for(here: Here, stock: Stock, data: list[Path]):
    output, facts = here("adapt", stock.base, data=data[:1], tuning="lora", **OPTIONS)

    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(tree(output))
    assert facts["perplexity_after"] < facts["perplexity_before"]
    assert 0 == facts["general_blocks"]


def test_rows_are_counted_before_any_are_held_out(here: Here, stock: Stock, data: list[Path]):
    _, facts = here("adapt", stock.base, data=data[:1], max_rows=4, eval_fraction=0, max_steps=1, max_length=4096)

    assert (1, False) == (facts["rows"], "perplexity_before" in facts)


@pytest.mark.parametrize("source", ["base", "sharded"])
def test_new_tokens_begin_as_the_mean_of_what_spelled_them(stock: Stock, tmp_path: Path, source: str):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = getattr(stock, source)
    tokenizer: Any = AutoTokenizer.from_pretrained(before)
    parts = tokenizer("zebra").input_ids

    added = add_tokens(before, ["zebra", "okapi", "zebra", "a"], tmp_path, lambda progress: None)

    longer: Any = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    old, new = tensors(before), tensors(tmp_path)
    assert ["zebra", "okapi"] == added
    (number,) = longer("zebra").input_ids
    assert len(tokenizer) + 2 == len(longer) == model.config.vocab_size == new["model.embed_tokens.weight"].shape[0]
    grown = [name for name in old if old[name].shape != new[name].shape]
    assert {"model.embed_tokens.weight", *(["lm_head.weight"] if source == "sharded" else [])} == set(grown)
    for name in grown:
        expected = old[name][torch.tensor(parts)].float().mean(0).to(old[name].dtype)
        assert torch.equal(expected, new[name][number])
        assert torch.equal(old[name], new[name][: len(old[name])])
    assert str(before.parent) not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_new_tokens_are_learnt_and_kept(here: Here, stock: Stock, data: list[Path]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, facts = here("adapt", stock.base, data=data[:1], tokens_file="capital\n\nFrance\n", **OPTIONS)

    assert ["capital", "France"] == facts["added_tokens"]
    assert facts["perplexity_after"] < facts["perplexity_before"]
    tokenizer: Any = AutoTokenizer.from_pretrained(output)
    model = AutoModelForCausalLM.from_pretrained(output)
    ids = tokenizer("What is the capital of France?", return_tensors="pt").input_ids
    with torch.no_grad():
        assert (
            model(ids).logits.shape[-1]
            == len(tokenizer)
            == json.loads((output / "config.json").read_text())["vocab_size"]
        )


def test_the_mixture_has_the_share_that_was_asked_for():
    domain, general = [[number] for number in range(80)], [[number] for number in range(100, 200)]

    mixed = _mix(domain, general, fraction=0.2, seed=1)

    assert (80, 20) == (sum(block[0] < 100 for block in mixed), sum(block[0] >= 100 for block in mixed))
    assert mixed == _mix(domain, general, fraction=0.2, seed=1) != _mix(domain, general, fraction=0.2, seed=2)


@pytest.mark.parametrize(
    "params",
    [{"tuning": "prompt"}, {"tuning": "lora", "add_tokens": ["x"]}, {"general_fraction": 1}, {"eval_fraction": 1}],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        AdaptParams.model_validate(params)


@pytest.mark.parametrize(
    ("given", "params", "told"),
    [
        ([[{"prompt": "a"}]], {"eval_fraction": 0}, "rows has the columns prompt: a row has `text`"),
        ([[{"text": "a"}, {"text": ""}]], {}, "row 2 of rows has no usable text"),
        ([[{"text": "a"}]], {}, "one row cannot be trained on and held out"),
        ([tiny.text_rows()], {"general_fraction": 0.5}, "there is no general text to mix in"),
    ],
    ids=str,
)
def test_data_that_cannot_be_used_is_refused(
    stock: Stock, given: list[list[dict[str, Any]]], params: dict[str, Any], told: str
):
    with pytest.raises(MregError) as refused:
        check(AdaptParams(**params), (material(stock.base),), tuple(rows(each) for each in given))

    assert str(refused.value).startswith(told)
