"""`distill`: the student nears the teacher on text it was not shown, also when it begins as a part of the teacher."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms._distilling import divergence, targets
from mreg.transforms._engine import LocalEngine
from mreg.transforms._folder import ModelFolder
from mreg.transforms._layers import drop_layers, shortened, spread
from mreg.transforms.distill import DistillParams, check
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Ran, Stock, make_job, material, rows, tensors, tree

DISTILL = {"max_steps": 30, "learning_rate": 5e-3}


def sentences(count: int, seed: int) -> list[str]:
    """The words of TEXT in any order, 20 at a time."""
    words = random.Random(seed)
    return [" ".join(words.choices(tiny.TEXT.split(), k=20)) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of every format, of sentences that are all different."""
    folder = tmp_path_factory.mktemp("corpus")
    said = sentences(160, seed=0)
    halves = [(each[:40], each[40:]) for each in said]
    tiny.write_rows(folder / "text.jsonl", [{"text": each} for each in said])
    tiny.write_rows(folder / "prompt.jsonl", [{"prompt": prompt, "completion": rest} for prompt, rest in halves])
    tiny.write_rows(
        folder / "chat.jsonl",
        [
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": rest}]}
            for prompt, rest in halves
        ],
    )
    return folder


@pytest.fixture
def distill(engine: LocalEngine, teacher: Path, corpus: Path, tmp_path: Path) -> Callable[..., Ran]:
    """`distill(student, data="text", method="logit")` from the teacher."""

    def distill_(student: Path, *, data: str = "text", **params: Any) -> Ran:
        params = {**DISTILL, **params}
        job = make_job(engine, tmp_path / "job", "distill", student, {"teacher": teacher}, corpus, data, params)
        ran = Ran(engine.run(job, lambda progress: None), job.output)
        assert ran.outcome.error is None
        return ran

    return distill_


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four layers that has learnt such sentences, in bfloat16."""
    from transformers import AutoModelForCausalLM

    folder = tiny.make_model(tmp_path_factory.mktemp("teacher") / "teacher", layers=4, seed=5, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder)
    batches = tokens_of(folder, sentences(320, seed=2)).split(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for ids in batches * 2:
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def tokens_of(folder: Path, said: list[str]) -> torch.Tensor:
    """The first 20 tokens of each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return torch.stack([tokenizer(each, return_tensors="pt").input_ids[0, :20] for each in said])


