"""Evaluating: what is measured is what a second way of computing it gives, and what cannot be is refused first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.errors import MregError, Refused
from mreg.registry.measures.judging import GuardFailed
from mreg.transforms import _evaluation
from mreg.transforms._engine import LocalEngine
from mreg.transforms._evaluation import EvaluationParams, check

from tests import tiny
from tests.transforms.conftest import Here, Run, Stock, material, rows


@pytest.fixture
def measure(here: Here) -> Any:
    """`measure(folder, "text", metrics=[…])` in this process: scores by metric, and the folder of what was made."""

    def measure(source: Path, data: str | list[Path] | None = None, **more: Any) -> tuple[dict[str, Any], Path]:
        output, facts = here("_evaluation", source, data=data, **more)
        return {score["metric"]: score for score in facts["scores"]}, output.parent / "made"

    return measure


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_perplexity_and_accuracy_are_those_that_transformers_gives(measure: Any, stock: Stock):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found, _ = measure(stock.sharded, "text", metrics=["perplexity", "accuracy", "nll", "ece"], max_rows=12)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(stock.sharded), AutoTokenizer.from_pretrained(stock.sharded)
    total, count, right = 0.0, 0, 0
    for row in tiny.text_rows()[:12]:
        ids = tokenizer(row["text"], return_tensors="pt").input_ids
        with torch.no_grad():
            out = model(input_ids=ids, labels=ids)
        total, count = total + float(out.loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
        right += int((out.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum())

    assert pytest.approx(math.exp(total / count), rel=1e-5) == found["perplexity"]["value"]
    assert pytest.approx(total / count, rel=1e-5) == found["nll"]["value"]
    assert (right / count, count) == (found["accuracy"]["value"], found["accuracy"]["n"])
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert count == sum(one["n"] for one in found["ece"]["details"]["bins"])


def test_only_what_is_said_in_answer_counts(measure: Any, stock: Stock):
    """Of a prompt with its completion the completion, of a conversation the assistant's turns."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stock.base)
    completed, _ = measure(stock.base, "prompt", metrics=["nll"])
    talked, _ = measure(stock.base, "chat", metrics=["nll"])
    answers = [len(tokenizer(row["completion"])["input_ids"]) for row in tiny.prompt_rows()]
    turns = [len(tokenizer(row["completion"].strip() + "<|im_end|>\n")["input_ids"]) for row in tiny.prompt_rows()]

    assert sum(answers) == completed["nll"]["n"]
    assert sum(turns) == talked["nll"]["n"]


def test_a_version_does_not_differ_from_itself_and_does_from_another(measure: Any, stock: Stock):
    names = ["kl", "agreement"]
    same, _ = measure(stock.base, "text", metrics=names, more={"against": stock.base})
    other, made = measure(
        stock.base, "text", metrics=names, more={"against": stock.other}, differences=3, max_new_tokens=2
    )
    worst = read(made / "differences.jsonl")

    assert (0.0, 1.0) == (same["kl"]["value"], same["agreement"]["value"])
    assert other["kl"]["value"] > 0.1
    assert sorted((row["kl"] for row in worst), reverse=True) == [row["kl"] for row in worst]
    assert 3 == len(worst)
    assert worst[0]["a"]["next"] != worst[0]["b"]["next"]


def test_an_adapter_is_measured_on_its_base(measure: Any, stock: Stock):
    names = ["nll", "kl"]
    plain, _ = measure(stock.base, "text", metrics=["nll"])
    adapted, _ = measure(stock.adapter, "text", metrics=names, more={"base": stock.base, "against": stock.base})

    assert plain["nll"]["value"] != adapted["nll"]["value"]
    assert adapted["kl"]["value"] > 0


def test_a_quantized_version_is_measured_as_it_is_stored(measure: Any, here: Here, stock: Stock):
    smaller, _ = here("quantize", stock.base, method="int8")
    found, _ = measure(smaller, "text", metrics=["perplexity", "kl"], more={"against": stock.base}, max_rows=6)

    assert 0 < found["kl"]["value"] < 0.01
    assert math.isfinite(found["perplexity"]["value"])


def test_samples_go_on_from_the_rows(measure: Any, stock: Stock):
    _, made = measure(stock.base, "prompt", samples=2, max_new_tokens=3)
    told = read(made / "samples.jsonl")

    assert [row["prompt"] for row in tiny.prompt_rows()[:2]] == [row["prompt"] for row in told]
    assert all(row["expected"] for row in told)


def test_the_same_evaluation_in_two_processes_gives_the_same_scores(run: Run, stock: Stock):
    asked: dict[str, Any] = {"data": "text", "metrics": ["perplexity", "ece"], "max_rows": 8}
    first, again = (run("_evaluation", stock.base, **asked) for _ in range(2))

    assert first.outcome.error is None
    assert first.outcome.facts == again.outcome.facts


