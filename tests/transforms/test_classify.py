"""`finetune --task`: an encoder learns to tell texts and words apart, whole or as an adapter with its head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError
from mreg.transforms._adapter import load_adapted
from mreg.transforms._classify import names_of
from mreg.transforms.finetune import FinetuneParams, check

from tests import tiny
from tests.transforms.conftest import Here, Run, Stock, material, rows, tensors, tree

RATES = {"full": 5e-3, "lora": 5e-3, "adapter": 1e-2}
SEQUENCE, TOKEN = "sequence-classification", "token-classification"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.write_rows(folder / "colours.jsonl", tiny.colour_rows())
    tiny.write_rows(folder / "tags.jsonl", tiny.tagged_rows())
    return folder


def accuracy(model: Any, folder: Path) -> float:
    """On sentences that were not trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = total = 0
    with torch.no_grad():
        for text, tagged in zip(tiny.colour_rows(held_out=True), tiny.tagged_rows(held_out=True), strict=True):
            encoded = tokenizer(tagged["tokens"], is_split_into_words=True, return_tensors="pt")
            logits = model(**encoded).logits[0]
            if logits.ndim == 1:
                found, wanted = [int(logits.argmax())], [text["label"]]
            else:
                words = encoded.word_ids()
                found = [int(logits[words.index(word)].argmax()) for word in range(len(tagged["tokens"]))]
                wanted = tagged["labels"]
            right += sum(model.config.id2label[one] == label for one, label in zip(found, wanted, strict=True))
            total += len(wanted)
    return right / total


