"""Checkpoints of trainings: stopped half-way and gone on from, a training ends in the same bytes and facts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused
from mreg.registry.runs import checkpoints
from mreg.registry.runs.applying import Interrupted
from mreg.registry.runs.checkpoints import Checkpoint, NoCheckpoint
from mreg.registry.transform import BadParams, Checkpointing, Job, Progress
from mreg.transforms._checkpointing import Stopped
from mreg.transforms._engine import LocalEngine

from tests import tiny
from tests.transforms.conftest import Stock, make_job, tree

REWARD = "def reward(completions, **columns):\n    return [text.count('e') - 1 for text in completions]\n"
WRITE = {"max_completion_length": 6, "reward_function": REWARD, "learning_rate": 1e-2, "beta": 0.1}
GROUPS = {**WRITE, "num_generations": 4, "num_iterations": 2, "per_device_train_batch_size": 8}
CONSTITUTE = {"max_new_tokens": 6, "principles": "Be brief.", "critique_request": "{principle} Why not?"}


@dataclass(frozen=True)
class Case:
    """How to call a training on the stock. Rows are gone through more than once, so that epochs end on the way."""

    params: dict[str, Any] = field(default_factory=dict)
    data: str = "prompt"
    more: dict[str, str] = field(default_factory=dict)


CASES = {
    "finetune lora": Case({"lora_dropout": 0.1, "gradient_accumulation_steps": 2}),
    "finetune full": Case({"method": "full", "eval_fraction": 0.2}),
    "finetune pissa": Case({"method": "pissa"}),
    "finetune vera": Case({"method": "vera"}),
    "finetune p-tuning": Case({"method": "p-tuning"}),
    "finetune ia3": Case({"method": "ia3", "per_device_train_batch_size": 6}),
    "finetune prefix": Case({"method": "prefix"}),
    "finetune adapter": Case({"method": "adapter"}),
    "finetune sgd": Case({"method": "full", "optim": "sgd", "lr_scheduler_type": "cosine"}),
    "finetune adafactor": Case({"method": "full", "optim": "adafactor"}),
    "finetune classify": Case({"task": "sequence-classification"}, data="colours"),
    "instruct lora": Case({"builtin_template": True}, data="chat"),
    "instruct packed": Case({"packing": True, "tuning": "full", "assistant_only_loss": False}, data="chat"),
    "adapt full": Case({"max_length": 16}, data="text"),
    "prefer dpo": Case(data="pairs"),
    "prefer dpo-full": Case({"tuning": "full", "loss_type": ("sigmoid", "sft")}, data="pairs"),
    "prefer kto": Case({"method": "kto"}, data="labels"),
    "prefer orpo": Case({"method": "orpo"}, data="pairs"),
    "prefer simpo": Case({"method": "simpo"}, data="pairs"),
    "reward full": Case(data="pairs"),
    "reward lora": Case({"tuning": "lora"}, data="pairs"),
    "reinforce grpo": Case(GROUPS, data="pairs"),
    "reinforce rloo": Case({**WRITE, "method": "rloo", "gradient_accumulation_steps": 2}, data="pairs"),
    "reinforce online-dpo": Case({**WRITE, "method": "online-dpo"}, data="pairs"),
    "distill logit": Case(more={"teacher": "other"}),
    "distill hidden": Case({"method": "hidden"}, more={"teacher": "wide"}),
    "distill gkd": Case({"method": "gkd", "max_new_tokens": 6}, more={"teacher": "other"}),
    "constitute both": Case(CONSTITUTE),
    "constitute full": Case({**CONSTITUTE, "tuning": "full"}),
}


QUICK = {
    *("finetune lora", "finetune full", "finetune p-tuning", "finetune classify", "instruct packed", "prefer dpo"),
    *("reinforce grpo", "reinforce rloo", "distill hidden", "constitute both"),
}
"""What is checkpointed in a way of its own; `--thorough` tries the others too."""


@dataclass(frozen=True)
class Bench:
    """Runs trainings in this process."""

    engine: LocalEngine
    stock: Stock
    folder: Path

    def job(self, name: str, number: int, **checkpointing: Any) -> Job:
        case = CASES[name]
        more: dict[str, Any] = {
            role: self.wide() if model == "wide" else getattr(self.stock, model) for role, model in case.more.items()
        }
        params = {"max_steps": 7, "per_device_train_batch_size": 2, **case.params}
        data: Any = [self.folder / "colours.jsonl"] if case.data == "colours" else case.data
        data_folder, base = self.stock.data, self.stock.base
        job = make_job(self.engine, self.folder / f"{number}", name.split()[0], base, more, data_folder, data, params)
        job.output.mkdir()
        if checkpointing:
            chosen = Checkpointing(folder=self.folder / "checkpoints", code="c" * 64, **checkpointing)
            job = job.model_copy(update={"checkpoints": chosen})
        return job

    def wide(self) -> Path:
        folder = self.folder / "wide"
        return folder if folder.exists() else tiny.make_model(folder, seed=5, hidden_size=96)

    def run(self, job: Job, heard: Callable[[Progress], None] = lambda _: None) -> dict[str, Any]:
        import torch

        torch.manual_seed(job.seed)
        torch.set_num_threads(1)
        transform = self.engine.find(job.transform)
        return transform.run(job, transform.params.model_validate(job.params), heard)


@pytest.fixture
def bench(engine: LocalEngine, stock: Stock, tmp_path: Path) -> Bench:
    tiny.write_rows(tmp_path / "colours.jsonl", tiny.colour_rows())
    return Bench(engine, stock, tmp_path)


def stop_at(step: int, note: str = "loss") -> Callable[[Progress], None]:
    """Tells this process to stop once `step` was done; the one after it is the last."""

    def heard(progress: Progress) -> None:
        if progress.done == step and note in progress.note:
            os.kill(os.getpid(), signal.SIGTERM)

    return heard


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_was_stopped_goes_on_to_the_same_bytes_and_facts(name: str, bench: Bench, is_thorough: bool):
    if name not in QUICK and not is_thorough:
        pytest.skip("--thorough tries it")
    whole = bench.job(name, 0)
    facts = bench.run(whole)
    with pytest.raises(Stopped):
        bench.run(bench.job(name, 1, save_steps=None), stop_at(4, "margin" if "constitute" in name else "loss"))
    (left,) = map(checkpoints.read, (bench.folder / "checkpoints").iterdir())
    assert left is not None
    resumed = bench.job(name, 2, resume=left.path)

    assert (6 if "grpo" in name else 5, 7) == (left.step, left.steps)
    assert facts == bench.run(resumed)
    assert tree(whole.output) == tree(resumed.output)


def test_checkpoints_on_the_way_change_nothing_and_the_newest_stays(bench: Bench):
    whole, keeping = bench.job("finetune lora", 0), bench.job("finetune lora", 1, save_steps=3)

    assert bench.run(whole) == bench.run(keeping)
    assert tree(whole.output) == tree(keeping.output)
    assert ["checkpoint-6"] == [path.name for path in (bench.folder / "checkpoints").iterdir()]


SCRIPT = """
import sys
from pathlib import Path
from mreg.registry import Registry
with Registry.open(Path(sys.argv[1])) as registry:
    registry.apply("prefer", "base", data=[sys.argv[2]], max_steps=25, threads=1, save_steps=1)