def test_speed_is_taken_as_often_as_asked(measure: Any, stock: Stock):
    found, _ = measure(stock.base, metrics=["latency", "throughput"], repeats=2)

    assert {"latency": 2, "throughput": 2} == {name: score["n"] for name, score in found.items()}
    assert all(score["value"] > 0 for score in found.values())


def test_a_model_that_gives_no_numbers_has_a_score_that_is_none(measure: Any, stock: Stock, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stock.base)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(stock.base).save_pretrained(tmp_path / "broken")
    found, _ = measure(tmp_path / "broken", "text", metrics=["perplexity", "ece"])

    assert (None, None) == (found["perplexity"]["value"], found["ece"]["value"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with a head for colours and animals."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    root = tmp_path_factory.mktemp("classifier")
    encoder = tiny.make_encoder(root / "encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        labels = {"id2label": {0: "animal", 1: "colour"}, "label2id": {"animal": 0, "colour": 1}}
        AutoModelForSequenceClassification.from_pretrained(encoder, **labels).save_pretrained(root / "model")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(root / "model")
    tiny.write_rows(root / "colours.jsonl", tiny.colour_rows(held_out=True))
    return root / "model"


def test_a_classifier_is_scored_on_its_labels(measure: Any, classifier: Path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    data = classifier.parent / "colours.jsonl"
    names = ["accuracy", "f1", "nll", "ece", "brier", "kl"]
    found, _ = measure(classifier, [data], metrics=names, more={"against": classifier})
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    told = read(data)
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in told], return_tensors="pt", padding=True)).logits
    labels = torch.tensor([model.config.label2id[row["label"]] for row in told])

    assert float((logits.argmax(-1) == labels).double().mean()) == found["accuracy"]["value"]
    assert pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5) == found["nll"]["value"]
    assert ("Wilson", len(told), 0.0) == (found["accuracy"]["interval"], found["f1"]["n"], found["kl"]["value"])


@pytest.mark.parametrize("method", ["isotonic", "histogram"])
def test_probabilities_go_through_what_calibration_wrote_beside_the_weights(
    here: Here, measure: Any, classifier: Path, method: str
):
    from mreg.transforms._calibrating import calibrated
    from mreg.transforms._predictions import class_logits

    data = tiny.write_rows(classifier.parent / "all.jsonl", [*tiny.colour_rows(), *tiny.colour_rows(held_out=True)])
    made, _ = here("calibrate", classifier, data=[data], method=method)
    found, _ = measure(made, [data], metrics=["nll", "brier", "accuracy", "agreement"], more={"against": classifier})
    plain, _ = measure(classifier, [data], metrics=["nll", "brier", "accuracy"])
    told = read(data)
    logits = class_logits(made, [row["text"] for row in told], 512, 8, "cpu", lambda _: None)
    shares = calibrated(made, logits)
    labels = [["animal", "colour"].index(row["label"]) for row in told]
    right = shares[range(len(told)), labels]

    assert pytest.approx(-sum(math.log(max(one, 1e-300)) for one in right) / len(told)) == found["nll"]["value"]
    assert float((shares.argmax(1) == labels).mean()) == found["accuracy"]["value"]
    assert pytest.approx(2 * sum((1 - one) ** 2 for one in right) / len(told)) == found["brier"]["value"]
    assert found["brier"]["value"] < plain["brier"]["value"]
    assert (shares.argmax(1) == logits.argmax(1)).mean() == found["agreement"]["value"]


def test_a_calibration_for_other_labels_is_refused(here: Here, measure: Any, classifier: Path, tmp_path: Path):
    data = tiny.write_rows(tmp_path / "all.jsonl", [*tiny.colour_rows(), *tiny.colour_rows(held_out=True)])
    made, _ = here("calibrate", classifier, data=[data], method="histogram")
    document = json.loads((made / "calibration.json").read_text())
    (made / "calibration.json").write_text(json.dumps({**document, "labels": ["fish", "fowl"]}))
    with pytest.raises(Refused, match="is for the labels fish, fowl, and the model has animal, colour"):
        measure(made, [data], metrics=["nll"])
    (made / "calibration.json").write_text(json.dumps({**document, "format": "mreg-calibration/9"}))
    with pytest.raises(Refused, match="evaluate with a newer mreg"):
        measure(made, [data], metrics=["nll"])


