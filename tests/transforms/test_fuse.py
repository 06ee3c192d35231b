"""`fuse`: what PEFT computes, and nothing touched that the adapter does not touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import Refused
from mreg.transforms.fuse import FuseParams, check, low_rank

from tests import tiny
from tests.transforms.conftest import Run, Stock, material, tensors, tree

IDS = torch.arange(10, 40)[None]


def by_peft(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return merged(IDS).logits


def by_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, "fixed"),
        ({"use_rslora": True, "lora_alpha": 3}, "fixed"),
        ({"target_modules": ["q_proj", "down_proj"]}, "fixed"),
        ({"use_dora": True}, "as PEFT does"),
        ({"rank_pattern": {"q_proj": 2}}, "as PEFT does"),
        ({"bias": "lora_only"}, "as PEFT does"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_logits_are_those_of_peft(run: Run, stock: Stock, tmp_path: Path, options: dict[str, Any], order: str):
    adapter = tiny.make_adapter(tmp_path / "adapter", stock.sharded, **options)

    ran = run("fuse", adapter, more={"base": stock.sharded})

    assert order == ran.outcome.facts["order"]
    assert (by_peft(stock.sharded, adapter) - by_transformers(ran.output)).abs().max() < 1e-4


def test_tensors_and_files_that_the_adapter_does_not_touch_keep_their_bytes(run: Run, stock: Stock, tmp_path: Path):
    adapter = tiny.make_adapter(tmp_path / "adapter", stock.base, target_modules=["v_proj"])

    ran = run("fuse", adapter, more={"base": stock.base})

    before, after = tensors(stock.base), tensors(ran.output)
    assert {"v_proj"} == {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert {"v_proj": 2} == ran.outcome.facts["changed"]
    assert ["model.safetensors"] == [
        name for name, digest in tree(ran.output).items() if digest != tree(stock.base)[name]
    ]


def test_a_head_that_the_adapter_brings_is_in_the_result(run: Run, stock: Stock, tmp_path: Path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(stock.base, dtype=torch.float32)
    adapter = tmp_path / "adapter"
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)).save_pretrained(adapter)

    ran = run("fuse", adapter, more={"base": stock.base})

    again = AutoModelForSequenceClassification.from_pretrained(stock.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(again, adapter).merge_and_unload()
    fused = AutoModelForSequenceClassification.from_pretrained(ran.output, dtype=torch.float32)
    with torch.no_grad():
        # The result is rounded to bfloat16 as its base is.
        assert (merged(IDS).logits - fused(IDS).logits).abs().max() < 0.05
    architectures = json.loads((ran.output / "config.json").read_text())["architectures"]
    assert ["LlamaForSequenceClassification"] == architectures


def test_the_product_is_the_matrix_product_in_a_fixed_order():
    b, a = torch.randn(130, 5), torch.randn(5, 40)

    product = low_rank(b, a)

    expected = torch.zeros(130, 40)
    for rank in range(5):
        expected = expected + torch.outer(b[:, rank], a[rank])
    assert torch.equal(expected, product)
    assert torch.allclose(b @ a, product, atol=1e-5)


def test_an_adapter_that_changes_no_weights_is_refused(stock: Stock):
    adapter = material(stock.adapter)
    prompt = type(adapter)(**{**vars(adapter), "config": {"peft_type": "PROMPT_TUNING"}})

    with pytest.raises(Refused, match="adapter is PROMPT_TUNING, which adds to the input and changes no weights"):
        check(FuseParams(), (prompt, material(stock.base, "base")), ())


def test_a_quantized_base_is_refused(run: Run, stock: Stock):
    quantized = run("quantize", stock.base)

    with pytest.raises(Refused, match="is quantized already"):
        check(FuseParams(), (material(stock.adapter), material(quantized.output, "base")), ())


def test_a_model_in_place_of_the_adapter_is_refused(stock: Stock):
    with pytest.raises(Refused, match="other is no PEFT adapter"):
        check(FuseParams(), (material(stock.other), material(stock.base, "base")), ())
