"""Every way of tuning: it learns, what it leaves fits the base as it was, and what can be fused is the same fused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from mreg.registry.errors import MregError, Refused
from mreg.transforms import _check
from mreg.transforms._adapter import load_adapted, save_adapter
from mreg.transforms._tuning import PROMPTS, TUNINGS, AnyKind
from mreg.transforms.finetune import FinetuneParams
from mreg.transforms.fuse import FuseParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Here, Stock, material, tensors, tree

HELD_OUT = "What is the capital of Norway? The capital of Norway is Oslo. A merge takes two models and gives one."
RATES = {
    "lora": 5e-3,
    "rslora": 2e-3,
    "dora": 5e-3,
    "pissa": 2e-3,
    "qlora": 5e-3,
    "ia3": 0.1,
    "oft": 2e-2,
    "vera": 0.1,
    "loha": 2e-2,
    "lokr": 2e-2,
    "adapter": 1e-2,
    "prompt": 0.1,
    "p-tuning": 1e-2,
    "prefix": 5e-2,
}
APART = PROMPTS | {"adapter"}


def loss(model: Any, folder: Path) -> float:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(HELD_OUT, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def whole(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_every_kind_is_tried_here():
    assert {*RATES, "full"} == {*TUNINGS} == {*get_args(AnyKind)}


@pytest.mark.parametrize("kind", RATES)
def test_it_learns_and_what_can_be_fused_computes_the_same_fused(here: Here, stock: Stock, kind: str):
    if kind == "qlora":
        pytest.importorskip("bitsandbytes")
    more = {} if kind in PROMPTS | {"ia3", "oft"} else {"rank": 4}

    output, facts = here(
        "finetune", stock.sharded, data="text", method=kind, max_steps=24, learning_rate=RATES[kind], **more
    )

    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(tree(output))
    assert str(stock.data) not in (output / "adapter_config.json").read_text()
    base, adapted = whole(stock.sharded), load_adapted(stock.sharded, output, dtype=torch.float32)
    assert loss(adapted, stock.sharded) < loss(base, stock.sharded) - (0.02 if kind in PROMPTS else 0.15)
    assert 0 < facts["trainable_parameters"] < 0.6 * facts["parameters"]
    if kind in APART:
        with pytest.raises(Refused, match="changes no weights"):
            check(FuseParams(), (material(output), material(stock.sharded, "base")), ())
        return
    fused, _ = here("fuse", output, more={"base": stock.sharded})
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert (whole(fused)(ids).logits - adapted(ids).logits).abs().max() < 1e-4


def test_pissa_fits_the_base_as_it_was(stock: Stock, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(whole(stock.sharded), LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights="pissa"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)

    save_adapter(model.eval(), tmp_path)

    ids = torch.arange(10, 40)[None]
    again = load_adapted(stock.sharded, tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert (model(ids).logits - whole(stock.sharded)(ids).logits).abs().max() > 0.05
        assert (model(ids).logits - again(ids).logits).abs().max() < 1e-4
    assert 8 == json.loads((tmp_path / "adapter_config.json").read_text())["r"]


def test_a_bottleneck_adapter_touches_the_layers_asked_for(here: Here, stock: Stock):
    output, _ = here("finetune", stock.base, data="text", method="adapter", max_steps=1, rank=3, layers=[1])

    held = tensors(output)
    assert {"model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"} == {
        name.partition(".bottleneck.")[0] for name in held
    }
    assert {(3, 64), (64, 3), (3,), (64,)} == {tuple(tensor.shape) for tensor in held.values()}


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"layers": [1]}, {"model.layers.1"}),
        ({"freeze": ["backbone"]}, {"lm_head.weight"}),
        ({"freeze": ["layers", "embed", "lm_head"]}, {"model.norm.weight"}),
    ],
    ids=str,
)
def test_what_is_frozen_keeps_its_bytes(here: Here, stock: Stock, options: dict[str, Any], changed: set[str]):
    output, _ = here("finetune", stock.sharded, data="text", method="full", max_steps=2, learning_rate=1e-2, **options)

    before, after = tensors(stock.sharded), tensors(output)
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {".".join(name.split(".")[:3]) for name in different}


def test_freezing_everything_is_refused(here: Here, stock: Stock):
    with pytest.raises(Refused, match="nothing is left to train"):
        here("finetune", stock.base, data="text", method="full", max_steps=1, freeze=["."])


@pytest.mark.parametrize(
    "params",
    [
        {"method": "ia3", "rank": 8},
        {"method": "prompt", "rank": 8},
        {"method": "lora", "num_virtual_tokens": 8},
        {"method": "lora", "freeze": ["embed"]},
        {"method": "full", "freeze": ["("]},
        {"method": "prefix", "task": "sequence-classification"},
    ],
    ids=str,
)
def test_options_that_do_nothing_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        FinetuneParams.model_validate(params)


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    assert importlib.util.find_spec("no_such_package") is None

    with pytest.raises(
        MregError, match=r"qlora needs no_such_package, which is not installed: pip install 'mreg\[qlora\]'"
    ):
        _check.needs("no_such_package", "qlora", "qlora")


def test_rows_held_out_are_measured_before_and_after(here: Here, stock: Stock):
    _, facts = here("finetune", stock.base, data="text", max_steps=20, learning_rate=5e-3, eval_fraction=0.2)

    assert facts["eval_loss_after"] < facts["eval_loss_before"] - 0.7
    assert round(0.2 * len(tiny.text_rows())) == facts["eval_rows"] == len(tiny.text_rows()) - facts["rows"]


def test_max_rows_takes_the_first_and_shuffle_others(here: Here, stock: Stock):
    _, first = here("finetune", stock.base, data="text", max_steps=1, max_rows=5)
    _, others = here("finetune", stock.base, data="text", max_steps=1, max_rows=5, shuffle=True)

    assert 5 == first["rows"] == others["rows"]
    assert first["losses"] != others["losses"]