@pytest.fixture(scope="module")
def tagger(classifier: Path) -> Path:
    """A BERT of random weights with a head for the words of a text."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    encoder, made = classifier.parent / "encoder", classifier.parent / "tagger"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        names = ["animal", "colour", "none"]
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
        AutoModelForTokenClassification.from_pretrained(encoder, **labels).save_pretrained(made)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(made)
    tiny.write_rows(made.parent / "tags.jsonl", tiny.tagged_rows(held_out=True))
    return made


def test_a_token_classifier_is_scored_word_by_word(measure: Any, tagger: Path):
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    data = tagger.parent / "tags.jsonl"
    names = ["accuracy", "f1", "nll", "ece", "brier"]
    found, _ = measure(tagger, [data], metrics=names)
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    tokenizer = AutoTokenizer.from_pretrained(tagger)
    logs, labels = [], []
    for row in read(data):
        encoded = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        words = encoded.word_ids()
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        logs += [logits[words.index(word)].double().log_softmax(-1) for word in range(len(row["tokens"]))]
        labels += [model.config.label2id[label] for label in row["labels"]]
    right = sum(int(log.argmax()) == label for log, label in zip(logs, labels, strict=True))
    nll = -sum(float(log[label]) for log, label in zip(logs, labels, strict=True)) / len(labels)

    assert (right / len(labels), len(labels), "words") == tuple(
        found["accuracy"][name] for name in ("value", "n", "unit_of_n")
    )
    assert pytest.approx(nll, rel=1e-5) == found["nll"]["value"]
    assert "normal over rows" == found["accuracy"]["interval"], "the words of one row hang together"
    assert found["nll"]["low"] < found["nll"]["value"] < found["nll"]["high"]
    assert len(labels) == sum(one["n"] for one in found["ece"]["details"]["bins"])


def test_words_that_are_cut_off_are_not_judged(measure: Any, tagger: Path):
    rows = [{"tokens": ["cat", "dog", "cow"], "labels": ["animal"] * 3}, {"tokens": ["red"], "labels": ["colour"]}]
    data = tiny.write_rows(tagger.parent / "long.jsonl", rows)
    whole, _ = measure(tagger, [data], metrics=["accuracy"])
    cut, _ = measure(tagger, [data], metrics=["accuracy"], max_length=4)

    assert (4, 3) == (whole["accuracy"]["n"], cut["accuracy"]["n"])


def test_an_adapter_for_words_is_held_against_another(here: Here, measure: Any, tagger: Path):
    encoder, data = tagger.parent / "encoder", tagger.parent / "tags.jsonl"
    task = {"task": "token-classification", "max_steps": 3}
    first, _ = here("finetune", encoder, data=[data], **task)
    fused, _ = here("fuse", first, more={"base": encoder})
    same, _ = measure(first, [data], metrics=["kl", "agreement"], more={"base": encoder, "against": fused})
    other, made = measure(fused, [data], metrics=["kl", "agreement"], more={"against": tagger}, differences=2)
    worst = read(made / "differences.jsonl")

    assert (True, 1.0) == (same["kl"]["value"] < 1e-6, same["agreement"]["value"])
    assert other["kl"]["value"] > same["kl"]["value"]
    assert worst[0]["kl"] >= worst[1]["kl"] > 0
    assert worst[0]["expected"] in ("animal", "colour", "none")


TASK = """task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: ["Paris", "Rome"]
metric_list:
  - metric: acc
"""


def test_a_local_task_of_the_harness_is_run_without_a_network(measure: Any, stock: Stock, tmp_path: Path):
    pytest.importorskip("lm_eval")
    folder = tmp_path / "tasks"
    folder.mkdir()
    asked = [{"question": f"The capital of {land} is", "answer": k} for k, land in enumerate(["France", "Italy"])]
    tiny.write_rows(folder / "rows.jsonl", asked)
    (folder / "capitals.yaml").write_text(TASK.format(data="rows.jsonl"))
    found, _ = measure(stock.base, tasks=["capitals"], include_path=str(folder))

    assert found["capitals/acc"]["value"] in (0.0, 0.5, 1.0)
    assert (2, "Wilson") == (found["capitals/acc"]["n"], found["capitals/acc"]["interval"])


def refused(folder: Path, given: list[dict[str, Any]] | None = None, **params: Any) -> str:
    with pytest.raises(MregError) as raised:
        check(EvaluationParams(**params), (material(folder),), (rows(given),) if given else ())
    return str(raised.value)


def test_what_cannot_be_measured_is_refused_before_any_work(stock: Stock, classifier: Path, tagger: Path):
    assert "does not know: it knows animal, colour" in refused(
        classifier, [{"text": "a", "label": "animal"}, {"text": "b", "label": "fish"}], metrics=["accuracy"]
    )
    assert "row 1 of rows has no usable text" in refused(stock.base, [{"text": ""}], metrics=["perplexity"])
    assert "f1 is not defined" in refused(stock.base, tiny.text_rows(1), metrics=["f1"])
    assert "rows has the columns other" in refused(stock.base, [{"other": "a"}], metrics=["perplexity"])
    assert "tasks are put to language models" in refused(classifier, tasks=["capitals"])
    assert "row 1 of rows has 2 tokens and 1 labels" in refused(
        tagger, [{"tokens": ["a", "b"], "labels": ["none"]}], metrics=["f1"]
    )
    assert "label 'fish', which tagger does not know" in refused(
        tagger, [{"tokens": ["a"], "labels": ["fish"]}], metrics=["f1"]
    )
    assert "perplexity is not defined for tagger, a token classifier model" in refused(tagger, metrics=["perplexity"])
    assert "BertForMaskedLM, which cannot be measured yet" in refused(classifier.parent / "encoder", metrics=["f1"])
    pair = (material(stock.base), material(classifier, "against"))
    with pytest.raises(Refused, match="a causal model and model a classifier"):
        check(EvaluationParams(metrics=("kl",)), pair, (rows(tiny.text_rows(1)),))


def test_it_is_no_transform_that_one_can_apply(engine: LocalEngine):
    assert "_evaluation" not in engine.names()
    assert _evaluation.TRANSFORM is engine.find("_evaluation")


@pytest.fixture(scope="module")
def shop(engine: LocalEngine, stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry with v1, a float32 copy as v2, and the dataset `general`."""
    registry = Registry.init(tmp_path_factory.mktemp("shop"), engine=engine)
    registry.import_model(stock.base, ref="base")
    registry.add_dataset(stock.data / "text.jsonl", name="general")
    return registry


