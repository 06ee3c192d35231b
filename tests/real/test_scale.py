"""Every training that several processes can share, and a whole chain on Ray, against the same in one process here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.transforms._engine import LocalEngine

from tests import tiny
from tests.transforms.conftest import make_job, tensors

DATA = {
    "text": tiny.text_rows(),
    "prompt": tiny.prompt_rows(),
    "chat": tiny.chat_rows(),
    "pairs": tiny.pair_rows(),
    "labels": tiny.label_rows(),
    "colours": tiny.colour_rows(),
    "tagged": tiny.tagged_rows(),
}

PREFER = {"tuning": "full", "learning_rate": 1e-3}

EQUAL: list[tuple[str, str, str, dict[str, Any]]] = [
    *(("finetune", "base", "text", {"method": kind}) for kind in ("full", "lora", "dora", "ia3", "prefix", "adapter")),
    ("finetune", "base", "prompt", {"method": "full", "layers": [1]}),
    ("finetune", "encoder", "colours", {"method": "full", "task": "sequence-classification", "eval_fraction": 0.2}),
    ("finetune", "encoder", "tagged", {"method": "lora", "task": "token-classification", "eval_fraction": 0.2}),
    ("instruct", "base", "chat", {"builtin_template": True}),
    ("instruct", "base", "chat", {"builtin_template": True, "packing": True, "max_length": 64}),
    ("adapt", "base", "text", {"max_length": 16}),
    ("prefer", "base", "pairs", PREFER),
    ("prefer", "base", "pairs", {"tuning": "lora", "learning_rate": 1e-3}),
    ("prefer", "base", "labels", {"method": "kto", "per_device_train_batch_size": 2, **PREFER}),
    ("prefer", "base", "pairs", {"method": "simpo", **PREFER}),
    ("reward", "base", "pairs", {"tuning": "full"}),
]
"""Trainings that give the same, up to rounding, whichever way the rows of a step are split."""

OWN_MEANS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("prefer", "base", "pairs", {"method": method, **PREFER}) for method in ("orpo", "cpo")
]
"""Trainings of which each process takes a mean over tokens of its own, so that short rows weigh a little more."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = tmp_path_factory.mktemp("shop")
    tiny.make_model(shop / "base", dtype="float32")
    tiny.make_encoder(shop / "encoder")
    for name, rows in DATA.items():
        tiny.write_rows(shop / f"{name}.jsonl", rows)
    return shop


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(state=tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.mark.parametrize(
    ("name", "source", "data", "params"), [*EQUAL, *OWN_MEANS], ids=lambda given: str(given).replace(" ", "")
)
def test_two_processes_do_what_one_does_on_twice_the_rows(
    engine: LocalEngine,
    shop: Path,
    tmp_path: Path,
    name: str,
    source: str,
    data: str,
    params: dict[str, Any],
):
    outputs, facts = [], []
    for processes in (1, 2):
        # What a step takes must divide the rows evenly, or the last one is filled up from the first.
        batch = params.get("per_device_train_batch_size", 1) * 2 // processes
        given = {"max_steps": 3, **params, "per_device_train_batch_size": batch}
        rows = [shop / f"{data}.jsonl"]
        job = make_job(engine, tmp_path / str(processes), name, shop / source, {}, shop, rows, given)
        job = job.model_copy(update={"processes": processes, "launcher": "torchrun" if processes > 1 else None})
        outcome = engine.run(job, lambda progress: None)
        assert outcome.error is None
        outputs.append(tensors(job.output))
        facts.append(outcome.facts)

    close = 2e-5 if (name, source, data, params) in EQUAL else 1e-2
    one, two = outputs
    assert one.keys() == two.keys()
    assert max(float((one[key].float() - two[key].float()).abs().max()) for key in one) < close
    assert [facts[0][key] for key in ("steps", "tokens", "flops")] == [
        facts[1][key] for key in ("steps", "tokens", "flops")
    ]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_training_on_ray_shared_by_two_gives_the_same_bytes_as_here(shop: Path, tmp_path: Path):
    with Registry.init(tmp_path) as registry:
        registry.import_model(shop / "base", ref="base")
        step: dict[str, Any] = {"data": [shop / "text.jsonl"], "threads": 1, "processes": 2, "max_steps": 3}

        here = registry.apply("finetune", "base", **step)
        there = registry.apply("finetune", "base", **step, on="ray", fresh=True)
        replayed = registry.replay(there.version)

    assert (here.version, here.facts) == (there.version, there.facts)
    assert "bytes" == replayed.verdict
