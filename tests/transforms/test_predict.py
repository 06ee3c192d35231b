"""`predict`: what a transform says of its output before anybody reads it is what came out, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mreg.transforms._engine import LocalEngine
from mreg.transforms._predict_edit import directions

from tests import tiny
from tests.transforms.conftest import Here, Stock
from tests.transforms.predicted import Outcome, outcome_of
from tests.transforms.test_edit import FACTS, QUICK, make

Paths = dict[str, Path | list[Path]]
Try = Callable[..., Outcome]


@pytest.fixture
def attempt(here: Here, engine: LocalEngine) -> Try:
    """`attempt("cast", stock.base, dtype="float32")`: run it, and hold its predictions against the output."""

    def attempt(name: str, source: Path, *, more: Paths | None = None, data: Any = None, **params: Any) -> Outcome:
        output, facts = here(name, source, more=more, data=data, **params)
        given = {role: each if isinstance(each, list) else [each] for role, each in (more or {}).items()}
        return outcome_of(engine.find(name), params, facts, {"source": [source], **given}, output)

    return attempt


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Three models of a dtype that differ a little, as those that were tuned from one do."""
    root = tmp_path_factory.mktemp("models")

    def make(dtype: str) -> list[Path]:
        if not (root / dtype).exists():
            tiny.make_model(root / dtype / "0", dtype=dtype)
            for number in (1, 2):
                tuned(root / dtype / "0", root / dtype / str(number), seed=number)
        return [root / dtype / str(number) for number in range(3)]

    return make