def test_what_was_measured_is_answered_from_the_log(shop: Registry):
    first = shop.evaluate("v1", data="general", metrics=["perplexity", "size"], threads=1)
    events = len(shop.events())
    again = shop.evaluate("v1", data="general", metrics=["perplexity"], threads=1)
    other = shop.show("v1")["scores"]

    assert ["size", "perplexity"] == [score.metric for score in first.scores]
    assert first.scores[1] == again.scores[0]
    assert {again.scores[0].key} == again.cached
    assert events == len(shop.events())
    assert [first.scores[1].document()] == other


def test_a_guard_marks_a_version_and_keeps_refs_from_it(shop: Registry):
    shop.set_ref("prod", "v1")
    done = shop.apply(
        "prune", "v1", sparsity=0.95, threads=1, ref="prod", guards=["perplexity(general) <= 1.001 * source"]
    )
    (judged,) = done.judged
    with pytest.raises(GuardFailed, match=r"prod stays at v1, since v\d fails: perplexity\(general\) is .* that of v1"):
        shop.set_ref("prod", done.version)
    moved = shop.set_ref("prod", done.version, force=True)
    shop.rollback("prod")
    shop.set_ref("prod", "base")
    shop.set_ref("fresh", "v1")

    assert not judged.holds
    assert done.refused is not None
    assert ("perplexity(general) <= 1.001 * source",) == moved.forced
    assert [["perplexity(general) <= 1.001 * source"], []] == [move["forced"] for move in shop.ref_log("prod")[1::-1]]
    assert shop.show(done.version)["guards"][0]["words"] == judged.words
    assert () == shop.fsck().problems


def test_a_policy_is_judged_against_where_the_name_was(shop: Registry):
    shop.set_policy("live", ["perplexity(general) <= source", "size <= 1000000000"])
    first = shop.set_ref("live", "v1")
    worse = shop.apply("prune", "v1", sparsity=0.9, threads=1).version
    with pytest.raises(GuardFailed, match=r"live stays at v1, since .* fails: perplexity"):
        shop.set_ref("live", worse)
    verdicts = {(row["guard"], row["ref"]): row["holds"] for row in shop.show(worse)["guards"]}
    shop.set_ref("elsewhere", worse)
    shop.delete_policy("live")

    assert first.event is not None
    assert {("perplexity(general) <= source", "live"): False, ("size <= 1000000000", "live"): True} == verdicts
    assert shop.set_ref("live", worse).event is not None, "nothing is demanded any more"


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ("perplexity(nowhere) <= 3", "no dataset is called 'nowhere'"),
        ("perplexty(general) <= 3", "did you mean perplexity"),
        ("f1(general) >= 0.5", "not defined for"),
        ("perplexity(general, max_lenth=3) <= 3", "did you mean max_length"),
        ("perplexity(general) <= v99", "no version is called 'v99'"),
    ],
)
def test_a_guard_that_cannot_be_judged_is_refused_before_the_run(shop: Registry, guard: str, said: str):
    runs = [event for event in shop.events() if event["kind"] == "run-started/1"]
    with pytest.raises(MregError, match=said):
        shop.apply("prune", "v1", sparsity=0.5, threads=1, guards=[guard])

    assert runs == [event for event in shop.events() if event["kind"] == "run-started/1"]
