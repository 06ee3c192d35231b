"""`reinforce`: what is rewarded is written more often, after prompts that it was not shown too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry import Registry
from mreg.registry.errors import MregError
from mreg.registry.transform import Material
from mreg.transforms._reward_function import signature
from mreg.transforms.reinforce import METHODS, ReinforceParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Run, Stock, material, rows, tree

LETTERS = "def letters(completions, **columns):\n    return [float(text.count('e')) for text in completions]\n"
WRITE = {"max_completion_length": 8, "reward_function": LETTERS}


def letters(folder: Path, adapter: Path | None = None) -> float:
    """How often the letter stands in what is written after held-out prompts."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    written: list[str] = []
    torch.manual_seed(0)
    for row in tiny.pair_rows(held_out=True):
        prompt = tokenizer(row["prompt"], return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**prompt, do_sample=True, max_new_tokens=8, num_return_sequences=32)
        written += tokenizer.batch_decode(tokens[:, prompt.input_ids.shape[1] :])
    return sum(text.count("e") for text in written) / len(written)


@pytest.mark.parametrize(("method", "tuning"), [("grpo", "full"), ("rloo", "lora")])
def test_what_is_rewarded_is_written_more_often(run: Run, stock: Stock, method: str, tuning: str):
    options = {"tuning": tuning, "learning_rate": 5e-3, "lr_scheduler_type": "constant", "num_generations": 8}

    ran = run(
        "reinforce",
        stock.base,
        data="pairs",
        method=method,
        max_steps=15,
        per_device_train_batch_size=32,
        **options,
        **WRITE,
    )

    after = letters(ran.output) if tuning == "full" else letters(stock.base, ran.output)
    facts = ran.outcome.facts
    assert after > letters(stock.base) + 0.8
    assert facts["final_reward"] > facts["first_reward"] + 0.8
    assert (15, 15, 1) == (facts["steps"], len(facts["reward_curve"]), facts["rewards"])


def test_a_reward_model_is_pleased(run: Run, stock: Stock):
    ran = run(
        "reinforce",
        stock.base,
        more={"reward": stock.judge},
        data="prompt",
        method="online-dpo",
        tuning="full",
        max_steps=12,
        per_device_train_batch_size=6,
        max_completion_length=8,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
    )

    curve = [reward for _, reward in ran.outcome.facts["reward_curve"]]
    assert sum(curve[-4:]) / 4 > sum(curve[:4]) / 4 + 0.1


def test_a_reward_function_that_raises_fails_the_run(run: Run, stock: Stock):
    source = "def reward(chosen, **columns):\n    raise RuntimeError(chosen[0])\n"

    ran = run("reinforce", stock.base, data="pairs", max_steps=1, max_completion_length=2, reward_function=source)

    assert (ran.outcome.error or "").startswith("RuntimeError: The capital of")
    assert ran.outcome.log is not None
    assert "raise RuntimeError(chosen[0])" in ran.outcome.log.read_text()


def test_another_function_gives_another_adapter(run: Run, stock: Stock):
    options = {"data": "pairs", "max_steps": 2, "max_completion_length": 6, "learning_rate": 1e-3}

    one = run("reinforce", stock.base, reward_function=LETTERS, **options)
    other = run("reinforce", stock.base, reward_function=LETTERS.replace("'e'", "'a'"), **options)

    assert tree(one.output)["adapter_model.safetensors"] != tree(other.output)["adapter_model.safetensors"]


def test_only_its_names_tell_a_reward_function():
    source = "import re\nN = 2\ndef _other(x): ...\ndef mine(prompts, answer, *, hint=0, log_metric, **rest): ...\n"

    found = signature(source)

    assert ("mine", ("answer", "hint")) == (found.name, found.columns)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(:", "the reward function is no Python: "),
        ("x = 1", "the reward function must be the one public function of its file, which has: none"),
        ("def f(**c): ...\ndef g(**c): ...", "the reward function must be the one public function of its file"),
        ("async def f(**c): ...", "f is an async function"),
        ("def f(prompts, completions): ...", "f does not take everything that it is called with"),
    ],
)
def test_a_reward_function_is_read_before_it_is_run(stock: Stock, source: str, told: str):
    refused = refusal((material(stock.base),), reward_function=source)

    assert (2, True) == (refused.exit_code, str(refused).startswith(told))