def tuned(source: Path, target: Path, seed: int) -> Path:
    """A copy whose weights were moved by a hundredth of their size."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    chance = torch.Generator().manual_seed(seed)
    weights = load_file(source / "model.safetensors")
    moved = {
        name: (one.float() + 0.01 * one.float().std() * torch.randn(one.shape, generator=chance)).to(one.dtype)
        for name, one in weights.items()
    }
    save_file(moved, target / "model.safetensors", metadata={"format": "pt"})
    return target


MERGES: Mapping[str, dict[str, Any]] = {
    "linear": {},
    "weighted": {"weights": [0.3, 0.9], "normalize": False},
    "slerp": {"method": "slerp", "t": 0.3},
    "task arithmetic": {"method": "task-arithmetic", "weights": [0.4, 0.7], "lambda": 1.3},
    "normalized": {"method": "task-arithmetic", "weights": [0.4, 0.7], "normalize": True},
    "ties": {"method": "ties", "density": [0.2, 0.5]},
    "dare": {"method": "dare-linear", "density": [0.3]},
    "dare with signs": {"method": "dare-ties", "density": [0.3, 1.0], "normalize": True},
    "model stock": {"method": "model-stock"},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("how", MERGES)
def test_a_merge_is_predicted_whole(attempt: Try, models: Callable[[str], list[Path]], how: str, dtype: str):
    base, one, other = models(dtype)
    on_base = {"base": base} if MERGES[how].get("method", "linear") not in ("linear", "slerp") else {}

    found = attempt("merge", one, more={"others": [other], **on_base}, **MERGES[how])

    assert (20, 0.0) == (len(found.predictions), found.worst())


def test_models_in_other_dtypes_and_shards_are_merged_as_well(attempt: Try, stock: Stock, tmp_path: Path):
    source = tiny.make_model(tmp_path / "source", dtype="float16", tied=False)
    other = tiny.make_model(tmp_path / "other", seed=4, dtype="float32", tied=False)

    found = attempt("merge", source, more={"others": [other, stock.sharded]}, weights=[1, 2, 3])

    assert (21, 0.0) == (len(found.predictions), found.worst())


def test_a_merge_that_was_made_in_16_bits_is_predicted_too(
    engine: LocalEngine, models: Callable[[str], list[Path]], tmp_path: Path
):
    from safetensors.torch import load_file, save_file

    one, other, _ = models("bfloat16")
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    save_file({name: 0.3 * a[name] + 0.7 * b[name] for name in a}, tmp_path / "model.safetensors")

    params = {"weights": [0.3, 0.7]}
    found = outcome_of(engine.find("merge"), params, {}, {"source": [one], "others": [other]}, tmp_path)

    assert found.worst(0) > 0.1
    assert found.worst(1) == 0.0


def test_what_a_drawing_left_is_not_predicted_without_its_seed(here: Here, engine: LocalEngine, stock: Stock):
    params = {"method": "dare-linear", "density": [0.3]}
    output, facts = here("merge", stock.other, more={"base": stock.base}, **params)

    inputs = {"source": [stock.other], "base": [stock.base]}
    found = outcome_of(engine.find("merge"), params, facts, inputs, output, seed=None)

    assert {} == found.predictions


PRUNINGS: Mapping[str, tuple[dict[str, Any], str]] = {
    "per tensor": ({"sparsity": 0.5}, "threshold"),
    "of all": ({"sparsity": 0.6, "scope": "global"}, "threshold"),
    "per row": ({"sparsity": 0.37, "scope": "per-row"}, "n-of-m"),
    "2:4": ({"pattern": "2:4"}, "n-of-m"),
    "4:16": ({"pattern": "4:16"}, "n-of-m"),
    "channels": ({"method": "structured", "structure": "channels", "sparsity": 0.3}, "take"),
    "heads": ({"method": "structured", "structure": "heads", "sparsity": 0.5}, "take"),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("how", PRUNINGS)
def test_pruning_is_predicted_whole(attempt: Try, models: Callable[[str], list[Path]], how: str, dtype: str):
    params, operation = PRUNINGS[how]

    found = attempt("prune", models(dtype)[0], **params)

    assert ({operation}, 0.0) == (found.operations(), found.worst())
    assert {"channels": 6, "heads": 8}.get(how, 14) == len(found.predictions)


def test_the_threshold_of_another_tool_is_found(engine: LocalEngine, stock: Stock, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    name = "model.layers.0.mlp.up_proj.weight"
    weights = load_file(stock.base / "model.safetensors")
    weights[name] = torch.where(weights[name].abs() < 0.07, 0.0, weights[name].float()).to(torch.bfloat16)
    save_file(weights, tmp_path / "model.safetensors")

    # What is recorded about it may be little, or wrong.
    found = outcome_of(engine.find("prune"), {"sparsity": 0.9}, {}, {"source": [stock.base]}, tmp_path)

    assert {name: [0.0]} == found.wrong


QUANTIZED: Mapping[str, dict[str, Any]] = {
    "int8": {"method": "int8"},
    "int4": {"method": "int4", "group_size": 32},
    "int4 with zero points": {"method": "int4", "symmetric": False},
    "int8 by rows with zero points": {"method": "int8", "symmetric": False, "group_size": -1},
    "fp8": {"method": "fp8"},
    "dynamic-int8": {"method": "dynamic-int8"},
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("how", QUANTIZED)
def test_rounding_to_the_nearest_is_predicted_whole(
    attempt: Try, models: Callable[[str], list[Path]], how: str, dtype: str
):
    found = attempt("quantize", models(dtype)[0], **QUANTIZED[how])

    # From the weights alone, and for the integers also by the scales as they are stored.
    assert (0.0, 0.0) == (found.worst(0), found.worst(1))
    has_points = QUANTIZED[how].get("symmetric") is False
    assert 14 * (3 if has_points else 2) == len(found.predictions)
    assert {"grid", "grid-scale", *(["grid-zero-point"] if has_points else [])} == found.operations()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}], ids=str)
def test_a_fused_lora_is_predicted_whole(
    attempt: Try, models: Callable[[str], list[Path]], tmp_path: Path, dtype: str, options: dict[str, Any]
):
    base = models(dtype)[0]
    adapter = tiny.make_adapter(tmp_path / "adapter", base, **options)

    found = attempt("fuse", adapter, more={"base": base})

    assert ({"low-rank"}, 0.0) == (found.operations(), found.worst())
    assert (4 if options else 14) == len(found.predictions)


def test_a_fused_lora_that_was_only_recorded_is_predicted_too(
    here: Here, engine: LocalEngine, models: Callable[[str], list[Path]], tmp_path: Path
):
    base = models("bfloat16")[0]
    adapter = tiny.make_adapter(tmp_path / "adapter", base)
    output, _ = here("fuse", adapter, more={"base": base})

    found = outcome_of(engine.find("fuse"), {}, {}, {"source": [base], "others": [adapter]}, output)

    assert (14, 0.0) == (len(found.predictions), found.worst())


def test_a_lora_that_was_fused_in_16_bits_is_predicted_but_for_last_bits(
    engine: LocalEngine, models: Callable[[str], list[Path]], tmp_path: Path
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = models("bfloat16")[0]
    adapter = tiny.make_adapter(tmp_path / "adapter", base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "fused")

    found = outcome_of(engine.find("fuse"), {}, {}, {"source": [adapter], "base": [base]}, tmp_path / "fused")

    assert min(found.worst(0), found.worst(1)) <= 0.001


def test_a_lora_that_peft_fused_is_predicted_but_for_last_bits(
    attempt: Try, models: Callable[[str], list[Path]], tmp_path: Path
):
    base = models("bfloat16")[0]
    patterns = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}
    adapter = tiny.make_adapter(tmp_path / "adapter", base, **patterns)

    found = attempt("fuse", adapter, more={"base": base})

    assert 14 == len(found.predictions)
    assert found.worst() <= 0.001


def test_a_fused_dora_is_predicted_but_for_last_bits(attempt: Try, models: Callable[[str], list[Path]], tmp_path: Path):
    base = models("bfloat16")[0]

    found = attempt("fuse", tiny.make_adapter(tmp_path / "adapter", base, use_dora=True), more={"base": base})

    assert ({"dora"}, 14) == (found.operations(), len(found.predictions))
    assert found.worst() <= 0.005


def test_a_fused_ia3_is_predicted_whole(attempt: Try, models: Callable[[str], list[Path]], tmp_path: Path):
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    base = models("bfloat16")[0]
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    chance = torch.Generator().manual_seed(0)
    for name, one in model.named_parameters():
        if "ia3" in name:
            one.data = 1 + 0.1 * torch.randn(one.shape, generator=chance)
    model.save_pretrained(tmp_path / "adapter")

    found = attempt("fuse", tmp_path / "adapter", more={"base": base})

    assert ({"scaled"}, 4, 0.0) == (found.operations(), len(found.predictions), found.worst())


def test_an_adapter_that_does_more_than_add_is_not_predicted(
    attempt: Try, models: Callable[[str], list[Path]], tmp_path: Path
):
    base = models("bfloat16")[0]

    adapter = tiny.make_adapter(tmp_path / "adapter", base, init_lora_weights="pissa")

    found = attempt("fuse", adapter, more={"base": base})

    assert {} == found.predictions


@pytest.mark.parametrize(("dtype", "to"), [("bfloat16", "float32"), ("float32", "float16"), ("float16", "bfloat16")])
def test_a_cast_is_predicted_whole(attempt: Try, models: Callable[[str], list[Path]], dtype: str, to: str):
    found = attempt("cast", models(dtype)[0], dtype=to)

    assert ({"cast"}, 20, 0.0) == (found.operations(), len(found.predictions), found.worst())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_scaled_last_layer_is_predicted_whole(attempt: Try, stock: Stock, tmp_path: Path, dtype: str):
    from safetensors.torch import load_file, save_file

    source = tiny.make_model(tmp_path / "untied", dtype=dtype)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))

    found = attempt("calibrate", source, data=[stock.data / "text.jsonl"], max_tokens=400)

    assert {"lm_head.weight": [0.0]} == found.wrong


def test_an_edit_is_predicted_but_for_what_rounding_hid(here: Here, engine: LocalEngine, stock: Stock, tmp_path: Path):
    source, _ = here("cast", make(tmp_path / "taught", "llama"), dtype="bfloat16")
    data = [tiny.write_rows(tmp_path / "facts.jsonl", FACTS), stock.data / "text.jsonl"]
    params = {"layers": [1], **QUICK}
    output, facts = here("edit", source, data=data, **params)

    found = outcome_of(engine.find("edit"), params, facts, {"source": [source]}, output)

    (name,) = facts["matrices"]
    assert {name: ["factors"]} == {name: [one.operation for one in each] for name, each in found.predictions.items()}
    assert found.worst() < 0.1


@pytest.mark.parametrize("rank", [1, 3])
def test_the_directions_of_a_change_are_found_below_its_rounding(rank: int):
    chance = np.random.default_rng(rank)
    before = chance.standard_normal((300, 500)).astype(np.float32).view(np.uint32) >> 16 << 16
    weights = before.view(np.float32)
    change = (chance.standard_normal((300, rank)) @ chance.standard_normal((rank, 500)) * 0.01).astype(np.float32)
    after = torch.from_numpy(weights + change).to(torch.bfloat16)

    left, right = directions(after.float().numpy(), after.float().numpy() - weights, rank)

    again = torch.from_numpy(weights + left.T @ right).to(torch.bfloat16)
    assert float((after != torch.from_numpy(weights).to(torch.bfloat16)).float().mean()) > 0.5
    assert float((after != again).float().mean()) < 0.03


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("quantize", {"method": "gguf"}),
        ("merge", {"method": "passthrough", "slices": ["0:0-2"]}),
        ("edit", {"undo": True}),
    ],
)
def test_what_cannot_be_told_is_not_predicted(engine: LocalEngine, stock: Stock, name: str, params: dict[str, Any]):
    found = outcome_of(engine.find(name), params, {}, {"source": [stock.base]}, stock.other)

    assert {} == found.predictions


@pytest.mark.parametrize("name", ["cast", "merge", "prune", "quantize", "fuse", "edit", "calibrate"])
def test_tensors_of_other_names_and_shapes_are_not_predicted(
    engine: LocalEngine, stock: Stock, tmp_path: Path, name: str
):
    from safetensors.torch import save_file

    norm = "model.norm.weight"
    save_file(
        {norm: torch.ones(63), "weight": torch.ones(4, 4), "x.weight_scale": torch.ones(4, 1)},
        tmp_path / "a.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    params = {"cast": {"dtype": "float32"}, "prune": {"sparsity": 0.5}}.get(name, {})
    inputs = {"source": [stock.base], "base": [stock.base], "others": [stock.other]}
    inputs = {"source": [tmp_path], "base": [stock.base]} if name == "fuse" else inputs
    inputs = {
        role: each
        for role, each in inputs.items()
        if role in {"source", *(["others"] if name == "merge" else ["base"])}
    }

    found = outcome_of(engine.find(name), params, {"layer": "weight", "temperature": 2.0}, inputs, tmp_path)

    assert {} == found.predictions


def test_predicting_needs_no_torch(stock: Stock):
    program = """
