"""`cast`: rounding, round trips and what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mreg.registry.errors import Refused
from mreg.transforms.cast import CastParams, check
from safetensors.torch import save_file

from tests.transforms.conftest import Run, Stock, material, tensors, tree


def test_bfloat16_to_float32_and_back_is_the_same_folder(run: Run, stock: Stock):
    wide = run("cast", stock.base, dtype="float32")
    back = run("cast", wide.output, dtype="bfloat16")

    assert tree(stock.base) == tree(back.output)


def test_every_element_is_rounded_to_the_nearest(run: Run, stock: Stock):
    ran = run("cast", stock.sharded, dtype="bfloat16")

    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tensors(stock.sharded).items()}
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_the_config_says_the_dtype_and_nothing_else_new(run: Run, stock: Stock):
    ran = run("cast", stock.base, dtype="float16")

    before = json.loads((stock.base / "config.json").read_text())
    assert {**before, "dtype": "float16"} == json.loads((ran.output / "config.json").read_text())


def test_a_config_that_says_torch_dtype_goes_on_saying_it(run: Run, stock: Stock, tmp_path: Path):
    old = shutil.copytree(stock.base, tmp_path / "old")
    text = (old / "config.json").read_text().replace('"dtype"', '"torch_dtype"')
    (old / "config.json").write_text(text)

    ran = run("cast", old, dtype="float32")

    assert text.replace("bfloat16", "float32") == (ran.output / "config.json").read_text()


def test_a_number_too_large_for_float16_is_named(run: Run, stock: Stock, tmp_path: Path):
    large = shutil.copytree(stock.base, tmp_path / "large")
    held = tensors(large)
    held["model.norm.weight"][3] = 70000.0
    save_file(held, large / "model.safetensors", {"format": "pt"})

    ran = run("cast", large, dtype="float16")

    assert ran.outcome.error == (
        "model.norm.weight holds 7.014e+04, too large for float16: cast to bfloat16, which has the range of float32"
    )


def test_other_forms_of_the_weights_are_left_out(run: Run, stock: Stock, tmp_path: Path):
    folder = shutil.copytree(stock.base, tmp_path / "folder")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"another form")
    (folder / "notes.txt").write_text("kept")

    ran = run("cast", folder, dtype="float32")

    assert ["onnx/model.onnx"] == ran.outcome.facts["left_out"]
    assert "kept" == (ran.output / "notes.txt").read_text()


def test_an_adapter_is_refused(stock: Stock):
    with pytest.raises(Refused, match="adapter is an adapter and cannot be cast by itself: fuse it"):
        check(CastParams(dtype="float32"), (material(stock.adapter),), ())


def test_a_quantized_model_is_refused(run: Run, stock: Stock):
    quantized = run("quantize", stock.base, method="int8")

    with pytest.raises(Refused, match="is quantized already"):
        check(CastParams(dtype="float32"), (material(quantized.output),), ())
