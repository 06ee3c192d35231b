"""Work of the caller's own, recorded while it is done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.canonical import NotCanonical
from mreg.registry.runs.applying import TransformFailed

from tests import tiny
from tests.strategies import TINY_MODEL, write_folder


@pytest.fixture
def source(registry: Registry, model: Path) -> str:
    registry.import_model(model, ref="base")
    return "base"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": "two"}])


def change(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "changed": true}')


def test_a_block_records_what_it_made_from_what(registry: Registry, source: str, rows: Path):
    with registry.record(
        "my-sft", source, others=[("teacher", "v1")], data=[rows], params={"rate": 0.1}, ref="sft", message="try"
    ) as run:
        shutil.copytree(run.input, run.output, dirs_exist_ok=True)
        change(run.output)
        read = [json.loads(line)["text"] for line in run.data[0].read_text().splitlines()]
        for step in (1, 2, 3):
            run.log(step, loss=3.0 / step)
        run.log(tokens=12)
        run.scratch.joinpath("checkpoint").write_text("gone")

    assert run.result is not None
    shown = registry.show("sft")
    made = shown["run"]
    assert ["one", "two"] == read
    assert ("v2", "my-sft", "try", {"rate": 0.1}) == (
        shown["version"],
        shown["transform"],
        shown["message"],
        made["params"],
    )
    assert [("source", "v1"), ("teacher", "v1")] == [(one["role"], one["version"]) for one in shown["inputs"]]
    assert [2] == [one["rows"] for one in shown["data"]]
    assert {"first_loss": 3, "final_loss": 1, "losses": [[1, 3], [2, 1.5], [3, 1]], "tokens": 12} == made["facts"]
    assert ("work", "finished") == (made["mode"], made["status"])
    assert {"python", "platform", "pytest", "code"} <= made["environment"].keys()
    assert {"argv", "directory", "commit", "diff", "changes", "files"} == made["environment"]["code"].keys()
    assert registry.fsck().ok
    assert [] == list((registry.root / "tmp").iterdir())


def test_a_block_that_raises_is_a_failed_run_and_no_version(registry: Registry, source: str):
    def diverge() -> None:
        with registry.record("my-sft", source) as run:
            shutil.copytree(run.input, run.output, dirs_exist_ok=True)
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError):
        diverge()

    assert [("failed", "division by zero")] == registry.sql("SELECT status, error FROM run")[1]
    assert 1 == len(registry.versions())
    assert registry.fsck().ok


def test_a_block_that_is_interrupted_is_recorded_as_such(registry: Registry, source: str):
    with pytest.raises(KeyboardInterrupt), registry.record("my-sft", source):
        raise KeyboardInterrupt

    assert [("interrupted",)] == registry.sql("SELECT status FROM run")[1]


def test_a_block_that_writes_nothing_says_where_to_write(registry: Registry, source: str):
    with pytest.raises(TransformFailed, match="wrote no model: save it into"), registry.record("my-sft", source):
        pass


def test_an_output_that_is_no_sound_model_is_kept_for_another_try(registry: Registry, source: str):
    pickled = {**TINY_MODEL, "notes.pkl": b"\x80\x04."}

    with pytest.raises(TransformFailed, match="is a pickle") as raised, registry.record("my-sft", source) as run:
        write_folder(run.output, pickled)

    (kept,) = (registry.root / "failed").iterdir()
    assert str(kept) in raised.value.fix
    assert (kept / "model.safetensors").exists()
    assert [("failed",)] == registry.sql("SELECT status FROM run")[1]


def test_what_a_trainer_leaves_beside_the_model_is_left_out(registry: Registry, source: str):
    with registry.record("my-sft", source) as run:
        write_folder(run.output, {**TINY_MODEL, "training_args.bin": b"x", "checkpoint-3/optimizer.pt": b"x"})

    assert set(TINY_MODEL) == {file.path for file in registry.manifest("v1").files}
    assert run.result is not None
    assert run.result.unchanged


def test_a_fact_that_is_no_json_is_refused_when_it_is_logged(registry: Registry, source: str):
    with registry.record("my-sft", source) as run:
        shutil.copytree(run.input, run.output, dirs_exist_ok=True)
        change(run.output)
        run.log(1, loss=float("nan"))
        with pytest.raises(NotCanonical):
            run.log(loss=float("nan"))

    assert {} == registry.show("v2")["run"]["facts"]


def test_work_cannot_be_replayed_and_it_is_said_why(registry: Registry, source: str):
    with registry.record("my-sft", source) as run:
        shutil.copytree(run.input, run.output, dirs_exist_ok=True)
        change(run.output)

    replayed = registry.replay("v2")

    assert "not-attempted" == replayed.verdict
    assert "made by code of somebody's own" in replayed.steps[0].reason


def test_the_callback_records_a_trainer_and_keeps_its_model(registry: Registry, tmp_path: Path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    base = registry.import_model(tiny.make_model(tmp_path / "tiny")).version
    rows = tiny.write_rows(tmp_path / "text.jsonl", tiny.text_rows(1))

    with registry.record("my-lora", base, data=[rows]) as run:
        tokenizer = AutoTokenizer.from_pretrained(run.input)
        texts = [json.loads(line)["text"] for line in run.data[0].read_text().splitlines()]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        settings = TrainingArguments(
            output_dir=str(run.scratch),
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=1,
            logging_steps=1,
            include_num_input_tokens_seen="all",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        model = AutoModelForCausalLM.from_pretrained(run.input)
        Trainer(
            model=get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)),
            args=settings,
            train_dataset=[{"input_ids": one, "labels": one} for one in ids],
            callbacks=[run.trainer_callback()],
        ).train()

    assert run.result is not None
    adapter, facts = run.result.version, run.result.facts
    config = registry.manifest(adapter).file("adapter_config.json")
    assert config is not None
    assert (True, base.digest) == (adapter.adapter, adapter.base)
    assert None is json.loads(registry.store.read_bytes(config.digest))["base_model_name_or_path"]
    assert (4, [1, 2, 3, 4]) == (facts["steps"], [step for step, _ in facts["losses"]])
    assert {"tokens", "flops", "train_loss", "first_loss", "final_loss"} <= facts.keys()
    assert (0.01, 4) == (facts["arguments"]["learning_rate"], facts["arguments"]["max_steps"])
    assert "output_dir" not in facts["arguments"]
    assert facts.keys() & {"epoch_curve", "learning_rate_curve", "train_runtime_curve"} == set()
    assert registry.load(adapter) is not None
