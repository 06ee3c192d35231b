"""`calibrate`: what is fitted, what plain transformers makes of it, and what cannot be calibrated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mreg.registry.errors import MregError, Refused
from mreg.transforms import _confidence
from mreg.transforms._calibrating import calibrated
from mreg.transforms._confidence import apply_map, fit_affine, fit_map, fit_platt, softmax
from mreg.transforms._last_layer import FILE
from mreg.transforms._predictions import halves
from mreg.transforms.calibrate import CalibrateParams, check

from tests import tiny
from tests.transforms.conftest import Here, Stock, material, rows, tensors, tree

KINDS = ("colour", "animal", "none")
Array = np.ndarray[Any, Any]


def drawn(count: int, labels: int, seed: int = 0) -> tuple[Array, Array]:
    """Logits [count, labels], and labels that are drawn with just the probabilities that they stand for."""
    chance = np.random.default_rng(seed)
    logits = chance.normal(size=(count, labels)) * 2
    draws = chance.random(count)[:, None]
    return logits, (softmax(logits).cumsum(axis=1) < draws).sum(axis=1).clip(max=labels - 1)


def test_the_temperature_that_logits_were_multiplied_by_is_found():
    logits, labels = drawn(20_000, 4)

    change = fit_affine("temperature", logits * 3, labels, 0.0)

    assert pytest.approx(3, rel=0.03) == 1 / change.matrix[0, 0]
    assert not change.bias.any()


def test_the_temperature_is_where_the_loss_is_least():
    logits, labels = drawn(500, 5)

    def loss(hot: float) -> float:
        return -float(np.log(softmax(logits * 1.7 / hot)[np.arange(500), labels]).mean())

    found = 1 / fit_affine("temperature", logits * 1.7, labels, 0.0).matrix[0, 0]

    assert loss(found) <= min(loss(found * (1 + step)) for step in (-1e-3, -1e-4, 1e-4, 1e-3))


@pytest.mark.parametrize("method", ["vector", "matrix"])
def test_a_scale_and_a_bias_for_each_label_are_found(method: str):
    logits, labels = drawn(40_000, 3)
    scale, bias = np.array([0.5, 1.0, 2.0]), np.array([0.5, 0.0, -0.5])

    change = fit_affine(method, (logits - bias) / scale, labels, 0.0)

    # A number added to all logits changes no probability, so only differences are told.
    found = change((logits - bias) / scale)
    assert np.abs(softmax(found) - softmax(logits)).mean() < 0.01


def test_platt_finds_the_scale_and_the_shift_of_two_labels():
    logits, labels = drawn(40_000, 2)
    margins = logits[:, 1] - logits[:, 0]

    scale, shift = fit_platt((margins - 0.7) / 1.5, labels)

    assert pytest.approx([1.5, 0.7], abs=0.05) == [scale, shift]


def test_platt_agrees_with_a_regression_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the extra `calibrate`")
    logits, labels = drawn(300, 2)
    margins = logits[:, 1] - logits[:, 0]

    # Its targets are soft, which a regression on labels of weight `share` and `1 - share` spells.
    high, low = (labels.sum() + 1) / (labels.sum() + 2), 1 / (300 - labels.sum() + 2)
    share = np.where(labels == 1, high, low)
    theirs = linear.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.tile(margins, 2)[:, None], np.repeat([1, 0], 300), np.concatenate([share, 1 - share])
    )
    expected = [float(theirs.coef_[0, 0]), float(theirs.intercept_[0])]
    assert pytest.approx(expected, abs=1e-4) == list(fit_platt(margins, labels))


def test_a_model_that_is_always_right_has_no_temperature():
    logits = np.eye(3)[[0, 1, 2, 0]] * 4

    with pytest.raises(Refused, match="right on every row"):
        fit_affine("temperature", logits, np.array([0, 1, 2, 0]), 0.0)


def test_a_model_that_is_no_better_than_chance_has_none_either():
    logits, labels = drawn(300, 2)

    with pytest.raises(Refused, match="no more of these rows than chance"):
        fit_affine("temperature", -logits, labels, 0.0)


def test_labels_that_are_told_apart_leave_a_vector_finite():
    logits = np.eye(2)[[0, 1, 0, 1]] * 4

    assert np.abs(fit_affine("vector", logits, np.array([0, 1, 0, 1]), 0.001).matrix).max() < 10


@pytest.mark.parametrize(("method", "share"), [("isotonic", 0.15), ("histogram", 0.6)], ids=str)
@pytest.mark.parametrize("labels", [2, 4])
def test_a_map_of_probabilities_makes_them_truer_and_keeps_their_sum(method: str, share: float, labels: int):
    pytest.importorskip("sklearn", reason="scikit-learn is the extra `calibrate`")
    logits, right = drawn(20_000, labels)

    document = fit_map(method, softmax(logits * 2.5), right, [str(place) for place in range(labels)], 15)

    given, wanted = softmax(logits * 2.5), softmax(logits)
    mapped = apply_map(json.loads(json.dumps(document)), given)
    assert np.abs(mapped.sum(axis=1) - 1).max() < 1e-12
    assert np.abs(mapped - wanted).mean() < share * np.abs(given - wanted).mean()


def test_a_histogram_says_how_often_a_label_came_in_each_bin():
    shares = np.array([[0.9, 0.1], [0.95, 0.05], [0.2, 0.8], [0.1, 0.9], [0.15, 0.85]])

    document = fit_map("histogram", shares, np.array([0, 1, 1, 0, 1]), ["a", "b"], 4)

    assert [{"y": [0.5, 0.375, 0.625, 2 / 3]}] == document["maps"]
    assert [0.5, 0.5] == apply_map(document, np.array([[0.99, 0.01]]))[0].tolist()


def test_the_halves_have_a_share_of_every_label_and_hang_on_the_seed():
    labels = ["a"] * 10 + ["b"] * 6 + ["c"]

    fitted, held = halves(labels, 0.5, seed=3)

    assert list(range(17)) == sorted(fitted + held)
    assert (["a"] * 5 + ["b"] * 3) == [labels[place] for place in held]
    assert held != halves(labels, 0.5, seed=4)[1]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Classifiers of random weights by how many labels they know, surer than they should be."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    root = tmp_path_factory.mktemp("classifiers")
    encoder = tiny.make_encoder(root / "encoder")
    made = {}
    for count in (2, 3):
        names = dict(enumerate(KINDS[:count]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                encoder, id2label=names, label2id={name: number for number, name in names.items()}
            )
            torch.nn.init.normal_(model.classifier.weight, std=1.0)
        made[count] = root / f"of{count}"
        model.save_pretrained(made[count])
        AutoTokenizer.from_pretrained(encoder).save_pretrained(made[count])
    return made


def labelled(count: int = 120, labels: int = 2) -> list[dict[str, Any]]:
    """Sentences with labels that come at random: who is sure of any is too sure."""
    chance = np.random.default_rng(5)
    words = [word for row in tiny.colour_rows() for word in row["text"].split()]
    return [
        {"text": " ".join(chance.choice(words, 4)), "label": KINDS[int(chance.integers(labels))]} for _ in range(count)
    ]


def logits_of(folder: Path, given: list[dict[str, Any]]) -> Array:
    """What plain transformers computes."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer([row["text"] for row in given], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits: Array = model(**encoded).logits.double().numpy()
    return logits


