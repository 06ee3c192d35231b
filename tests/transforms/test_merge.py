"""`merge`: the weighted mean, and parents that have none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams
from mreg.transforms.merge import MergeParams, check

from tests import tiny
from tests.transforms.conftest import Run, Stock, material, tensors, tree


def by_hand(parents: list[Path], weights: list[float]) -> dict[str, Any]:
    held = [tensors(parent) for parent in parents]
    sums = {}
    for name in held[0]:
        total = numpy.zeros(held[0][name].shape, dtype=numpy.float32)
        for tensor, weight in zip(held, weights, strict=True):
            total = total + tensor[name].float().numpy() * numpy.float32(weight)
        sums[name] = torch.from_numpy(total).to(held[0][name].dtype)
    return sums


def test_the_mean_of_two_is_numpys_to_the_last_bit(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other})

    expected = by_hand([stock.base, stock.other], [0.5, 0.5])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_three_parents_have_a_weight_each(run: Run, stock: Stock, tmp_path: Path):
    third = tiny.make_model(tmp_path / "third", seed=5)
    parents = [stock.base, stock.other, third]

    ran = run("merge", stock.base, more={"others": [stock.other, third]}, weights=(3, 2, 1))

    expected = by_hand(parents, [3 / 6, 2 / 6, 1 / 6])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_weights_are_taken_as_they_are_when_asked(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other}, weights=(1, -0.25), normalize=False)

    expected = by_hand([stock.base, stock.other], [1, -0.25])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_all_weight_on_the_source_gives_the_source(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other}, weights=(1, 0))

    assert tree(stock.base) == tree(ran.output)


def test_the_result_has_the_dtype_and_the_files_of_the_source(run: Run, stock: Stock, tmp_path: Path):
    wide = tiny.make_model(tmp_path / "wide", seed=4, dtype="float32")

    ran = run("merge", stock.base, more={"others": wide})

    assert {torch.bfloat16} == {tensor.dtype for tensor in tensors(ran.output).values()}
    assert (stock.base / "config.json").read_bytes() == (ran.output / "config.json").read_bytes()


def refusal(params: MergeParams, *folders: Path) -> str:
    with pytest.raises((Refused, BadParams)) as told:
        check(params, tuple(material(folder) for folder in folders), ())
    return str(told.value)


def test_other_shapes_are_refused_by_the_first_name(stock: Stock, tmp_path: Path):
    deep = tiny.make_model(tmp_path / "deep", layers=3)

    assert refusal(MergeParams(), stock.base, deep).startswith(
        "model.layers.2.input_layernorm.weight is missing in base and 64 in deep"
    )


def test_another_architecture_is_refused(stock: Stock, tmp_path: Path):
    other = shutil.copytree(stock.base, tmp_path / "mistral")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))

    assert refusal(MergeParams(), stock.base, other).startswith("model_type is llama in base and mistral in mistral")


def test_weights_must_be_as_many_as_the_parents(stock: Stock):
    assert refusal(MergeParams(weights=(1,)), stock.base, stock.other).startswith("1 weights for 2 models")


def test_weights_that_cancel_cannot_be_normalized(stock: Stock):
    assert refusal(MergeParams(weights=(1, -1)), stock.base, stock.other).startswith("weights that sum to 0")


def test_one_parent_is_refused(stock: Stock):
    assert refusal(MergeParams(), stock.base).startswith("a merge needs two models or more")


def test_an_adapter_among_the_parents_is_refused(stock: Stock):
    assert refusal(MergeParams(), stock.base, stock.adapter).startswith("adapter is an adapter")


def test_other_vocabularies_are_refused_by_the_first_token(stock: Stock, tmp_path: Path):
    other = shutil.copytree(stock.base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    assert refusal(MergeParams(), stock.base, other).startswith("token 'a' is ")