"""


@pytest.fixture(scope="module")
def shop(engine: LocalEngine, stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry that runs trainings; each test has a seed of its own."""
    registry = Registry.init(tmp_path_factory.mktemp("shop"), engine=engine)
    registry.import_model(stock.base, ref="base")
    return registry


def step_of(stock: Stock, seed: int) -> dict[str, Any]:
    """What `apply` and `plan` take, long enough for a signal to arrive before it ends."""
    data = [stock.data / "prompt.jsonl"]
    return {"transform": "finetune", "source": "base", "data": data, "max_steps": 40, "threads": 1, "seed": seed}


@pytest.fixture
def stop(shop: Registry, stock: Stock) -> Iterator[Callable[[int], Checkpoint]]:
    """`stop(seed)` is a Ctrl-C in the first steps, and the checkpoint that it leaves."""

    def stop(seed: int) -> Checkpoint:
        interrupt = iter([signal.SIGINT])

        def heard(progress: Progress) -> None:
            if progress.done and (number := next(interrupt, None)) is not None:
                os.kill(os.getpid(), number)

        with pytest.raises(Interrupted, match="is kept, the same again with --resume goes on from it"):
            shop.apply(**step_of(stock, seed), report=heard)
        (left,) = checkpoints.kept(shop.root)
        return left

    yield stop
    for left in checkpoints.kept(shop.root):
        checkpoints.forget(shop.root, left.path.parent.name)