@pytest.mark.parametrize(
    ("method", "labels"), [("temperature", 3), ("vector", 3), ("matrix", 3), ("platt", 2)], ids=str
)
def test_plain_transformers_gives_the_calibrated_probabilities(
    here: Here, classifiers: dict[int, Path], tmp_path: Path, method: str, labels: int
):
    given = labelled(labels=labels)
    data = tiny.write_rows(tmp_path / "rows.jsonl", given)

    output, facts = here("calibrate", classifiers[labels], data=[data], method=method)

    numbers = np.array([KINDS.index(row["label"]) for row in given])
    fitted, _ = halves(numbers.tolist(), 0.5, seed=7)
    before = logits_of(classifiers[labels], given)
    change = fit_affine(method, before[fitted], numbers[fitted], 0.001)
    assert np.abs(softmax(change(before)) - softmax(logits_of(output, given))).max() < 1e-4
    assert facts["rounding"] < 1e-4
    for worse in ("eval_ece", "eval_nll", "fit_nll"):
        assert facts[f"{worse}_after"] < facts[f"{worse}_before"]


def test_only_the_last_layer_is_changed(here: Here, classifiers: dict[int, Path], tmp_path: Path):
    data = tiny.write_rows(tmp_path / "rows.jsonl", labelled())

    output, _ = here("calibrate", classifiers[2], data=[data], method="platt")

    before, after = tensors(classifiers[2]), tensors(output)
    assert {"classifier.weight", "classifier.bias"} == {
        name for name in before if not torch.equal(before[name], after[name])
    }
    files, written = tree(classifiers[2]), tree(output)
    assert files | {"model.safetensors": ""} == written | {"model.safetensors": ""}


