"""`constitute`: prompts become drafts, critiques and revisions, which are kept and trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms._dialogue import Answer, Speaker, TooLong, Turn, revise
from mreg.transforms.constitute import ConstituteParams, check, question
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Ran, Run, Stock, material, rows, tree

PRINCIPLES = "# what it stands for\nBe honest.\n\nBe brief.\n"
SHORT = {
    "principles": PRINCIPLES,
    "critique_request": "{principle} Why not?",
    "revision_request": "Again.",
    "max_new_tokens": 8,
    "max_steps": 25,
}


def made(ran: Ran, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.output.parent / "made" / f"{name}.jsonl").read_text().splitlines()]


def margin(folder: Path, preferences: list[dict[str, Any]], adapter: Path | None = None) -> float:
    """How much likelier the chosen answers are than the rejected ones, in nats a pair."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def likelihood(prompt: list[dict[str, str]], answer: list[dict[str, str]]) -> float:
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
        ids = tokenizer(whole, return_tensors="pt").input_ids
        start = len(tokenizer(asked).input_ids)
        with torch.no_grad():
            told = model(ids).logits[0, :-1].log_softmax(-1)
        return float(told.gather(1, ids[0, 1:, None])[start - 1 :].sum())

    pairs = [
        likelihood(row["prompt"], row["chosen"]) - likelihood(row["prompt"], row["rejected"]) for row in preferences
    ]
    return sum(pairs) / len(pairs)


def test_everything_that_was_said_is_kept(run: Run, stock: Stock):
    ran = run("constitute", stock.base, data="prompt", num_revisions=2, **{**SHORT, "max_steps": 1})

    facts, told = ran.outcome.facts, made(ran, "drafts-and-revisions")
    assert [row["prompt"] for row in tiny.prompt_rows()] == [row["prompt"] for row in told]
    assert {2} == {len(row[kind]) for row in told for kind in ("principles", "critiques", "revisions")}
    assert {"Be honest.", "Be brief."} == {principle for row in told for principle in row["principles"]}
    assert (6, 6 - facts["empty"]) == (facts["prompts"], len(made(ran, "revisions")))
    preferences = made(ran, "preferences")
    assert facts["revised"] == len(preferences) > 0
    first = next(row for row in told if row["revisions"][-1] == preferences[0]["chosen"][0]["content"])
    assert [{"role": "user", "content": first["prompt"]}] == preferences[0]["prompt"]
    assert [{"role": "assistant", "content": first["draft"]}] == preferences[0]["rejected"]


def test_training_on_the_revisions_lowers_the_loss_on_others(run: Run, stock: Stock):
    params = {**SHORT, "train": "sft", "tuning": "full", "eval_fraction": 0.3, "learning_rate": 3e-3}

    ran = run("constitute", stock.base, data="chat", **params)

    facts = ran.outcome.facts
    assert facts["eval_loss_after"] < facts["eval_loss_before"] - 0.5
    assert facts["final_loss"] < facts["first_loss"] - 1
    before, after = tree(stock.base), tree(ran.output)
    assert ["model.safetensors"] == [name for name in before if before[name] != after.get(name)]


@pytest.mark.parametrize("params", [{"train": "dpo"}, {"train": "both", "tuning": "full"}, {"train": "both"}], ids=str)
def test_the_revisions_are_preferred_to_the_drafts(run: Run, stock: Stock, params: dict[str, Any]):
    ran = run("constitute", stock.base, data="prompt", dpo_learning_rate=2e-3, **{**SHORT, **params})

    facts, preferences = ran.outcome.facts, made(ran, "preferences")
    is_whole = params.get("tuning") == "full"
    after = margin(ran.output, preferences) if is_whole else margin(stock.base, preferences, ran.output)
    assert after > margin(stock.base, preferences) + 5
    assert facts["final_margin"] > facts["first_margin"] + 0.5
    stages = 2 if params["train"] == "both" else 1
    assert 25 * stages == facts["steps"]
    assert stages == sum(name in facts for name in ("first_loss", "sft_first_loss"))


