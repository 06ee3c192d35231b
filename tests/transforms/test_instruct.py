"""`instruct`: answers are learnt and questions are not, and the chat template stays with the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms import _chat
from mreg.transforms._adapter import load_adapted
from mreg.transforms.instruct import InstructParams, check, conversation
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Here, Stock, material, rows, tree

ROWS = tiny.chat_rows()
MARKED = tiny.CHAT_TEMPLATE.replace(
    "{{ message['content'] }}<|im_end|>\n",
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n",
)


def answer_loss(model: Any, folder: Path, template: str) -> float:
    """The loss of the answers alone, on countries that were not trained on."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    losses = []
    for row in ROWS[4:]:
        told = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        asked = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(told, return_tensors="pt").input_ids
        labels = ids.clone()
        labels[:, : len(tokenizer(asked).input_ids)] = -100
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return sum(losses) / len(losses)


def whole(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Chats of four countries."""
    return [tiny.write_rows(tmp_path_factory.mktemp("data") / "chats.jsonl", ROWS[:4])]


@pytest.mark.parametrize("options", [{}, {"packing": True, "max_length": 128}, {"tuning": "full"}], ids=str)
def test_it_learns_to_answer(here: Here, stock: Stock, data: list[Path], options: dict[str, Any]):
    output, facts = here(
        "instruct", stock.base, data=data, chat_template=MARKED, max_steps=30, learning_rate=5e-3, **options
    )

    after = whole(output) if "tuning" in options else load_adapted(stock.base, output, dtype=torch.float32)
    assert answer_loss(after, stock.base, MARKED) < answer_loss(whole(stock.base), stock.base, MARKED) - 1.5
    assert facts["final_loss"] < facts["first_loss"] - 1.0


def test_only_answers_are_learnt(here: Here, stock: Stock, data: list[Path]):
    asked = [{"messages": [{"role": "user", "content": "One two three?"}, *row["messages"][1:]]} for row in ROWS[:4]]
    others = [tiny.write_rows(data[0].with_name("others.jsonl"), asked)]
    options = {"chat_template": MARKED, "max_steps": 1, "tuning": "full", "learning_rate": 1e-3}

    _, masked = here("instruct", stock.base, data=data, **options)
    _, everything = here("instruct", stock.base, data=data, assistant_only_loss=False, **options)
    _, elsewhere = here("instruct", stock.base, data=others, **options)

    assert masked["first_loss"] != everything["first_loss"]
    assert masked["first_loss"] != elsewhere["first_loss"]
    assert abs(masked["first_loss"] - answer_loss_of_four(stock.base)) < 0.02


def answer_loss_of_four(folder: Path) -> float:
    """The mean loss of a token of the answers that are trained on."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = MARKED
    model, total, count = whole(folder), 0.0, 0
    for row in ROWS[:4]:
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids = torch.tensor([encoded["input_ids"]])
        labels = torch.where(torch.tensor([encoded["assistant_masks"]]) == 1, ids, -100)
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * int((labels != -100).sum())
        count += int((labels != -100).sum())
    return total / count


def test_packed_conversations_do_not_see_each_other(here: Here, stock: Stock, data: list[Path]):
    options = {"chat_template": MARKED, "max_steps": 1, "tuning": "full", "max_length": 256}

    _, apart = here("instruct", stock.base, data=data, **options)
    _, packed = here("instruct", stock.base, data=data, packing=True, **options)

    assert abs(apart["first_loss"] - packed["first_loss"]) < 1e-3


def test_the_template_goes_with_the_result(here: Here, stock: Stock, data: list[Path]):
    own, _ = here("instruct", stock.base, data=data, assistant_only_loss=False, tuning="full", max_steps=1)
    given, _ = here("instruct", stock.base, data=data, chat_template=MARKED, tuning="full", max_steps=1)
    adapter, _ = here("instruct", stock.base, data=data, builtin_template=True, max_steps=1)
    fused, _ = here("fuse", adapter, more={"base": stock.base})

    before = tree(stock.base)["chat_template.jinja"]
    assert before == tree(own)["chat_template.jinja"]
    assert MARKED == (given / "chat_template.jinja").read_text()
    assert _chat.unmarked(_chat.BUILTIN) == (fused / "chat_template.jinja").read_text()


def test_the_builtin_template_spells_the_same_without_its_marks(stock: Stock):
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(stock.base)

    told = [
        tokenizer.apply_chat_template(ROWS[0]["messages"], tokenize=False, chat_template=template)
        for template in (_chat.BUILTIN, _chat.unmarked(_chat.BUILTIN))
    ]
    expected = "<|user|>\nWhat is the capital of France?\n<|assistant|>\nThe capital of France is Paris.<|im_end|>\n"
    assert [expected, expected] == told


def test_a_template_that_trl_has_a_twin_of_needs_no_marks():
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"

    assert _chat.marks_the_assistant((folder / "qwen2_5.jinja").read_text())
    assert not _chat.marks_the_assistant(tiny.CHAT_TEMPLATE)
    assert _chat.marks_the_assistant("{%- generation -%}")


def test_prompts_and_completions_are_turned_into_messages():
    row = {"prompt": "Who?", "completion": " Me."}
    expected = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]

    assert expected == conversation(row, ("prompt", "completion"))
    assert [{"role": "system", "content": "Be kind."}, *expected] == conversation(
        {"messages": expected}, ("messages",), "Be kind."
    )
    assert expected == conversation({"prompt": expected[:1], "completion": expected[1:]}, ("prompt", "completion"))


def test_prompts_are_trained_on_with_a_system_prompt(here: Here, stock: Stock):
    _, plain = here("instruct", stock.base, data="prompt", builtin_template=True, max_steps=1)
    _, told = here("instruct", stock.base, data="prompt", builtin_template=True, max_steps=1, system_prompt="Be kind.")

    assert told["tokens"] > plain["tokens"]


def refusal(source: Path, given: list[dict[str, Any]], **params: Any) -> str:
    with pytest.raises(MregError) as told:
        check(InstructParams(**params), (material(source),), (rows(given),))
    return str(told.value)


def test_a_template_without_marks_is_refused_with_the_ways_out(stock: Stock):
    told = refusal(stock.base, ROWS)

    assert told.startswith("the chat template does not mark what the assistant says: put {% generation %}")
    check(InstructParams(assistant_only_loss=False), (material(stock.base),), (rows(ROWS),))
    check(InstructParams(builtin_template=True), (material(stock.base),), (rows(ROWS),))


def test_a_model_without_a_template_needs_one(tmp_path: Path):
    plain = tiny.make_model(tmp_path / "plain", chat=False)

    assert refusal(plain, ROWS).startswith("plain has no chat template: give one with --chat-template")
    check(InstructParams(builtin_template=True), (material(plain),), (rows(ROWS),))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"text": "a"}], "rows has the columns text: a row has `messages`"),
        ([ROWS[0], {"messages": [{"role": "user"}]}], "row 2 of rows has no usable messages"),
        ([{"messages": ROWS[0]["messages"][:1]}], "row 1 of rows has messages in which the assistant says nothing"),
        ([{"prompt": "a", "completion": ""}], "row 1 of rows has no usable completion"),
    ],
    ids=str,
)
def test_rows_in_which_nobody_answers_are_refused(stock: Stock, given: list[dict[str, Any]], told: str):
    assert refusal(stock.base, given, builtin_template=True).startswith(told)


@pytest.mark.parametrize(
    "params",
    [{"chat_template": "x", "builtin_template": True}, {"packing": True, "tuning": "prompt"}, {"method": "lora"}],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        InstructParams.model_validate(params)