def test_a_reward_function_asks_for_columns_that_there_are(stock: Stock):
    refused = refusal((material(stock.base),), reward_function="def f(answer, **columns): ...")

    assert "f asks for answer, and rows has no such column: its columns are prompt" == str(refused)


def test_without_any_reward_nothing_is_learnt(stock: Stock):
    refused = refusal((material(stock.base),))

    assert (2, True) == (refused.exit_code, str(refused).startswith("reinforce needs rewards: name a reward model"))


def test_a_model_that_writes_gives_no_rewards(stock: Stock):
    both = material(stock.base), material(stock.other, "reward")

    assert str(refusal(both)).startswith("other is no reward model (LlamaForCausalLM with 2 labels)")


def test_rewards_are_recorded_with_the_step(stock: Stock, tmp_path: Path):
    registry = Registry.init(tmp_path)
    source, judge = (registry.import_model(str(folder)).version for folder in (stock.base, stock.judge))
    options = {"data": [stock.data / "pairs.jsonl"], **WRITE}

    alone = registry.plan("reinforce", source=source, **options).step
    judged = registry.plan("reinforce", source=source, others=[("reward", judge), judge], **options).step

    assert LETTERS == alone.params["reward_function"]
    assert ["source"] == [role for role, _ in alone.inputs]
    assert ["source", "reward", "reward"] == [role for role, _ in judged.inputs]
    assert alone.key != judged.key


def test_every_reward_has_a_weight(stock: Stock):
    both = material(stock.base), material(stock.judge, "reward")

    params = ReinforceParams(reward_function=LETTERS, reward_weights=(1, 2), max_completion_length=8)
    check(params, both, (rows(PROMPTS * 8),))
    assert "1 reward_weights for 2 rewards" in str(refusal(both, reward_function=LETTERS, reward_weights=(1,)))


def test_a_step_without_enough_prompts_is_refused(stock: Stock):
    options = {"reward_function": LETTERS, "method": "rloo"}

    refused = refusal((material(stock.base),), **options)

    assert str(refused).startswith("a step takes 4 prompts with 2 completions each, and there are 1")


PROMPTS = [{"prompt": "What?"}]


def refusal(materials: tuple[Material, ...], **params: Any) -> MregError:
    with pytest.raises(MregError) as told:
        check(ReinforceParams.model_validate(params), materials, (rows(PROMPTS),))
    return told.value


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"num_generations": 1}, "greater than or equal to 2"),
        ({"num_generations": 3}, "not a multiple of the 3 num_generations"),
        ({"method": "rloo", "loss_type": "grpo"}, "loss_type does nothing with rloo"),
        ({"method": "online-dpo", "loss_type": "grpo"}, "online-dpo has no loss grpo, only sigmoid, ipo"),
        ({"method": "online-dpo", "num_generations": 4}, "num_generations does nothing with online-dpo"),
        ({"method": "online-dpo", "tuning": "prompt"}, "online-dpo cannot train prompt"),
        ({"tuning": "pissa", "beta": 0.1}, "pissa takes its start out of the base"),
        ({"max_completion_length": 1024}, "must leave room for a prompt"),
        ({"temperature": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(params: dict[str, Any], told: str):
    with pytest.raises(ValidationError, match=told):
        ReinforceParams.model_validate(params)


@pytest.mark.parametrize("method", METHODS)
def test_resolved_params_validate_to_themselves(method: str):
    params = ReinforceParams.model_validate({"method": method})

    assert params == ReinforceParams.model_validate(params.model_dump(mode="json"))