@pytest.mark.parametrize(("task", "dataset"), [(SEQUENCE, "colours"), (TOKEN, "tags")])
@pytest.mark.parametrize("method", ["full", "lora", "adapter"])
def test_it_tells_apart_what_it_was_not_shown(
    here: Here, encoder: Path, data: Path, task: str, dataset: str, method: str
):
    options = {"max_steps": 80, "per_device_train_batch_size": 8, "learning_rate": RATES[method]}

    output, facts = here("finetune", encoder, data=[data / f"{dataset}.jsonl"], task=task, method=method, **options)

    if method == "full":
        from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

        built = AutoModelForSequenceClassification if task == SEQUENCE else AutoModelForTokenClassification
        model, info = built.from_pretrained(output, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
    else:
        model = load_adapted(encoder, output)
    assert accuracy(model.eval(), encoder) > 0.9
    config = json.loads((output / "config.json").read_text())
    labels = ["animal", "colour"] if task == SEQUENCE else ["animal", "colour", "none"]
    assert dict(enumerate(labels)) == {int(number): name for number, name in config["id2label"].items()}
    assert [f"BertFor{'Sequence' if task == SEQUENCE else 'Token'}Classification"] == config["architectures"]
    assert labels == facts["labels"]
    assert str(data.parent) not in "".join(path.read_text() for path in output.glob("*.json"))


def test_a_fused_adapter_brings_its_head_and_its_labels(here: Here, encoder: Path, data: Path):
    from transformers import AutoModelForTokenClassification

    adapter, _ = here("finetune", encoder, data=[data / "tags.jsonl"], task=TOKEN, max_steps=5)

    fused, _ = here("fuse", adapter, more={"base": encoder})

    ids = torch.arange(5, 15)[None]
    model = AutoModelForTokenClassification.from_pretrained(fused)
    with torch.no_grad():
        assert (model(ids).logits - load_adapted(encoder, adapter)(ids).logits).abs().max() < 1e-4
    assert {0: "animal", 1: "colour", 2: "none"} == model.config.id2label


def test_rows_held_out_tell_how_often_it_is_right(here: Here, encoder: Path, data: Path):
    _, facts = here(
        "finetune",
        encoder,
        data=[data / "colours.jsonl"],
        task=SEQUENCE,
        method="full",
        max_steps=80,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        eval_fraction=0.2,
    )

    assert (14, 56) == (facts["eval_rows"], facts["rows"])
    assert facts["eval_accuracy_after"] >= 0.8
    assert facts["eval_loss_after"] < facts["eval_loss_before"]


def test_a_frozen_backbone_leaves_only_the_head_to_train(here: Here, encoder: Path, data: Path):
    _, facts = here(
        "finetune",
        encoder,
        data=[data / "tags.jsonl"],
        task=TOKEN,
        method="full",
        max_steps=1,
        freeze=["backbone"],
    )

    assert 3 * 32 + 3 == facts["trainable_parameters"]


def test_two_processes_give_the_same_files(run: Run, here: Here, encoder: Path, data: Path):
    job = {"data": [data / "tags.jsonl"], "task": TOKEN, "max_steps": 2}

    one, _ = here("finetune", encoder, **job)
    other = run("finetune", encoder, **job).output

    assert tree(one) == tree(other)


def test_a_decoder_tells_texts_apart_too(here: Here, stock: Stock, data: Path):
    output, _ = here("finetune", stock.base, data=[data / "colours.jsonl"], task=SEQUENCE, method="full", max_steps=2)

    config = json.loads((output / "config.json").read_text())
    assert ["LlamaForSequenceClassification"] == config["architectures"]


def test_labels_are_sorted_or_as_the_model_has_them():
    before = {"id2label": {"0": "b", "1": "a", "2": "c"}, "architectures": ["BertForSequenceClassification"]}

    assert ["2", "10"] == names_of([10, 2, 10], {}, "ForSequenceClassification")
    assert ["a", "b"] == names_of(["b", "a"], {}, "ForSequenceClassification")
    assert ["b", "a", "c"] == names_of(["a", "b"], before, "ForSequenceClassification")
    assert ["a", "b"] == names_of(["a", "b"], before, "ForTokenClassification")


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        (SEQUENCE, [{"text": "a"}], "rows has the columns text: a row has a `text` and its `label`"),
        (SEQUENCE, [{"text": "a", "label": "x"}, {"text": 3, "label": "y"}], "row 2 of rows has no usable text"),
        (SEQUENCE, [{"text": "a", "label": True}], "row 1 of rows has no usable label"),
        (SEQUENCE, [{"text": "a", "label": "x"}], "the data has only one label"),
        (
            SEQUENCE,
            [{"text": "a", "label": "x"}, {"text": "b", "label": 1}],
            "some labels are words and some are numbers",
        ),
        (TOKEN, [{"tokens": "a b", "labels": ["x", "y"]}], "row 1 of rows has no usable tokens"),
        (TOKEN, [{"tokens": ["a", "b"], "labels": ["x"]}], "row 1 of rows has 2 tokens and 1 labels"),
        (TOKEN, [{"tokens": ["a"], "labels": [None]}], "row 1 of rows has no usable labels"),
    ],
    ids=str,
)
def test_rows_without_usable_labels_are_refused(encoder: Path, task: Any, given: list[dict[str, Any]], told: str):
    with pytest.raises(MregError) as refused:
        check(FinetuneParams(task=task), (material(encoder),), (rows(given),))

    assert str(refused.value).startswith(told)


def test_an_encoder_does_not_go_on_writing(encoder: Path):
    with pytest.raises(MregError, match="bert is BertForMaskedLM, which does not predict text"):
        check(FinetuneParams(), (material(encoder),), (rows(tiny.text_rows()),))


@pytest.mark.parametrize(("task", "dataset"), [(SEQUENCE, "colours"), (TOKEN, "tags")])
def test_two_batches_make_the_step_that_one_of_both_makes(
    here: Here, encoder: Path, data: Path, task: str, dataset: str
):
    # Without Adam and clipping, which would hide that a gradient is twice as large.
    options = {"method": "full", "task": task, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0}
    rows = [data / f"{dataset}.jsonl"]

    whole, _ = here("finetune", encoder, data=rows, per_device_train_batch_size=8, **options)
    halves, _ = here(
        "finetune", encoder, data=rows, per_device_train_batch_size=4, gradient_accumulation_steps=2, **options
    )

    expected, actual = tensors(whole), tensors(halves)
    assert all((tensor - actual[name]).abs().max() < 1e-6 for name, tensor in expected.items())
