"""Loading versions as models: what an adapter of any kind computes on its base is what it computed when it was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry import Registry
from mreg.transforms._adapter import save_adapter
from mreg.transforms._bottleneck import add_bottlenecks, save_bottlenecks

from tests import tiny

Make = Callable[[Path, Path], Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("stock") / "base", layers=1, dtype="float32")


def bottleneck(base: Path, folder: Path) -> Any:
    """The base with bottlenecks that are not zero, saved as an adapter."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    add_bottlenecks(model, width=3, target_modules=["o_proj", "down_proj"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    save_bottlenecks(model, folder)
    return model


def with_peft(model: Any, folder: Path, config: Any) -> Any:
    from peft import get_peft_model

    fitted = get_peft_model(model, config)
    save_adapter(fitted, folder)
    return fitted


def low_rank(base: Path, folder: Path) -> Any:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    return with_peft(AutoModelForCausalLM.from_pretrained(base), folder, config)


def classifier(base: Path, folder: Path) -> Any:
    """An adapter that brings a head for three classes."""
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    return with_peft(model, folder, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))


def prompt(base: Path, folder: Path) -> Any:
    from peft import PromptTuningConfig
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return with_peft(AutoModelForCausalLM.from_pretrained(base), folder, config)


@pytest.mark.parametrize("make", [bottleneck, low_rank, classifier, prompt])
def test_an_adapter_of_any_kind_computes_what_it_did(registry: Registry, base: Path, tmp_path: Path, make: Make):
    torch.manual_seed(0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    made = make(base, folder).eval()
    registry.import_model(base, ref="base")
    adapter = registry.import_model(folder, base="base").version

    loaded = registry.load(adapter)

    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, loaded(ids).logits)
        if make is not classifier:
            last = [model(ids).logits[:, -1] for model in (loaded, registry.load("base"))]
            assert (last[0] - last[1]).abs().max() > 0.01
    assert made.config.id2label == loaded.config.id2label
    assert not loaded.training
    assert [] == list((registry.root / "tmp").iterdir())


def test_options_reach_the_base_of_an_adapter(registry: Registry, base: Path, tmp_path: Path):
    registry.import_model(base, ref="base")
    bottleneck(base, tmp_path)
    adapter = registry.import_model(tmp_path, base="base").version

    loaded: Any = registry.load(adapter, dtype=torch.bfloat16)

    assert {torch.bfloat16} == {parameter.dtype for parameter in loaded.parameters()}


def test_a_model_that_is_only_gguf_is_loaded_from_it(registry: Registry, base: Path):
    registry.import_model(base, ref="base")
    quantized = registry.apply("quantize", source="base", method="gguf", gguf_type="F32").version

    ids = torch.arange(20)[None]
    expected, actual = (registry.load(version)(ids).logits for version in ("base", quantized))
    assert torch.allclose(expected, actual, atol=1e-5)
