"""`quantize`: the format that transformers loads, and errors no larger than half a step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams
from mreg.transforms.quantize import QuantizeParams, check
from safetensors.torch import save_file

from tests.transforms.conftest import Run, Stock, material, tensors

BITS = {"int8": 8, "int4": 4}


@pytest.mark.parametrize("group_size", [16, 64, -1])
@pytest.mark.parametrize("method", BITS)
def test_no_weight_is_off_by_more_than_half_a_step(run: Run, stock: Stock, method: str, group_size: int):
    before = tensors(stock.sharded)
    after = tensors(run("quantize", stock.sharded, method=method, group_size=group_size).output)

    for packed in [name for name in after if name.endswith("weight_packed")]:
        module = packed.removesuffix("_packed")
        shape, scale = after[f"{module}_shape"], after[f"{module}_scale"]
        steps = unpack_from_int32(after[packed], BITS[method], torch.Size(shape.tolist())).float()
        scale = scale.repeat_interleave(steps.shape[1] // scale.shape[1], dim=1)
        # The largest weight of a group lies half a step beyond the last integer on the positive side.
        assert ((steps * scale - before[module]).abs() <= 0.5001 * scale).all(), module


def test_transformers_computes_with_the_weights_that_were_stored(run: Run, stock: Stock):
    from transformers import AutoModelForCausalLM

    ids = torch.arange(10, 40)[None]
    ran = run("quantize", stock.sharded, method="int8", group_size=32)

    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(stock.sharded)(ids).logits
        actual = AutoModelForCausalLM.from_pretrained(ran.output)(ids).logits
    assert (expected - actual).abs().max() < 0.05 * expected.abs().max()


def test_groups_with_a_zero_point_of_their_own_are_closer(run: Run, stock: Stock):
    centred = run("quantize", stock.base, method="int4").outcome.facts
    shifted = run("quantize", stock.base, method="int4", symmetric=False).outcome.facts

    assert shifted["mean_relative_error"] < centred["mean_relative_error"]


def test_a_group_of_zeros_stays_zero(run: Run, stock: Stock, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    hollow = shutil.copytree(stock.base, tmp_path / "hollow")
    held = tensors(hollow)
    held["model.layers.0.mlp.up_proj.weight"].zero_()
    save_file(held, hollow / "model.safetensors", {"format": "pt"})

    ran = run("quantize", hollow, method="int4")

    model = AutoModelForCausalLM.from_pretrained(ran.output)
    assert model(torch.arange(5)[None]).logits.isfinite().all()
    assert 0.0 == float(model.model.layers[0].mlp.up_proj.weight.abs().max())


def test_fewer_bits_take_fewer_bytes(run: Run, stock: Stock):
    eight = run("quantize", stock.base, method="int8").outcome.facts
    four = run("quantize", stock.base, method="int4").outcome.facts

    assert four["bytes_after"] < eight["bytes_after"] < eight["bytes_before"] == four["bytes_before"]


def test_the_config_names_the_format_and_the_layers_left_alone(run: Run, stock: Stock):
    ran = run("quantize", stock.sharded, method="int4", ignore=("lm_head", "re:.*down_proj"))

    told = json.loads((ran.output / "config.json").read_text())["quantization_config"]
    assert ("compressed-tensors", "pack-quantized") == (told["quant_method"], told["format"])
    assert ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"] == sorted(told["ignore"])


def test_the_index_names_every_tensor_that_is_there(run: Run, stock: Stock):
    ran = run("quantize", stock.sharded, method="int4")

    index = json.loads((ran.output / "model.safetensors.index.json").read_text())
    assert sorted(tensors(ran.output)) == sorted(index["weight_map"])
    assert ran.outcome.facts["bytes_after"] == index["metadata"]["total_size"]


def test_groups_that_do_not_divide_the_columns_are_refused(run: Run, stock: Stock):
    ran = run("quantize", stock.base, method="int4", group_size=48)

    assert (ran.outcome.error or "").startswith("groups of 48 do not divide the 128 columns of model.layers.0.mlp.down")
    assert "use a group size of 16" in (ran.outcome.error or "")


def test_a_group_of_nothing_is_refused(stock: Stock):
    with pytest.raises(BadParams, match="a group of 0 weights"):
        check(QuantizeParams(group_size=0), (material(stock.base),), ())


def test_quantizing_twice_is_refused(run: Run, stock: Stock):
    quantized = run("quantize", stock.base)

    with pytest.raises(Refused, match="is quantized already \\(compressed-tensors\\)"):
        check(QuantizeParams(), (material(quantized.output),), ())