import sys
from pathlib import Path
from mreg.registry.proof.claim import Made
from mreg.registry.models.weight_sources import FolderTensors
from mreg.transforms import _catalog
base, other, adapter = (FolderTensors(Path(path)) for path in sys.argv[1:])
config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
inputs = {"source": (base,), "base": (base,), "others": (other,)}
asked = {
    "merge": [{}, {"method": "slerp"}, {"method": "ties", "density": [0.5]}], "prune": [{"sparsity": 0.5}],
    "quantize": [{}], "cast": [{"dtype": "float32"}], "fuse": [{}], "edit": [{}], "calibrate": [{}],
}
for name, each in asked.items():
    transform = _catalog.find(name)
    for params in each:
        given = {**inputs, "source": (adapter,)} if name == "fuse" else inputs
        if name == "merge" and params.get("method") != "ties":
            given = {role: sources for role, sources in given.items() if role != "base"}
        made = Made(name, params, {}, given, {"source": config}, other, {}, is_adapter=False)
        print(name, len(dict(transform.predict(transform.params.model_validate(params), made))))
print(*sorted({"torch", "transformers", "safetensors", "compressed_tensors"} & sys.modules.keys()))
"""
    paths = [str(path) for path in (stock.base, stock.other, stock.adapter)]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)

    *counts, heavy = done.stdout.split("\n")[:-1]
    told = dict(line.split() for line in counts)
    assert {"merge": "20", "fuse": "14", "edit": "15"} == {name: count for name, count in told.items() if count != "0"}
    assert heavy == ""
