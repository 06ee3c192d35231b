"""`prune` on SmolLM2: what each way costs in perplexity on held-out prose; the figures of docs/results.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.transforms._folder import ModelFolder

from tests.real.perplexity import perplexity

SAMPLES = {"num_calibration_samples": 64, "max_seq_length": 256}
CHANNELS = {"method": "structured", "structure": "channels", "sparsity": 0.1}
LAYERS = {"method": "structured", "structure": "layers", "sparsity": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "magnitude": {"sparsity": 0.5},
    "magnitude per row": {"sparsity": 0.5, "scope": "per-row"},
    "magnitude global": {"sparsity": 0.5, "scope": "global"},
    "wanda": {"method": "wanda", "sparsity": 0.5},
    "sparsegpt": {"method": "sparsegpt", "sparsity": 0.5},
    "magnitude 2:4": {"pattern": "2:4"},
    "wanda 2:4": {"method": "wanda", "pattern": "2:4"},
    "sparsegpt 2:4": {"method": "sparsegpt", "pattern": "2:4"},
    "channels": CHANNELS,
    "channels by activations": {**CHANNELS, "importance": "activations"},
    "layers": LAYERS,
    "layers by activations": {**LAYERS, "importance": "activations"},
}

Measure = Callable[[str], float]


@pytest.fixture(scope="module")
def registry(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with SmolLM2 as `base`, gone afterwards, since it is large."""
    folder = tmp_path_factory.mktemp("prune")
    with Registry.init(folder) as registry:
        registry.import_model(smollm2, ref="base")
        yield registry
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def original(smollm2: Path) -> float:
    found = perplexity(smollm2)
    print(f"\nSmolLM2 as it is: perplexity {found:.2f}")
    return found


@pytest.fixture(scope="module")
def measured(registry: Registry, train_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """The perplexity of each of WAYS, run once whoever asks, and told for docs/results.md."""

    @cache
    def measure(name: str) -> float:
        options = WAYS[name]
        reads = options.get("method") in ("wanda", "sparsegpt") or "importance" in options
        data: dict[str, Any] = {"data": [train_text], **SAMPLES} if reads else {}
        done = registry.apply("prune", source="base", threads=2, **data, **options)
        folder = tmp_path_factory.mktemp("checkout") / "model"
        registry.check_out(done.version, folder)
        with ModelFolder(folder) as model:
            parameters = sum(slot.elements for slot in model.slots.values())
        found = perplexity(folder)
        print(
            f"\n{name}: perplexity {found:.2f}, sparsity {done.facts['sparsity']:.4f}, {parameters / 1e6:.1f} M, "
            f"{done.facts.get('calibration_tokens', 0)} tokens, {done.wall_s:.0f} s"
        )
        shutil.rmtree(folder)
        return found

    return measure


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_what_goes_through_a_model_tells_better_what_may_go_than_its_weights_do(
    name: str, measured: Measure, original: float
):
    assert original < measured(name) < measured("magnitude")


@pytest.mark.parametrize("name", ["wanda 2:4", "sparsegpt 2:4"])
def test_that_holds_for_two_of_four_as_well(name: str, measured: Measure, original: float):
    assert original < measured(name) < measured("magnitude 2:4")


@pytest.mark.parametrize("structure", ["channels", "layers"])
def test_it_holds_for_whole_parts_too(structure: str, measured: Measure, original: float):
    assert original < measured(f"{structure} by activations") < measured(structure)


@pytest.mark.parametrize("name", ["magnitude per row", "magnitude global"])
def test_where_weights_compete_matters(name: str, measured: Measure, original: float):
    assert measured("magnitude") != measured(name) > original
