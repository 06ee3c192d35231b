"""`finetune`: it learns, it says what it used, and it refuses what it cannot train on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.registry.runs.curves import thin
from mreg.registry.transform import Material, Progress
from mreg.transforms._engine import LocalEngine
from mreg.transforms.finetune import FinetuneParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Run, Stock, make_job, material, rows, tensors, tree

HELD_OUT = "What is the capital of Norway? The capital of Norway is Oslo. A merge takes two models and gives one."


def loss(folder: Path, adapter: Path | None = None) -> float:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = AutoTokenizer.from_pretrained(folder)(HELD_OUT, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_what_it_was_not_shown(run: Run, stock: Stock, method: str):
    ran = run("finetune", stock.base, data="text", method=method, max_steps=40, learning_rate=5e-3)

    after = loss(stock.base, ran.output) if method == "lora" else loss(ran.output)
    assert after < loss(stock.base) - 0.7
    assert ran.outcome.facts["final_loss"] < ran.outcome.facts["first_loss"] - 1.0


@pytest.mark.parametrize("data", ["text", "prompt", "chat"])
def test_the_facts_are_those_of_the_run(run: Run, stock: Stock, data: str):
    facts = run("finetune", stock.base, data=data, max_steps=3, rank=2).outcome.facts

    parameters = sum(tensor.numel() for tensor in tensors(stock.base).values())
    assert (3, 3) == (facts["steps"], len(facts["losses"]))
    assert facts["parameters"] == parameters + facts["trainable_parameters"]
    assert 6 * facts["parameters"] * facts["tokens"] == facts["flops"] > 0
    assert "sdpa" == facts["attention"]


def test_the_loss_is_told_while_it_trains(engine: LocalEngine, stock: Stock, tmp_path: Path):
    told: list[Progress] = []
    params = {"max_steps": 4}
    job = make_job(engine, tmp_path / "job", "finetune", stock.base, {}, stock.data, "text", params)

    engine.run(job, told.append)

    assert [(1, 4), (2, 4), (3, 4), (4, 4)] == [(each.done, each.total) for each in told if "loss" in each.note]


def test_an_adapter_says_nothing_of_this_machine(run: Run, stock: Stock):
    ran = run("finetune", stock.base, data="text", max_steps=1)

    config = json.loads((ran.output / "adapter_config.json").read_text())
    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(tree(ran.output))
    assert config["base_model_name_or_path"] is None
    assert sorted(config["target_modules"]) == config["target_modules"]


def test_full_training_keeps_the_dtype_and_every_other_file(run: Run, stock: Stock):
    ran = run("finetune", stock.base, data="chat", method="full", max_steps=2)

    before, after = tree(stock.base), tree(ran.output)
    assert ["model.safetensors"] == [name for name in before if before[name] != after.get(name)]
    assert {torch.bfloat16} == {tensor.dtype for tensor in tensors(ran.output).values()}


def test_an_adapter_has_only_the_layers_asked_for(run: Run, stock: Stock):
    ran = run("finetune", stock.base, data="text", max_steps=1, rank=3, target_modules=("q_proj", "v_proj"))

    held = tensors(ran.output)
    assert {"q_proj", "v_proj"} == {name.split(".")[-3] for name in held}
    assert {3} == {tensor.shape[0] for name, tensor in held.items() if "lora_A" in name}


def test_another_seed_gives_another_adapter(run: Run, stock: Stock, engine: LocalEngine, tmp_path: Path):
    one = run("finetune", stock.base, data="text", max_steps=1)
    job = make_job(engine, tmp_path / "job", "finetune", stock.base, {}, stock.data, "text", {"max_steps": 1})
    engine.run(job.model_copy(update={"seed": 8}), lambda progress: None)

    assert tree(one.output)["adapter_model.safetensors"] != tree(job.output)["adapter_model.safetensors"]


def test_a_loss_that_is_no_number_fails_the_run(run: Run, stock: Stock):
    ran = run("finetune", stock.base, data="text", method="full", max_steps=20, learning_rate=1e20, max_grad_norm=0)

    assert "lower the learning rate" in (ran.outcome.error or "")


@pytest.mark.parametrize(("method", "rate"), [("lora", 2e-4), ("full", 2e-5)])
def test_the_learning_rate_hangs_on_the_method(method: Any, rate: float):
    assert rate == FinetuneParams(method=method).learning_rate
    assert 0.5 == FinetuneParams(method=method, learning_rate=0.5).learning_rate


@pytest.mark.parametrize(
    "params",
    [
        {"method": "dream"},
        {"max_steps": 0},
        {"learning_rate": -1},
        {"lora_dropout": 1},
        {"dtype": "int8"},
        {"method": "full", "rank": 8},
        {"epochs": 3},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        FinetuneParams.model_validate(params)


def test_resolved_params_validate_to_themselves():
    params = FinetuneParams(method="full", max_steps=5)

    assert params == FinetuneParams.model_validate(params.model_dump(mode="json"))


def refusal(source: Material, *datasets: list[dict[str, Any]]) -> str:
    with pytest.raises(MregError) as told:
        check(FinetuneParams(), (source,), tuple(rows(each) for each in datasets))
    return str(told.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"question": "a", "answer": "b"}], "rows has the columns question, answer: a row has `text`, or"),
        ([{"text": "a"}, {"text": 3}], "row 2 of rows has no usable text"),
        ([{"text": ""}], "row 1 of rows has no usable text"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "row 2 of rows has no usable completion"),
        ([{"messages": "hello"}], "row 1 of rows has no usable messages"),
        ([{"messages": [{"role": "user"}]}], "row 1 of rows has no usable messages"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_trained_on_are_refused(stock: Stock, given: list[dict[str, Any]], told: str):
    assert refusal(material(stock.base), given).startswith(told)


def test_datasets_of_two_formats_are_refused(stock: Stock):
    told = refusal(material(stock.base), tiny.text_rows(), tiny.chat_rows())

    assert told.startswith("the datasets have different columns (messages and text)")


def test_chats_need_a_chat_template(tmp_path: Path):
    plain = tiny.make_model(tmp_path / "plain", chat=False)

    assert refusal(material(plain), tiny.chat_rows()).startswith("plain has no chat template for messages: add one")


def test_a_chat_template_may_stand_in_the_tokenizer_config(stock: Stock, tmp_path: Path):
    old = shutil.copytree(stock.base, tmp_path / "old")
    config = json.loads((old / "tokenizer_config.json").read_text())
    template = (old / "chat_template.jinja").read_text()
    (old / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    (old / "chat_template.jinja").unlink()

    check(FinetuneParams(), (material(old),), (rows(tiny.chat_rows()),))


def test_a_model_without_a_tokenizer_is_refused(stock: Stock, tmp_path: Path):
    bare = shutil.copytree(stock.base, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()

    assert refusal(material(bare), tiny.text_rows()).startswith("bare has no tokenizer")


def test_an_adapter_is_refused(stock: Stock):
    assert "fuse it into its base first" in refusal(material(stock.adapter), tiny.text_rows())


def test_a_long_curve_is_thinned_to_its_first_its_last_and_some_between():
    curve = [(step, 1.0) for step in range(1, 10_001)]

    thinned = thin(curve)

    assert (1, 10_000) == (thinned[0][0], thinned[-1][0])
    assert 100 < len(thinned) <= 200
