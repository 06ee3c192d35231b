"""What a training needs and does not get is said before any work starts, in one line that names it."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from typing import Any

import pytest
from mreg.registry.errors import MregError
from mreg.transforms import _catalog
from mreg.transforms._lengths import counter, length, positions_of

from tests import tiny
from tests.transforms.conftest import Stock, material, rows

REWARD = "def reward(completions, n, **columns):\n    return [1.0 for _ in completions]\n"
WRITE = {"reward_function": REWARD, "max_completion_length": 8, "num_generations": 2, "per_device_train_batch_size": 4}

LONG = {"text": "one two three " * 60}
TWO_SIDED = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{**TWO_SIDED[0], **more}, TWO_SIDED[1]]}


def refusal(stock: Stock, name: str, given: list[dict[str, Any]], **params: Any) -> str:
    transform = _catalog.find(name)
    check = importlib.import_module(f"mreg.transforms.{name}").check
    with pytest.raises(MregError) as refused:
        check(transform.params.model_validate(params), (material(stock.base),), (rows(given),))
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "given", "params", "told"),
    [
        ("finetune", [{"text": "one"}, LONG], {}, "row 2 of rows has 302 tokens, and base takes 256: cut rows with"),
        ("instruct", [chat(), chat(content=LONG["text"])], {"builtin_template": True}, "row 2 of rows has "),
        ("prefer", [{"prompt": "one", "chosen": "two", "rejected": LONG["text"]}], {}, "row 1 of rows has "),
        ("reward", [{"prompt": "one", "chosen": LONG["text"], "rejected": "two"}], {}, "row 1 of rows has "),
        ("adapt", [{"text": "one two three " * 40}] * 2, {}, "blocks of 1024 tokens are asked for, and base takes 256"),
        ("finetune", [chat(), chat(content=["one"])], {}, "row 2 of rows has no usable messages: "),
        ("finetune", [chat(), chat(content=None)], {}, "row 2 of rows has no usable messages: "),
        (
            "finetune",
            [chat(name="Ada"), chat(), chat(name=3)],
            {},
            "row 3 of rows has a number as messages[].name, and row 1 of rows has text: give values of one kind",
        ),
        (
            "reinforce",
            [{"prompt": "one", "n": 1}, {"prompt": "two", "n": None}, {"prompt": "six", "n": "two"}],
            WRITE,
            "row 3 of rows has text as n, and row 1 of rows has a number",
        ),
        (
            "reinforce",
            [{"prompt": "one two", "n": 1}] * 3,
            {**WRITE, "max_length": 10},
            "every prompt has more than 2 tokens: raise --max-length",
        ),
        (
            "reinforce",
            [{"prompt": "one", "n": 1}] + [{"prompt": "one " * 30, "n": 1}] * 3,
            {**WRITE, "max_length": 30},
            "a step takes 2 prompts with 2 completions each, and there are 1 that fit: set --per-device-train-batch",
        ),
        (
            "reinforce",
            [{"prompt": "one", "n": 1}] * 4,
            {**WRITE, "max_completion_length": 255},
            "row 1 of rows has 2 tokens, and base takes 256 with the 255 of a completion: lower --max-completion",
        ),
        (
            "prefer",
            [{"prompt": "one", "completion": "two", "label": True}] * 3,
            {"method": "kto"},
            "every row has the label true: give good completions, labelled true, and bad ones, labelled false",
        ),
        (
            "prefer",
            [{"prompt": "one", "completion": "two", "label": place > 2} for place in range(4)],
            {"method": "kto", "max_rows": 2},
            "each of the first 2 rows has the label false",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    stock: Stock, name: str, given: list[dict[str, Any]], params: dict[str, Any], told: str
):
    assert refusal(stock, name, given, **params).startswith(told)


@pytest.mark.parametrize("name", ["adapt", "finetune", "instruct", "prefer", "reinforce", "reward"])
@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"target_modules": ("q_proj", "lm_head")}, "an adapter of lm_head cannot be trained: TRL computes the loss"),
        ({"target_modules": ("query",)}, "base has no layer whose name ends in query: it has down_proj, gate_proj, "),
        ({"layers": (0, 2), "target_modules": ("q_proj",)}, "base has no layer 2: its layers are 0 to 1"),
        ({"layers": (1,)}, "layers can be chosen for an adapter only where target_modules names what is changed"),
    ],
)
def test_layers_that_cannot_be_trained_are_named(stock: Stock, name: str, params: dict[str, Any], told: str):
    tuning = {"method" if name == "finetune" else "tuning": "lora"}

    assert refusal(stock, name, [{"text": "one"}], **tuning, **params).startswith(told)


def test_a_row_that_is_cut_in_time_may_be_longer(stock: Stock):
    finetune = _catalog.find("finetune")
    assert finetune.check is not None

    finetune.check(finetune.params.model_validate({"max_length": 256}), (material(stock.base),), (rows([LONG]),))


def test_tokens_are_counted_as_the_tokenizer_does(stock: Stock):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stock.base)
    count = counter(material(stock.base))
    assert count is not None
    row = {"prompt": TWO_SIDED, "chosen": "Rome", "rejected": "The capital of Italy"}

    sizes = [len(tokenizer(text).input_ids) for text in ("one", "two", "The capital of Italy")]
    assert sum(sizes) == length(row, ("prompt", "chosen", "rejected"), count)


def test_a_model_without_a_tokenizer_file_that_can_be_read_here_is_not_judged(stock: Stock):
    source = material(stock.base)

    assert counter(replace(source, files=tuple(file for file in source.files if file != "tokenizer.json"))) is None


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024, "n_embd": 8}, 1024),
        ({"text_config": {"max_position_embeddings": 64}}, 64),
        ({"max_position_embeddings": -1}, None),
        ({}, None),
    ],
    ids=json.dumps,
)
def test_the_longest_sequence_is_read_from_the_config(config: dict[str, Any], positions: int | None):
    assert positions == positions_of(config)


def test_every_training_is_held_to_this(stock: Stock):
    row = {**tiny.pair_rows()[0], "completion": "two", "text": "one"}

    for name in ("distill", "constitute"):
        transform = _catalog.find(name)
        assert transform.check is not None
        params = {"tuning": "lora", "target_modules": ("query",)}
        more = {"principles": "Be brief.", "critique_request": "{principle}"} if name == "constitute" else {}
        models = (material(stock.base), material(stock.other, "teacher"))[: 2 if name == "distill" else 1]
        with pytest.raises(MregError, match="no layer whose name ends in query"):
            transform.check(transform.params.model_validate({**params, **more}), models, (rows([row]),))
