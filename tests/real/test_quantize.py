"""`quantize` on SmolLM2: what each method costs in perplexity on held-out prose; the figures of docs/results.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry

from tests.real.perplexity import perplexity

SAMPLES = {"num_calibration_samples": 64, "max_seq_length": 256}
METHODS: dict[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "dynamic-int8": {"method": "dynamic-int8"},
    "smoothquant": {"method": "smoothquant", **SAMPLES},
    "fp8": {"method": "fp8"},
    "int4": {"method": "int4"},
    "gptq": {"method": "gptq", **SAMPLES},
    "int4 with zero points": {"method": "int4", "symmetric": False},
    "awq": {"method": "awq", "n_grid": 8, "num_calibration_samples": 16, "max_seq_length": 128},
    "gguf Q8_0": {"method": "gguf"},
    "gguf Q4_0": {"method": "gguf", "gguf_type": "Q4_0"},
}

Measure = Callable[[str], float]


@pytest.fixture(scope="module")
def registry(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with SmolLM2 as `base`, gone afterwards, since it is large."""
    folder = tmp_path_factory.mktemp("quantize")
    with Registry.init(folder) as registry:
        registry.import_model(smollm2, ref="base")
        yield registry
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def original(smollm2: Path) -> float:
    found = perplexity(smollm2)
    print(f"\noriginal: perplexity {found:.2f}")
    return found


@pytest.fixture(scope="module")
def measured(registry: Registry, train_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """The perplexity of each of METHODS, run once whoever asks, and told for docs/results.md."""

    @cache
    def measure(name: str) -> float:
        data = {"data": [train_text]} if "num_calibration_samples" in METHODS[name] else {}
        done = registry.apply("quantize", source="base", threads=2, **data, **METHODS[name])
        folder = tmp_path_factory.mktemp("checkout") / "model"
        registry.check_out(done.version, folder)
        gguf = next(folder.glob("*.gguf"), None)
        found = perplexity(folder, **({"gguf_file": gguf.name} if gguf else {}))
        told = f"{found:.2f} {done.facts['bytes_after'] / 1e6:.0f} MB {done.wall_s:.0f} s"
        print(f"\n{name}: perplexity {told}, weights off by {done.facts['mean_relative_error']:.2%}")
        shutil.rmtree(folder)
        return found

    return measure


def test_int8_costs_less_than_a_hundredth(measured: Measure, original: float):
    assert measured("int8") < 1.01 * original


def test_gptq_is_better_than_rounding_to_the_nearest(measured: Measure, original: float):
    assert original < measured("gptq") < measured("int4")


@pytest.mark.parametrize("name", ["gguf Q8_0", "smoothquant"])
def test_other_ways_of_eight_bits_cost_little(name: str, measured: Measure, original: float):
    assert measured(name) < 1.02 * original


def test_rounding_what_goes_through_costs_more_unless_it_is_smoothed_before(measured: Measure, original: float):
    assert measured("smoothquant") < measured("dynamic-int8") < 1.06 * original


def test_eight_bit_floats_cost_more(measured: Measure, original: float):
    assert measured("int8") < measured("fp8") < 1.05 * original


def test_awq_is_better_than_rounding_to_the_nearest(measured: Measure, original: float):
    assert original < measured("awq") < measured("int4 with zero points")


def test_four_bits_of_gguf_are_a_model_still(measured: Measure, original: float):
    assert original < measured("gguf Q4_0") < 2 * original