def kl(student: Path, teacher: Path, adapter: Path | None = None) -> float:
    """KL(teacher ‖ student) in nats a token, on sentences that are in no corpus."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = tokens_of(teacher, sentences(8, seed=1))
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (student, teacher))
    if adapter:
        ours = PeftModel.from_pretrained(ours, adapter)
    with torch.no_grad():
        p, q = (model(ids).logits.log_softmax(-1) for model in (theirs, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("data", "params"),
    [
        ("text", {"method": "logit"}),
        ("chat", {"method": "hidden", "hidden_loss": "cosine", "teacher_layers": (0, 3)}),
        ("prompt", {"method": "gkd", "max_new_tokens": 12}),
        ("chat", {"method": "gkd", "max_new_tokens": 12, "lmbda": 0, "seq_kd": True, "beta": 0}),
    ],
    ids=str,
)
def test_the_student_nears_the_teacher_on_what_it_was_not_shown(
    distill: Callable[..., Ran], stock: Stock, teacher: Path, data: str, params: dict[str, Any]
):
    ran = distill(stock.base, data=data, **params)

    facts = ran.outcome.facts
    assert kl(ran.output, teacher) < 0.6 * kl(stock.base, teacher)
    assert facts["kl_to_teacher"] < 0.6 * facts["kl_to_teacher_before"]
    assert facts["final_loss"] < facts["first_loss"]


@pytest.mark.parametrize("method", ["logit", "hidden"])
def test_the_student_may_be_narrower_than_the_teacher(
    distill: Callable[..., Ran], teacher: Path, tmp_path: Path, method: str
):
    narrow = tiny.make_model(tmp_path / "narrow", layers=1, hidden_size=32, seed=6)

    ran = distill(narrow, method=method)

    assert kl(ran.output, teacher) < 0.6 * kl(narrow, teacher)
    assert ran.outcome.facts["parameters"] < ran.outcome.facts["teacher_parameters"] / 4
    assert {name: each.shape for name, each in tensors(narrow).items()} == {
        name: each.shape for name, each in tensors(ran.output).items()
    }


def test_an_adapter_of_the_student_can_learn_too(distill: Callable[..., Ran], stock: Stock, teacher: Path):
    ran = distill(stock.base, tuning="lora", learning_rate=1e-2)

    assert ["adapter_config.json", "adapter_model.safetensors"] == sorted(tree(ran.output))
    assert kl(stock.base, teacher, ran.output) < 0.8 * kl(stock.base, teacher)


def test_a_student_can_begin_as_some_layers_of_the_teacher(distill: Callable[..., Ran], teacher: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    with ModelFolder(teacher) as source:
        drop_layers(source, (0, 3), bare, lambda progress: None)

    ran = distill(teacher, method="hidden", keep_layers=(0, 3), learning_rate=1e-3, alpha=1.0)

    config = json.loads((ran.output / "config.json").read_text())
    assert 2 == config["num_hidden_layers"]
    assert {**config, "num_hidden_layers": 4} == json.loads((teacher / "config.json").read_text())
    parameters = {folder: sum(each.numel() for each in tensors(folder).values()) for folder in (ran.output, teacher)}
    facts = ran.outcome.facts
    assert [*parameters.values()] == [facts["parameters"], facts["teacher_parameters"]]
    assert (2, 4) == (facts["layers"], facts["teacher_layers"])
    assert kl(ran.output, teacher) < 0.8 * kl(bare, teacher)


def test_the_layers_that_are_kept_keep_their_bytes(stock: Stock, tmp_path: Path):
    with ModelFolder(stock.sharded) as source:
        drop_layers(source, (1,), tmp_path, lambda progress: None)

    before, after = tensors(stock.sharded), tensors(tmp_path)
    assert {name for name in before if ".layers.0." not in name} == {name.replace("s.0.", "s.1.") for name in after}
    assert all(torch.equal(before[name.replace("s.0.", "s.1.")], tensor) for name, tensor in after.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(after) == set(index["weight_map"])
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_a_list_with_an_entry_for_each_layer_is_shortened():
    config = {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "full", "sliding"],
        "eos_token_id": [1, 2, 3, 4],
    }

    assert {"num_hidden_layers": 2, "layer_types": ["sliding", "sliding"]} == shortened(config, (1, 3), 4)


def test_a_list_that_names_layers_is_refused():
    with pytest.raises(MregError, match="mlp_only_layers in config"):
        shortened({"num_hidden_layers": 4, "mlp_only_layers": [1]}, (1, 3), 4)


def test_kept_layers_are_spread_evenly():
    assert (0, 2, 5) == spread(3, 6, "v1")
    assert (0,) == spread(1, 6, "v1")


def test_layers_are_held_to_the_evenly_spread_outputs_of_the_teacher():
    assert (1, 3, 5) == targets((), 3, 6)
    assert (0, 0, 1, 1) == targets((), 4, 2)


def test_divergence_is_the_mean_over_labelled_tokens_of_the_common_vocabulary():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 7)
    labels = torch.tensor([[1, -100, 2, 3]])

    q, p = (logits[0, [1, 2], :5].log_softmax(-1) for logits in (student, teacher))
    assert torch.allclose((p.exp() * (p - q)).sum(), divergence(student, teacher, labels, 1.0))


def test_the_same_vocabulary_is_needed(stock: Stock, teacher: Path, tmp_path: Path):
    other = shutil.copytree(teacher, tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(told))

    assert "token '!' is 3 in base and 4 in other" == refusal(stock.base, other, tiny.text_rows())


def test_a_token_that_only_the_teacher_has_is_refused(stock: Stock, teacher: Path, tmp_path: Path):
    other = shutil.copytree(teacher, tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text())
    told["model"]["vocab"]["zebra"] = 400
    (other / "tokenizer.json").write_text(json.dumps(told))

    assert "token 'zebra' is missing in base and 400 in other" == refusal(stock.base, other, tiny.text_rows())


def test_outputs_of_another_size_are_refused_where_the_method_compares_them_whole(
    stock: Stock, teacher: Path, tmp_path: Path
):
    padded = shutil.copytree(teacher, tmp_path / "padded")
    config = json.loads((padded / "config.json").read_text())
    size = config["vocab_size"]
    (padded / "config.json").write_text(json.dumps({**config, "vocab_size": size + 64}))

    told = f"base predicts {size} tokens and padded {size + 64}"
    assert told == refusal(stock.base, padded, tiny.prompt_rows(), method="gkd")
    check(DistillParams(), (material(stock.base), material(padded, "teacher")), (rows(tiny.text_rows()),))


def test_a_model_cannot_be_its_own_teacher(stock: Stock):
    assert "base is its own teacher" == refusal(stock.base, stock.base, tiny.text_rows())


@pytest.mark.parametrize(
    ("given", "params", "told"),
    [
        ([{"text": "a"}, {"text": ""}], {}, "row 2 of rows has no usable text"),
        ([{"text": "a"}], {"method": "gkd"}, "rows has the columns text"),
        ([{"prompt": "a"}], {"method": "gkd"}, "rows has the columns prompt"),
        (
            [{"messages": [{"role": "user", "content": "a"}]}],
            {"method": "gkd"},
            "row 1 of rows has messages that end without an answer",
        ),
        ([{"text": "a"}], {"keep_layers": (0, 2)}, "base has no layer 2"),
        ([{"text": "a"}], {"num_hidden_layers": 3}, "base has 2 layers, 3 of them cannot be kept"),
        (
            [{"text": "a"}],
            {"method": "hidden", "teacher_layers": (1,)},
            "teacher_layers names 1 layers for the 2 of the student",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_distilled_is_refused(
    stock: Stock, teacher: Path, given: list[dict[str, Any]], params: dict[str, Any], told: str
):
    assert told == refusal(stock.base, teacher, given, **params)


def test_prompts_alone_do_where_every_completion_is_written(stock: Stock, teacher: Path):
    params = DistillParams(method="gkd", lmbda=1)

    check(params, (material(stock.base), material(teacher, "teacher")), (rows([{"prompt": "a"}]),))


@pytest.mark.parametrize(
    "params",
    [
        {"method": "gkd", "alpha": 0.1},
        {"method": "logit", "beta": 0.1},
        {"hidden_weight": 2},
        {"keep_layers": (2, 0)},
        {"keep_layers": (0,), "num_hidden_layers": 1},
        {"keep_layers": (0,), "tuning": "lora"},
        {"method": "gkd", "tuning": "prompt"},
        {"temperature": 0},
    ],
    ids=str,
)
def test_options_that_do_nothing_or_contradict_are_refused(params: dict[str, Any]):
    with pytest.raises(ValidationError):
        DistillParams.model_validate(params)


@pytest.mark.parametrize(("method", "temperature"), [("logit", 2.0), ("gkd", 0.9)])
def test_the_temperature_hangs_on_the_method(method: Any, temperature: float):
    params = DistillParams(method=method)

    assert (temperature, 2e-5) == (params.temperature, params.learning_rate)
    assert params == DistillParams.model_validate(params.model_dump(mode="json"))


def refusal(source: Path, teacher: Path, given: list[dict[str, Any]], **params: Any) -> str:
    with pytest.raises(MregError) as told:
        check(DistillParams(**params), (material(source), material(teacher, "teacher")), (rows(given),))
    return told.value.message