@pytest.mark.parametrize(("method", "labels"), [("isotonic", 2), ("histogram", 3)], ids=str)
def test_what_cannot_be_folded_is_written_beside_the_weights(
    here: Here, classifiers: dict[int, Path], tmp_path: Path, method: str, labels: int
):
    pytest.importorskip("sklearn", reason="scikit-learn is the extra `calibrate`")
    given = labelled(200, labels)
    data = tiny.write_rows(tmp_path / "rows.jsonl", given)

    output, facts = here("calibrate", classifiers[labels], data=[data], method=method)

    logits = logits_of(output, given)
    assert np.abs(softmax(logits) - softmax(logits_of(classifiers[labels], given))).max() == 0
    assert {FILE} == tree(output).keys() - tree(classifiers[labels]).keys()
    assert facts["eval_ece_after"] < facts["eval_ece_before"]
    answers = np.array([KINDS.index(row["label"]) for row in given])
    nll = -np.log(calibrated(output, logits)[np.arange(200), answers].clip(min=1e-3)).mean()
    assert nll < -np.log(softmax(logits)[np.arange(200), answers]).mean()


def test_the_facts_hold_the_bins_of_a_reliability_diagram(here: Here, classifiers: dict[int, Path], tmp_path: Path):
    data = tiny.write_rows(tmp_path / "rows.jsonl", labelled(labels=3))

    _, facts = here("calibrate", classifiers[3], data=[data], bins=10)

    assert (60, 60) == (facts["eval_rows"], facts["fit_rows"])
    for when in ("before", "after"):
        bins = facts["reliability"][when]
        gaps = [one["n"] / 60 * abs(one["accuracy"] - one["confidence"]) for one in bins]
        assert (10, 60) == (len(bins), sum(one["n"] for one in bins))
        assert pytest.approx(facts[f"eval_ece_{when}"], abs=1e-5) == sum(gaps)


