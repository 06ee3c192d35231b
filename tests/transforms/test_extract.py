"""`extract`: a low-rank change comes back as the adapter that made it, and what is lost is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mreg.registry.errors import Refused
from mreg.transforms.extract import ExtractParams, check, low_rank, shortest
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.transforms.conftest import Run, Stock, material, tensors, tree

IDS = torch.arange(10, 40)[None]


@pytest.fixture
def fused(run: Run, stock: Stock) -> Path:
    """The base with an adapter of rank 4 fused into it, rounded to bfloat16."""
    return run("fuse", stock.adapter, more={"base": stock.base}).output


def change(source: Path, folder: Path, *names: str) -> Path:
    """A copy in which these tensors have noise on them."""
    shutil.copytree(source, folder)
    held = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name in names:
        held[name] = held[name] + 0.1 * torch.randn_like(held[name])
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_a_fused_adapter_comes_back_within_the_rounding_of_the_model(run: Run, stock: Stock, fused: Path):
    extracted = run("extract", fused, more={"base": stock.base}, rank=4)
    again = run("fuse", extracted.output, more={"base": stock.base})

    facts = extracted.outcome.facts
    assert (14, 4, []) == (facts["matrices"], facts["rank"], facts["not_captured"])
    assert facts["worst"]["captured_energy"] > 0.999
    assert "fixed" == again.outcome.facts["order"]
    before, after = tensors(fused), tensors(again.output)
    for name, tensor in before.items():
        step = 2.0**-7 * tensor.float().abs()
        assert ((tensor.float() - after[name].float()).abs() <= step + 1e-3).all(), name


def test_a_difference_that_has_the_rank_comes_back_whole(run: Run, stock: Stock, tmp_path: Path):
    from tests import tiny

    adapter = tiny.make_adapter(tmp_path / "adapter", stock.sharded)
    fused = run("fuse", adapter, more={"base": stock.sharded}).output

    extracted = run("extract", fused, more={"base": stock.sharded}, rank=4)

    assert 1.0 == extracted.outcome.facts["captured_energy"]
    assert (logits(stock.sharded, extracted.output) - logits(fused)).abs().max() < 1e-4


def test_peft_computes_with_it_what_the_changed_model_computes(run: Run, stock: Stock, fused: Path):
    extracted = run("extract", fused, more={"base": stock.base}, rank=64)

    config = json.loads((extracted.output / "adapter_config.json").read_text())
    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(tree(extracted.output))
    assert {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"} == set(
        config["target_modules"]
    )
    assert (logits(stock.base, extracted.output) - logits(fused)).abs().max() < 1e-4


def test_a_lower_rank_captures_less_and_says_how_much(run: Run, stock: Stock, fused: Path):
    facts = run("extract", fused, more={"base": stock.base}, rank=2).outcome.facts

    before, after = tensors(stock.base), tensors(fused)
    name = facts["worst"]["module"]
    singular = torch.linalg.svdvals(after[f"{name}.weight"].double() - before[f"{name}.weight"].double())
    kept = float(singular[:2].square().sum() / singular.square().sum())
    assert facts["worst"]["captured_energy"] == facts["captured"][name] == pytest.approx(kept, abs=1e-5)
    assert facts["captured"][name] == min(facts["captured"].values()) < facts["captured_energy"] < 0.95


def test_what_no_adapter_of_linear_layers_can_hold_is_listed(run: Run, stock: Stock, tmp_path: Path):
    lost = ["model.embed_tokens.weight", "model.norm.weight"]
    changed = change(stock.base, tmp_path / "changed", "model.layers.1.self_attn.q_proj.weight", *lost)

    ran = run("extract", changed, more={"base": stock.base})

    config = json.loads((ran.output / "adapter_config.json").read_text())
    assert lost == sorted(ran.outcome.facts["not_captured"])
    assert ["model.layers.1.self_attn.q_proj"] == config["target_modules"] == list(ran.outcome.facts["captured"])


def test_only_the_layers_asked_for_are_looked_at(run: Run, stock: Stock, fused: Path):
    facts = run("extract", fused, more={"base": stock.base}, target_modules=("v_proj",)).outcome.facts

    assert {"v_proj"} == {name.rpartition(".")[2] for name in facts["captured"]}
    assert 12 == len(facts["not_captured"])


def test_two_equal_versions_give_no_adapter(run: Run, stock: Stock):
    ran = run("extract", stock.base, more={"base": stock.base})

    assert (ran.outcome.error or "").startswith("no matrix differs")


def test_a_version_and_itself_are_refused(stock: Stock):
    with pytest.raises(Refused, match="base does not differ from itself"):
        check(ExtractParams(), (material(stock.base), material(stock.base, "base")), ())


def test_singular_vectors_have_a_settled_sign():
    torch.manual_seed(0)
    delta = torch.randn(6, 3, dtype=torch.float64) @ torch.randn(3, 5, dtype=torch.float64)

    b, a = low_rank(delta, 4)

    assert torch.allclose(delta.float(), b @ a, atol=1e-6)
    assert (b[:, :3].gather(0, b[:, :3].abs().argmax(0, keepdim=True)) > 0).all()
    assert not b[:, 3].any()
    assert not a[3].any()


def test_modules_are_called_by_their_last_names_where_that_is_all_of_them():
    linear = ["a.0.q", "a.1.q", "a.0.k", "a.1.k"]

    assert ["a.1.k", "q"] == shortest(["a.0.q", "a.1.q", "a.1.k"], linear)


def test_models_of_other_shapes_are_refused(stock: Stock, tmp_path: Path):
    from tests import tiny

    deeper = tiny.make_model(tmp_path / "deeper", layers=3)

    with pytest.raises(Refused, match="is 64 in deeper and missing in base"):
        check(ExtractParams(), (material(deeper), material(stock.base, "base")), ())


def test_names_that_no_layer_has_are_refused(stock: Stock):
    with pytest.raises(Refused, match="no layer of base is called w1"):
        check(ExtractParams(target_modules=("w1",)), (material(stock.other), material(stock.base, "base")), ())


@pytest.mark.parametrize("params", [{"rank": 0}, {"target_modules": []}, {"alpha": 1}], ids=str)
def test_options_out_of_range_are_refused(params: dict[str, object]):
    with pytest.raises(ValidationError):
        ExtractParams.model_validate(params)