def ended(registry: Registry) -> dict[str, Any]:
    """How the last run ended."""
    return next(event["payload"] for event in reversed(registry.events()) if "wall_s" in event["payload"])


def test_a_step_that_ctrl_c_stopped_goes_on_to_the_version_of_one_that_never_was(
    shop: Registry, stock: Stock, stop: Callable[[int], Checkpoint]
):
    left, interrupted = stop(1), ended(shop)
    planned = shop.plan(**step_of(stock, 1), resume=True)
    resumed, finished = shop.apply(**step_of(stock, 1), resume=True), ended(shop)
    whole = shop.apply(**step_of(stock, 1), fresh=True)

    assert (True, left.run) == (interrupted["interrupted"], interrupted["run"])
    assert left == planned.checkpoint
    assert {"run": left.run, "step": left.step, "steps": 40} == finished["environment"]["resumed"]
    assert "resumed" not in ended(shop)["environment"]
    assert (whole.version, whole.facts, None) == (resumed.version, resumed.facts, whole.disproves)
    assert [] == list(checkpoints.kept(shop.root))


def test_a_step_whose_process_was_killed_goes_on_to_the_version_of_one_that_never_was(shop: Registry, stock: Stock):
    data = stock.data / "pairs.jsonl"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(shop.root.parent), str(data)]) as process:
        while process.poll() is None and not list(checkpoints.kept(shop.root)):
            time.sleep(0.02)
        process.kill()
    (left,) = checkpoints.kept(shop.root)
    step = {"data": [data], "max_steps": 25, "threads": 1}
    resumed = shop.apply("prefer", "base", **step, resume=True)  # type: ignore[arg-type]  # options of the step
    whole = shop.apply("prefer", "base", **step, fresh=True)  # type: ignore[arg-type]

    assert -signal.SIGKILL == process.returncode
    assert 0 < left.step < 25
    assert (whole.version, whole.facts, None) == (resumed.version, resumed.facts, whole.disproves)


def test_a_step_without_a_checkpoint_does_not_silently_start_over(shop: Registry, stock: Stock):
    before = len(shop.events())

    with pytest.raises(NoCheckpoint, match="no checkpoint of this very step of finetune: leave --resume out"):
        shop.apply(**step_of(stock, 2), resume=True)
    assert before == len(shop.events())


def test_what_does_not_train_has_no_checkpoints(shop: Registry):
    with pytest.raises(BadParams, match="prune writes no checkpoints: leave --save-steps out"):
        shop.apply("prune", "base", sparsity=0.5, save_steps=1)
    with pytest.raises(BadParams, match="prune writes no checkpoints: leave --resume out"):
        shop.plan("prune", "base", sparsity=0.5, resume=True)


def test_a_checkpoint_of_other_code_of_another_machine_or_a_damaged_one_is_refused(
    shop: Registry, stock: Stock, stop: Callable[[int], Checkpoint]
):
    left = stop(3)
    sealed = left.path / checkpoints.SEAL
    told = json.loads(sealed.read_bytes())

    def refusal(**changed: Any) -> str:
        sealed.write_text(json.dumps({**told, **changed}))
        with pytest.raises(Refused) as error:
            shop.apply(**step_of(stock, 3), resume=True)
        return str(error.value)

    assert "was written by other code of finetune" in refusal(code="0" * 64)
    assert "under other conditions: torch was 1.0, is" in refusal(environment={**told["environment"], "torch": "1.0"})
    with open(left.path / "optimizer.pt", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        (byte,) = file.read()
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    assert "is damaged" in refusal()