def test_a_critic_writes_the_critiques_and_nothing_else(run: Run, stock: Stock):
    params = {**SHORT, "temperature": 0, "max_steps": 1, "train": "sft"}

    alone = run("constitute", stock.base, data="prompt", **params)
    with_critic = run("constitute", stock.base, more={"critic": stock.other}, data="prompt", **params)

    one, other = made(alone, "drafts-and-revisions"), made(with_critic, "drafts-and-revisions")
    assert [row["draft"] for row in one] == [row["draft"] for row in other]
    assert [row["critiques"] for row in one] != [row["critiques"] for row in other]


def test_a_model_without_a_chat_template_talks_in_plain_text(run: Run, tmp_path: Path):
    plain = tiny.make_model(tmp_path / "plain", chat=False)

    ran = run("constitute", plain, data="prompt", **{**SHORT, "max_steps": 1})

    row = made(ran, "preferences")[0]
    assert row["prompt"].startswith("Human: What is the capital of")
    assert row["prompt"].endswith("\n\nAssistant:")
    assert row["chosen"].startswith(" ")


def test_each_revision_is_asked_for_after_its_critique():
    answer, asked = Answer("Why?"), []
    script = iter(["Because.", "Too short.", "So.", "Too dull.", "Thus."])

    def say(conversations: Sequence[list[Turn]]) -> list[str]:
        asked.append([turn["content"] for turn in conversations[0]])
        return [next(script)]

    revise(
        [answer],
        say,
        say,
        principles=["Be kind."],
        rounds=2,
        critique_request="By {principle}: what is wrong?",
        revision_request="Again, by {principle}",
        draw=random.Random(0),
    )

    assert ("Because.", ["Too short.", "Too dull."], "Thus.") == (answer.draft, answer.critiques, answer.last)
    again = ["Too short.", "Again, by Be kind."]
    assert [
        ["Why?"],
        ["Why?", "Because.", "By Be kind.: what is wrong?"],
        ["Why?", "Because.", "By Be kind.: what is wrong?", *again],
        ["Why?", "So.", "By Be kind.: what is wrong?"],
    ] == asked[:4]


def test_a_conversation_longer_than_the_model_is_refused(stock: Stock):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(stock.base), AutoTokenizer.from_pretrained(stock.base)
    speaker = Speaker(model, tokenizer, max_new_tokens=250, temperature=0, batch=2, told=lambda: None)

    with pytest.raises(TooLong, match="the model takes 256"):
        speaker.say([[{"role": "user", "content": "Why?"}]])


def test_the_question_is_what_comes_before_the_last_answer():
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user", "assistant")]

    assert turns[:4] == question(turns)
    assert turns[:4] == question(turns[:4])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"text": "a"}], "rows has the columns text"),
        ([{"prompt": "a"}, {"prompt": ""}], "row 2 of rows has no usable prompt"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "row 1 of rows has messages without a question"),
    ],
    ids=str,
)
def test_rows_that_ask_nothing_are_refused(stock: Stock, given: list[dict[str, Any]], told: str):
    with pytest.raises(MregError) as refusal:
        check(ConstituteParams(principles=PRINCIPLES), (material(stock.base),), (rows(given),))

    assert refusal.value.message == told


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"principles": ""},
        {"principles": "# nothing\n"},
        {"principles": "a", "critique_request": "Why?"},
        {"principles": "a", "tuning": "prompt"},
        {"principles": "a", "tuning": "full", "rank": 3},
        {"principles": "a", "temperature": -1},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        ConstituteParams.model_validate(params)


def test_resolved_params_validate_to_themselves():
    params = ConstituteParams(principles=PRINCIPLES)

    assert (2e-4, 1e-5) == (params.learning_rate, params.dpo_learning_rate)
    assert params == ConstituteParams.model_validate(params.model_dump(mode="json"))