def untie(folder: Path) -> None:
    """The same model with the embedding stored a second time as its head."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.save_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_language_model_divides_its_logits_by_the_temperature(here: Here, tmp_path: Path, tied: bool):
    from transformers import AutoModelForCausalLM

    source = tiny.make_model(tmp_path / "model", dtype="float32")
    if not tied:
        untie(source)
    data = tiny.write_rows(tmp_path / "text.jsonl", tiny.text_rows())

    output, facts = here("calibrate", source, data=[data])

    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        after = AutoModelForCausalLM.from_pretrained(output)(ids).logits
    assert torch.allclose(before / facts["temperature"], after, atol=1e-5)
    assert ("model.norm" if tied else "lm_head") == facts["layer"]
    assert facts["eval_nll_after"] < facts["eval_nll_before"]
    changed = {name for name, one in tensors(source).items() if not torch.equal(one, tensors(output)[name])}
    assert {f"{facts['layer']}.weight"} == changed
    assert (source / "config.json").read_bytes() == (output / "config.json").read_bytes()


def test_a_norm_that_adds_one_to_its_weight_is_scaled_all_the_same(here: Here, tmp_path: Path):
    from transformers import AutoTokenizer, GemmaConfig, GemmaForCausalLM

    tiny.make_tokenizer(tmp_path / "gemma")
    vocabulary = len(AutoTokenizer.from_pretrained(tmp_path / "gemma"))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GemmaConfig(vocab_size=vocabulary, initializer_range=0.3, **shape, **heads)
        GemmaForCausalLM(config).save_pretrained(tmp_path / "gemma")
    data = tiny.write_rows(tmp_path / "text.jsonl", tiny.text_rows())

    _, facts = here("calibrate", tmp_path / "gemma", data=[data], max_tokens=400)

    assert facts["rounding"] < 1e-4
    assert facts["eval_nll_after"] < facts["eval_nll_before"]


def test_an_architecture_that_does_more_with_its_norm_is_found_out(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = tiny.make_model(tmp_path / "model")
    data = tiny.write_rows(tmp_path / "text.jsonl", tiny.text_rows())
    monkeypatch.setattr("mreg.transforms._last_layer.ZERO_CENTRED", ("llama",))

    with pytest.raises(MregError, match=r"scaling model\.norm did not divide the logits"):
        here("calibrate", source, data=[data])


def refusal(folder: Path, given: list[dict[str, Any]], **params: Any) -> str:
    with pytest.raises(MregError) as told:
        check(CalibrateParams(**params), (material(folder),), (rows(given),))
    return str(told.value)


def test_rows_that_cannot_be_used_are_refused(classifiers: dict[int, Path]):
    model = classifiers[2]
    odd = [*labelled(30), {"text": "a cat", "label": "plant"}]

    assert refusal(model, [{"text": "a cat"}] * 30).startswith("rows has the columns text")
    assert refusal(model, odd).startswith("row 31 of rows has the label 'plant', which of2 does not know")
    assert refusal(model, [{"text": "", "label": "animal"}] * 30).startswith("row 1 of rows has no usable text")
    assert refusal(model, labelled(19)).startswith("rows has 19 rows, too few")
    assert refusal(model, [{"text": "a cat", "label": "animal"}] * 30).startswith("all rows of rows have one label")


def test_methods_that_do_not_fit_the_model_are_refused(classifiers: dict[int, Path], stock: Stock, tmp_path: Path):
    given = [{"text": "a cat", "label": place % 2} for place in range(30)]
    headless = tiny.make_judge(tmp_path / "judge", stock.base)
    config = json.loads((headless / "config.json").read_text())
    for name in ("id2label", "label2id"):
        config.pop(name, None)

    assert refusal(classifiers[3], given, method="platt").startswith("platt is for two labels, of3 has 3")
    assert refusal(stock.base, tiny.text_rows(), method="isotonic").startswith("isotonic is for classifiers")
    assert refusal(stock.adapter, given).startswith("adapter is an adapter")
    assert refusal(stock.judge, given).startswith("judge does not choose one label")
    (headless / "config.json").write_text(json.dumps(config))
    assert refusal(headless, given).startswith("judge has no last layer for 2 labels")


def test_a_layer_without_bias_takes_a_temperature_only(classifiers: dict[int, Path], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    bare = shutil.copytree(classifiers[2], tmp_path / "bare")
    held = load_file(bare / "model.safetensors")
    held["score.weight"] = held.pop("classifier.weight")
    held.pop("classifier.bias")
    save_file(held, bare / "model.safetensors")
    given = labelled(30)

    check(CalibrateParams(), (material(bare),), (rows(given),))
    assert refusal(bare, given, method="vector").startswith("score of bare has no bias, which vector needs")


def test_a_version_is_not_given_two_post_processors(classifiers: dict[int, Path], tmp_path: Path):
    twice = shutil.copytree(classifiers[2], tmp_path / "twice")
    (twice / FILE).write_text("{}")

    assert refusal(twice, labelled(30)).startswith(f"twice has a {FILE} already")


def test_an_extra_that_is_missing_is_named(classifiers: dict[int, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert "pip install 'mreg[calibrate]'" in refusal(classifiers[2], labelled(30), method="isotonic")


def test_the_least_of_a_parabola_is_found():
    def loss(parameter: torch.Tensor) -> torch.Tensor:
        return _confidence.differentiated(parameter, ((parameter - torch.tensor([3.0, -4.0])) ** 2).sum())

    assert pytest.approx([3, -4], abs=1e-9) == _confidence.minimize(loss, np.zeros(2)).tolist()
