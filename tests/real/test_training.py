"""Every family of training on SmolLM2: what was learnt shows on text, questions and pairs that were held out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mreg.cli import demo_data
from mreg.registry import Registry
from mreg.transforms._folder import ModelFolder
from mreg.transforms._layers import drop_layers, spread

from tests import tiny
from tests.real import prose

HELD_OUT = 5
"""Every so-many-th question is held out."""

LENGTH = 96
"""Tokens at which rows are cut."""

MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of SmolLM2, with marks around what the assistant says."""

PLAIN_WORDS = '''"""Plain English has short words."""


def plain_words(completions, **columns):
    """The mean length of the words, in letters, below zero: the longer the words, the less."""
    said = [completion[0]["content"].split() or ["nothing"] for completion in completions]
    return [-sum(min(len(word), 20) for word in words) / len(words) for words in said]
'''

Row = dict[str, Any]


@pytest.fixture(scope="module")
def registry(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with SmolLM2 as `base`, gone afterwards, since it is large."""
    folder = tmp_path_factory.mktemp("training")
    with Registry.init(folder) as registry:
        registry.import_model(smollm2, ref="base")
        yield registry
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is measured here runs on one: threads that wait for each other spin, which is slow on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def questions(*, held_out: bool) -> list[Row]:
    """Chats about functions of the standard library, as `prompt` and `completion`."""
    rows = list(demo_data.rows())
    return [row for number, row in enumerate(rows) if (number % HELD_OUT == 0) == held_out]


def pairs(*, held_out: bool) -> list[Row]:
    """The answer of a docstring preferred to the same answer between niceties."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [
                {
                    "role": "assistant",
                    "content": f"Sure, I am happy to help! {row['completion'][0]['content']} Do you want to know more?",
                }
            ],
        }
        for row in questions(held_out=held_out)
    ]


def log_probability(model: Any, tokenizer: Any, prompt: list[Row] | str, completion: str) -> tuple[float, int]:
    """Of a completion in nats, and how many tokens it has. A prompt of turns is spelled by the chat template."""
    import torch

    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    before = tokenizer(prompt, add_special_tokens=False).input_ids
    after = tokenizer(completion, add_special_tokens=False).input_ids
    before = before or after[:1]
    ids = torch.tensor([before + after])
    with torch.no_grad():
        told = model(ids).logits[0, len(before) - 1 : -1].float().log_softmax(-1)
    return float(told.gather(1, torch.tensor(after)[:, None]).sum()), len(after)


def loss(model: Any, tokenizer: Any, rows: list[tuple[list[Row] | str, str]]) -> float:
    """The mean loss of a token, in nats."""
    told = [log_probability(model, tokenizer, *row) for row in rows]
    return -sum(each for each, _ in told) / sum(tokens for _, tokens in told)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def base(registry: Registry) -> Any:
    """SmolLM2 as it was imported, in float32."""
    return registry.load("base", dtype="float32")


def test_a_lora_lowers_the_loss_on_prose_of_other_pages(
    registry: Registry, base: Any, tokenizer: Any, train_text: Path
):
    options = {"rank": 8, "max_steps": 20, "learning_rate": 1e-3, "max_length": LENGTH, "max_rows": 80}
    made = registry.apply("finetune", "base", data=[train_text], method="lora", threads=2, **options)

    other: list[tuple[list[Row] | str, str]] = [("", text[:400]) for text in list(prose.paragraphs("held-out"))[:24]]
    before, after = loss(base, tokenizer, other), loss(registry.load(made.version, dtype="float32"), tokenizer, other)
    print(f"finetune lora: held-out loss {before:.3f} to {after:.3f} in {made.wall_s:.0f} s")
    assert before - 0.1 > after
    assert made.facts["final_loss"] < made.facts["first_loss"]


def test_instruction_lowers_the_loss_of_answers_to_other_questions(
    registry: Registry, base: Any, tokenizer: Any, tmp_path: Path
):
    rows = tiny.write_rows(tmp_path / "questions.jsonl", questions(held_out=False)[::6])
    options = {"rank": 8, "max_steps": 20, "learning_rate": 1e-3, "max_length": LENGTH, "chat_template": MARKED}
    made = registry.apply("instruct", "base", data=[rows], threads=2, **options)

    asked = [(row["prompt"], row["completion"][0]["content"]) for row in questions(held_out=True)[::5]]
    before, after = loss(base, tokenizer, asked), loss(registry.load(made.version, dtype="float32"), tokenizer, asked)
    print(f"instruct: held-out loss {before:.3f} to {after:.3f} in {made.wall_s:.0f} s")
    assert made.params["assistant_only_loss"]
    assert before - 0.8 > after


