"""Rewriting a folder: files that are the same on every machine, and shards written tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import Refused
from mreg.registry.transform import Progress
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest, rewrite, write_json
from safetensors import safe_open
from safetensors.torch import save_file

from tests.transforms.conftest import Stock, tensors, tree


def same(folder: ModelFolder) -> Any:
    return lambda slot: [folder.tensor(slot.name)]


@pytest.mark.parametrize("name", ["base", "sharded"])
def test_writing_what_was_read_gives_the_same_files(stock: Stock, tmp_path: Path, name: str):
    source = getattr(stock, name)

    with ModelFolder(source) as folder:
        copy_rest(source, tmp_path)
        rewrite(folder, tmp_path, lambda slot: [slot], same(folder), lambda progress: None)

    assert tree(source) == tree(tmp_path)


def test_every_dtype_and_shape_survives(tmp_path: Path):
    held = {
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "longs": torch.arange(3),
        "halves": torch.randn(3, 5).half(),
        "eighths": torch.randn(7).to(torch.float8_e4m3fn),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_file(held, tmp_path / "in" / "model.safetensors", {"format": "pt"})

    with ModelFolder(tmp_path / "in") as folder:
        rewrite(folder, tmp_path / "out", lambda slot: [slot], same(folder), lambda progress: None)

    assert tree(tmp_path / "in") == tree(tmp_path / "out")


def test_wide_tensors_come_first_so_that_all_are_aligned(stock: Stock, tmp_path: Path):
    def plan(slot: Slot) -> list[Slot]:
        return [Slot(f"{slot.name}.odd", "U8", (3,)), Slot(f"{slot.name}.long", "I64", (1,))]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        yield torch.full((3,), len(slot.name), dtype=torch.uint8)
        yield torch.tensor([slot.elements])

    with ModelFolder(stock.base) as folder:
        rewrite(folder, tmp_path, plan, make, lambda progress: None)
        slots = folder.slots

    after = tensors(tmp_path)
    assert {name: slot.elements for name, slot in slots.items()} == {name: int(after[f"{name}.long"]) for name in slots}
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {"format": "pt"} == file.metadata()


def test_a_tensor_that_is_not_as_planned_is_a_bug(stock: Stock, tmp_path: Path):
    with ModelFolder(stock.base) as folder, pytest.raises(AssertionError):
        rewrite(folder, tmp_path, lambda slot: [slot], lambda slot: [torch.zeros(3)], lambda progress: None)


def test_progress_is_told_tensor_by_tensor(stock: Stock, tmp_path: Path):
    told: list[Progress] = []

    with ModelFolder(stock.sharded) as folder:
        rewrite(folder, tmp_path, lambda slot: [slot], same(folder), told.append)
        total = len(folder.slots)

    assert [(done, total) for done in range(1, total + 1)] == [(each.done, each.total) for each in told]


def test_a_tensor_in_two_files_is_refused(tmp_path: Path):
    for name in ("model.safetensors", "consolidated.safetensors"):
        save_file({"weight": torch.zeros(2)}, tmp_path / name)

    with pytest.raises(Refused, match="weight is in two weight files"), ModelFolder(tmp_path):
        pass


@pytest.mark.parametrize(
    "text",
    [
        '{\n  "a": 1,\n  "b": [\n    2\n  ]\n}\n',
        '{\n    "b": "\\u00e9",\n    "a": {}\n}',
        '{"a": "é", "b": null}',
    ],
)
def test_json_is_written_as_it_was_laid_out(tmp_path: Path, text: str):
    (tmp_path / "in.json").write_text(text, encoding="utf-8")

    write_json(tmp_path / "out.json", json.loads(text), tmp_path / "in.json")

    assert text == (tmp_path / "out.json").read_text(encoding="utf-8")


def test_a_new_key_goes_where_the_order_of_names_puts_it(stock: Stock, tmp_path: Path):
    change_config(stock.base, tmp_path, dtype="bfloat16", quantization_config={"bits": 4})

    keys = list(json.loads((tmp_path / "config.json").read_text()))
    assert "quantization_config" in keys
    assert sorted(keys) == keys


def test_a_config_that_does_not_change_keeps_its_bytes(stock: Stock, tmp_path: Path):
    change_config(stock.base, tmp_path, dtype="bfloat16")

    assert (stock.base / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
