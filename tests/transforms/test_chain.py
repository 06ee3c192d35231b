"""A whole life of a model, from its base to what is served, done again and judged step by step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.versions import Version
from mreg.transforms._engine import LocalEngine

from tests.transforms.conftest import Stock

BRIEF = {"max_steps": 1, "max_length": 32}

CHAIN = ["finetune", "fuse", "prefer", "prune", "edit", "prune", "merge", "cast", "quantize"]


@pytest.fixture(scope="module")
def registry(engine: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.init(tmp_path_factory.mktemp("chain"), engine=engine)


@pytest.fixture(scope="module")
def served(registry: Registry, stock: Stock) -> Version:
    """What came of LoRA, fusing, DPO, pruning, an edit, a merge, a cast and a quantization."""

    def then(transform: str, source: Version, *others: Version, data: str = "", **params: object) -> Version:
        rows = [stock.data / f"{data}.jsonl"] if data else []
        return registry.apply(transform, source, data=rows, others=[*others], threads=1, **params).version

    base = registry.import_model(stock.base).version
    tuned = then("fuse", then("finetune", base, data="text", method="lora", **BRIEF))
    liked = then("prefer", tuned, data="pairs", method="dpo", tuning="full", **BRIEF)
    edited = then("edit", then("prune", liked, sparsity=0.5), data="facts", method="constrained", num_steps=1)
    other = then("prune", registry.import_model(stock.other).version, sparsity=0.25)
    merged = then("merge", edited, other)
    return then("quantize", then("cast", merged, dtype="float32"), method="int8", group_size=32)


def test_a_chain_of_nine_steps_with_a_merge_comes_out_again_from_its_bases(registry: Registry, served: Version):
    planned = registry.replay_plan(served, from_base=True)
    replayed = registry.replay(served, from_base=True)

    assert CHAIN == [step.transform for step in planned.steps]
    assert 2 == len(planned.given)
    assert [(name, "bytes") for name in CHAIN] == [(step.transform, step.verdict) for step in replayed.steps]
    assert all(1 == registry.show(step.version)["reproduced"]["times"] for step in planned.steps)


def test_a_model_that_another_model_rewarded_comes_out_again_from_the_bases_of_both(registry: Registry, stock: Stock):
    pairs, prompts = stock.data / "pairs.jsonl", stock.data / "prompt.jsonl"
    registry.add_dataset(pairs, name="pairs")
    base, other = (registry.import_model(folder).version for folder in (stock.base, stock.other))
    judge = registry.apply("reward", other, data=[pairs], threads=1, **BRIEF).version
    brief = {"max_steps": 1, "max_completion_length": 4}
    pleased = registry.apply(
        "reinforce", base, data=[prompts], others=[("reward", judge)], threads=1, method="online-dpo", **brief
    ).version
    planned = registry.replay_plan(pleased, from_base=True)

    assert {"reward", "reinforce"} == {step.transform for step in planned.steps}
    assert {base.digest, other.digest} == {version.digest for version in planned.given}
    assert ["bytes", "bytes"] == [step.verdict for step in registry.replay(pleased, from_base=True).steps]
    reached = registry.recall("pairs", message="consent was withdrawn", dry_run=True).versions
    assert {judge.digest, pleased.digest} <= {one.row["digest"] for one in reached}


def test_what_answers_otherwise_is_measured_beside_what_was_recorded(registry: Registry, stock: Stock, tmp_path: Path):
    amount = tmp_path / "amount"
    amount.write_text("0.125")
    code = tmp_path / "shift.py"
    code.write_text(SHIFT.format(amount=amount))
    base = registry.import_model(stock.base).version
    shifted = registry.apply("command", base, threads=1, command=[sys.executable, str(code)]).version
    amount.write_text("0.25")

    def judged(rows: Path) -> dict[str, object]:
        (step,) = registry.replay(shifted, behaviour=rows).steps
        assert "different" == step.verdict
        assert step.behaviour is not None
        return step.behaviour

    told = judged(stock.data / "prompt.jsonl")
    refused = judged(stock.data / "facts.jsonl")

    kl, agreement = told["kl"], told["agreement"]
    assert isinstance(kl, dict)
    assert isinstance(agreement, dict)
    assert kl["low"] <= kl["value"] <= kl["high"]
    assert kl["value"] > 0
    assert 0 <= agreement["value"] <= 1
    assert {"dataset", "refused"} == refused.keys()


SHIFT = """
import os, shutil
from pathlib import Path
from safetensors.torch import load_file, save_file

shutil.copytree(os.environ["MREG_INPUT"], os.environ["MREG_OUTPUT"], dirs_exist_ok=True)
path = Path(os.environ["MREG_OUTPUT"], "model.safetensors")
tensors = load_file(path)
tensors["model.norm.weight"] += float(Path("{amount}").read_text()) * (tensors["model.norm.weight"] + 1).cumsum(0) / 64
save_file(tensors, path, {{"format": "pt"}})
"""