def test_dpo_prefers_what_was_chosen_for_other_questions(registry: Registry, base: Any, tokenizer: Any, tmp_path: Path):
    rows = tiny.write_rows(tmp_path / "pairs.jsonl", pairs(held_out=False)[::8])
    options = {"rank": 8, "max_steps": 10, "learning_rate": 2e-4, "max_length": 2 * LENGTH}
    made = registry.apply("prefer", "base", data=[rows], method="dpo", threads=2, **options)

    tuned = registry.load(made.version, dtype="float32")
    margins = []
    for row in pairs(held_out=True)[::7]:
        gained = [
            log_probability(tuned, tokenizer, row["prompt"], row[half][0]["content"])[0]
            - log_probability(base, tokenizer, row["prompt"], row[half][0]["content"])[0]
            for half in ("chosen", "rejected")
        ]
        margins.append(made.params["beta"] * (gained[0] - gained[1]))
    mean, right = sum(margins) / len(margins), sum(margin > 0 for margin in margins) / len(margins)
    print(f"prefer dpo: held-out margin {mean:.3f}, accuracy {right:.2f} of {len(margins)} in {made.wall_s:.0f} s")
    assert mean > 0.5
    assert right >= 0.9


def test_grpo_writes_more_of_what_is_rewarded_after_other_questions(
    registry: Registry, base: Any, tokenizer: Any, tmp_path: Path
):
    rows = tiny.write_rows(tmp_path / "prompts.jsonl", ({"prompt": row["prompt"]} for row in questions(held_out=False)))
    sizes = {"num_generations": 8, "per_device_train_batch_size": 16, "max_completion_length": 16, "max_length": 96}
    options = {"rank": 8, "max_steps": 15, "learning_rate": 5e-4, "max_rows": 80, "lr_scheduler_type": "constant"}
    made = registry.apply("reinforce", "base", data=[rows], threads=2, reward_function=PLAIN_WORDS, **sizes, **options)

    before, after = (mean_reward(model, tokenizer) for model in (base, registry.load(made.version, dtype="float32")))
    curve = [reward for _, reward in made.facts["reward_curve"]]
    print(f"reinforce grpo: held-out reward {before:.3f} to {after:.3f} in {made.wall_s:.0f} s, in training {curve}")
    assert PLAIN_WORDS == registry.show(made.version)["params"]["reward_function"]
    assert before + 0.3 < after


def mean_reward(model: Any, tokenizer: Any) -> float:
    """The mean reward of what a model writes after held-out questions, by sampling with a fixed seed."""
    import torch

    torch.manual_seed(0)
    written: list[str] = []
    for row in questions(held_out=True)[::17]:
        asked = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        tokens = model.generate(**asked, max_new_tokens=16, num_return_sequences=8, **plain)
        written += tokenizer.batch_decode(tokens[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    reward: dict[str, Any] = {}
    exec(PLAIN_WORDS, reward)  # noqa: S102  the very function that is recorded
    rewards: list[float] = reward["plain_words"]([[{"content": text}] for text in written])
    return sum(rewards) / len(rewards)


def test_a_student_without_a_third_of_the_layers_nears_its_teacher(
    registry: Registry, smollm2: Path, base: Any, tokenizer: Any, train_text: Path, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    keep = spread(20, 30, "base")
    with ModelFolder(smollm2) as teacher:
        drop_layers(teacher, keep, tmp_path, lambda progress: None)
    bare = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    options = {"max_steps": 24, "learning_rate": 3e-4, "alpha": 1.0, "temperature": 1.0, "max_length": LENGTH}
    made = registry.apply(
        "distill", "base", others=["base"], data=[train_text], num_hidden_layers=20, threads=2, **options
    )

    before, after = (kl(base, model, tokenizer) for model in (bare, registry.load(made.version, dtype="float32")))
    print(f"distill: held-out KL {before:.3f} to {after:.3f} nats a token in {made.wall_s:.0f} s")
    assert 20 == made.facts["layers"]
    assert after < 0.6 * before


def kl(teacher: Any, student: Any, tokenizer: Any) -> float:
    """KL(teacher ‖ student) in nats a token, on held-out prose."""
    import torch

    total, tokens = 0.0, 0
    for text in list(prose.paragraphs("held-out"))[:24]:
        ids = torch.tensor([tokenizer(text).input_ids[:LENGTH]])
        with torch.no_grad():
            p, q = (model(ids).logits[0].float().log_softmax(-1) for model in (teacher, student))
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + ids.shape[1]
    return total / tokens
