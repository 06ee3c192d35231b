"""Diff: recipe, files and weights of two versions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mreg.registry import Registry
from safetensors.numpy import save_file


def make(folder: Path, *, noise: float = 0, notes: str = "", extra: bool = False) -> Path:
    folder.mkdir()
    weights = {"a.weight": np.ones((4, 4), np.float32), "b.weight": np.full((2,), 3 + noise, np.float32)}
    save_file({**weights, **({"c.weight": np.zeros(2, np.float32)} if extra else {})}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    if notes:
        (folder / "NOTES.md").write_text(notes)
    return folder


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry.init(folder)
    registry.import_model(make(folder / "1", notes="one"))
    registry.record_version(make(folder / "2", noise=3, notes="two"), transform="tune", source="v1")
    registry.record_version(make(folder / "3", extra=True), transform="grow", source="v1", params={"by": 1})
    return registry


def test_a_version_is_the_same_as_itself(registry: Registry):
    difference = registry.diff("v1", "v1")

    assert difference.is_same
    assert difference.tensors is not None
    assert ((), (), (), 2) == (
        difference.tensors.added,
        difference.tensors.removed,
        difference.tensors.changed,
        difference.tensors.identical,
    )
    assert ["same"] == [change.kind for change in difference.recipe]


def test_changed_weights_are_measured_and_changed_files_named(registry: Registry):
    difference = registry.diff("v1", "v2")

    assert not difference.is_same
    assert difference.tensors is not None
    (changed,) = difference.tensors.changed
    assert ("b.weight", 3.0, 1.0, 1.0) == (changed.name, changed.max_abs, changed.rel_l2, changed.changed_fraction)
    assert ((), (), ("NOTES.md",), 1) == (
        difference.files.added,
        difference.files.removed,
        difference.files.changed,
        difference.files.identical,
    )
    assert [("same", "import"), ("added", "tune")] == [(change.kind, change.transform) for change in difference.recipe]


def test_tensors_and_files_that_came_and_went_are_named_from_either_side(registry: Registry):
    there, back = registry.diff("v1", "v3"), registry.diff("v3", "v1")

    assert there.tensors is not None
    assert back.tensors is not None
    assert ("c.weight",) == there.tensors.added == back.tensors.removed
    assert ("NOTES.md",) == there.files.removed == back.files.added
    assert ["removed"] == [change.kind for change in back.recipe if change.transform == "grow"]


def test_weights_are_not_read_unless_asked_for(registry: Registry):
    assert registry.diff("v1", "v2", weights=False).tensors is None
