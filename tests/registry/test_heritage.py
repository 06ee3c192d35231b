"""Heritage: the right parent and the right kind, given only a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mreg.registry import Registry
from mreg.registry.proof.heritage import Heritage
from safetensors.numpy import save_file

from tests.registry import test_claims as made

NAMES = ["cast", "prune", "fuse", "quantize", "edit", "finetune", "merge"]


def write(folder: Path, weights: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file({name: np.ascontiguousarray(one) for name, one in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


@pytest.fixture
def family(registry: Registry, tmp_path: Path) -> tuple[Registry, dict[str, dict[str, Any]]]:
    """A base, two fine-tunes of it, one after the other, and a stranger."""
    chosen = np.random.default_rng(4)
    base = made.model(chosen, "BF16")
    first = made.near(chosen, base, 0.1)
    weights = {
        "base": base,
        "first": first,
        "second": made.near(chosen, first, 0.1),
        "stranger": made.model(chosen, "BF16"),
    }
    for name, held in weights.items():
        registry.import_model(write(tmp_path / name, held), ref=name)
    return registry, weights


def told(registry: Registry, found: Heritage) -> tuple[list[str], str]:
    names = {version.digest: ref for ref, version in registry.refs().items()}
    best = found.origins[0]
    return [names[version.digest] for version in best.versions], best.kind


@pytest.mark.parametrize("kind", NAMES)
def test_the_parent_and_the_kind_are_found(family: tuple[Registry, dict[str, Any]], tmp_path: Path, kind: str):
    registry, weights = family
    chosen, source = np.random.default_rng(5), weights["second"]
    factors, _ = made.lora(chosen, 1, made.LAYERS[:4])
    child = {
        "cast": lambda: made.cast(source, "F32"),
        "prune": lambda: made.prune(source, 0.4),
        "fuse": lambda: made.fuse(source, factors, 0.3),
        "quantize": lambda: made.quantize(source, 16, "BF16"),
        "edit": lambda: {**source, made.LAYERS[1]: made.fuse(source, factors, 0.3)[made.LAYERS[1]]},
        "finetune": lambda: made.near(chosen, source, 0.05),
        "merge": lambda: made.merge([weights["base"], source], [0.3, 0.7]),
    }[kind]()
    found = registry.heritage(write(tmp_path / "unknown", child))

    assert (["base", "second"] if kind == "merge" else ["second"], kind) == told(registry, found)


def test_a_copy_is_told_from_one_in_other_shards(family: tuple[Registry, dict[str, Any]], tmp_path: Path):
    registry, weights = family
    same = registry.heritage(tmp_path / "first")
    resharded = write(tmp_path / "resharded", weights["first"])
    (resharded / "config.json").write_text("{}")

    assert (["first"], "identical") == told(registry, same)
    assert (["first"], "same-weights") == told(registry, registry.heritage(resharded))


def test_what_is_not_of_ours_is_told_to_be_nobodys(family: tuple[Registry, dict[str, Any]], tmp_path: Path):
    registry, _ = family
    before = len(registry.events())
    other = made.model(np.random.default_rng(99), "BF16")

    assert () == registry.heritage(write(tmp_path / "other", other)).origins
    assert before == len(registry.events())
