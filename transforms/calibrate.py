"""Make a model as sure of its answers as it is right, on rows that it was not trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mreg.registry.errors import MregError, Refused
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._calibration import (
    AFFINE,
    FILE,
    Affine,
    Array,
    Labels,
    apply_map,
    fit_affine,
    fit_map,
    fit_temperature,
    softmax,
)
from mreg.transforms._folder import ModelFolder
from mreg.transforms._last_layer import classifier_of, fold, output_of
from mreg.transforms._predictions import (
    TokenScores,
    class_logits,
    halves,
    judged,
    label_names,
    number_of,
    token_logits,
    told,
)
from mreg.transforms._rows import TEXT, check_rows
from mreg.transforms._training import has_tokenizer, rows_of
from pydantic import Field

LABELLED = ("text", "label")
ROW = "a row has a `text` and its `label`, which is one of the labels that the model knows"
FEWEST = 20
CLASSIFIER = "ForSequenceClassification"

FAR = 0.05
"""Nats by which the folded model may miss the loss that was fitted; rounding to bfloat16 costs a tenth of it."""


class NotFolded(MregError):
    """The written model does not compute the logits that were fitted."""

    exit_code = 6


class CalibrateParams(Params):
    """The options of `calibrate`."""

    method: Literal["temperature", "vector", "matrix", "platt", "isotonic", "histogram"] = "temperature"
    """What is fitted: one `temperature` for all logits, a scale and bias for each label (`vector`), or a linear map
    (`matrix`; Guo et al. 2017); `platt` for two labels (Platt 1999); these go into the weights. `isotonic` and
    `histogram` (Zadrozny and Elkan 2001, 2002) map probabilities, and are written beside the weights."""

    eval_fraction: float = Field(0.5, gt=0, lt=1)
    """The share of the rows of each label, picked by the seed, that nothing is fitted on."""

    bins: int = Field(15, ge=2)
    """Bins of equal width, for the expected calibration error and for `histogram`."""

    l2: float = Field(0.001, ge=0)
    """How strongly vector and matrix are held to changing nothing: without it, labels that are easily told apart would
    make the model ever surer."""

    max_length: int = Field(512, ge=2)
    """Tokens at which a row is cut."""

    max_tokens: int = Field(2048, ge=100)
    """Tokens of each half that are used (language models); the memory for them grows with the vocabulary."""

    batch_size: int = Field(8, ge=1)
    """Rows computed at once (classifiers)."""


def check(params: CalibrateParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be calibrated, rows without known labels, and too few of them."""
    (source,) = materials
    _check.complete_model(source, "calibrated")
    has_tokenizer(source)
    if FILE in source.files:
        raise Refused(f"{source.name} has a {FILE} already", fix="start from the version it was calibrated from")
    if len(rows) != 1:
        raise BadParams(f"calibrate takes one dataset, not {len(rows)}", fix="name one with --data")
    if _classifies(source.config):
        _check_classifier(params, source, rows[0])
        return
    _check.causal_model(source)
    if params.method != "temperature":
        raise BadParams(f"{params.method} is for classifiers", fix="a language model takes --method temperature")
    check_rows(source, rows, [TEXT])
    if rows[0].count < FEWEST:
        raise Refused(f"{rows[0].name} has {rows[0].count} rows, too few to split", fix=f"give {FEWEST} or more")
    output_of(source.name, source.config, source.tensors)


def _check_classifier(params: CalibrateParams, source: Material, rows: Rows) -> None:
    names = label_names(source.config)
    if source.config.get("problem_type") in ("regression", "multi_label_classification") or len(names) < 2:
        raise Refused(f"{source.name} does not choose one label of several", fix="give a classifier that does")
    if params.method == "platt" and len(names) != 2:
        raise BadParams(f"platt is for two labels, {source.name} has {len(names)}", fix="use vector or matrix")
    if params.method == "isotonic":
        _check.needs("sklearn", "calibrate", "isotonic regression")
    if params.method in AFFINE:
        layer = classifier_of(source.name, source.tensors, len(names))
        if params.method != "temperature" and not layer.bias:
            fix = "use temperature, isotonic or histogram"
            raise Refused(f"{layer.name} of {source.name} has no bias, which {params.method} needs", fix=fix)
    if not set(LABELLED) <= set(rows.columns):
        raise Refused(f"{rows.name} has the columns {', '.join(rows.columns)}", fix=ROW)
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["text"], str) or not row["text"]:
            raise Refused(f"row {number} of {rows.name} has no usable text", fix=ROW)
        label = number_of(row["label"], names)
        if label is None:
            said = f"row {number} of {rows.name} has the label {row['label']!r}"
            raise Refused(f"{said}, which {source.name} does not know", fix=f"it knows {', '.join(names[:20])}")
        seen[label] = seen.get(label, 0) + 1
    if sum(seen.values()) < FEWEST:
        raise Refused(f"{rows.name} has {rows.count} rows, too few to split", fix=f"give {FEWEST} or more")
    if len(seen) < 2:
        raise Refused(f"all rows of {rows.name} have one label", fix="give rows of two labels or more")


def _classifies(config: Any) -> bool:
    return any(name.endswith(CLASSIFIER) for name in config.get("architectures") or [])


def run(job: Job, params: CalibrateParams, report: Report) -> Facts:
    """Fit on one part of the rows; then measure what was written, on that part and on the rest."""
    with ModelFolder(job.path("source")) as source:
        config, tensors = source.config, {slot.name: (slot.dtype, slot.shape) for slot in source.slots.values()}
    if _classifies(config):
        return _calibrate_classifier(job, params, config, tensors, report)
    return _calibrate_causal(job, params, config, tensors, report)


def _calibrate_classifier(job: Job, params: CalibrateParams, config: Any, tensors: Any, report: Report) -> Facts:
    names, rows = label_names(config), rows_of(job.datasets[0], LABELLED)
    labels: Labels = np.array([number_of(row["label"], names) for row in rows], dtype=np.int64)
    texts = [row["text"] for row in rows]
    fitted_on, held = halves(labels.tolist(), params.eval_fraction, job.seed)

    def logits_of(folder: Path) -> Array:
        return class_logits(folder, texts, params.max_length, params.batch_size, job.device, report)

    before = logits_of(job.path("source"))
    facts: Facts = {}
    if params.method in AFFINE:
        change = fit_affine(params.method, before[fitted_on], labels[fitted_on], params.l2)
        layer = classifier_of("the model", tensors, len(names))
        left_out = fold(job.path("source"), job.output, layer, _least(params.method, change), report)
        after = softmax(logits_of(job.output))
        facts = {**_parameters(params.method, change), "rounding": float(np.abs(after - softmax(change(before))).max())}
    else:
        document = fit_map(params.method, softmax(before)[fitted_on], labels[fitted_on], names, params.bins)
        shutil.copytree(job.path("source"), job.output, dirs_exist_ok=True)
        (job.output / FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        after, left_out = calibrated(job.output, before), []
        facts = {"post_processor": FILE}
    parts = {"eval": held, "fit": fitted_on}
    scores = {
        (part, when): judged(shares[places], labels[places], names, params.bins, job.seed)
        for part, places in parts.items()
        for when, shares in (("before", softmax(before)), ("after", after))
    }
    return {**_facts(scores), **facts, "eval_rows": len(held), "fit_rows": len(fitted_on), "left_out": left_out}


def _calibrate_causal(job: Job, params: CalibrateParams, config: Any, tensors: Any, report: Report) -> Facts:
    import torch

    texts = [row["text"] for row in rows_of(job.datasets[0], TEXT)]
    fitted_on, held = halves([0] * len(texts), params.eval_fraction, job.seed)
    parts = {"eval": [texts[place] for place in held], "fit": [texts[place] for place in fitted_on]}

    def rows(folder: Path, part: str) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
        return token_logits(folder, parts[part], params.max_length, params.max_tokens, job.device, report)

    seen = {(part, when): TokenScores(params.bins) for part in parts for when in ("before", "after")}
    kept = list(rows(job.path("source"), "fit"))
    for logits, answers in kept:
        seen["fit", "before"].add(logits, answers)
    seen["fit", "before"].scores(job.seed)
    hot = fit_temperature(torch.cat([logits for logits, _ in kept]), torch.cat([answers for _, answers in kept]))
    del kept
    wanted = TokenScores(params.bins)
    for logits, answers in rows(job.path("source"), "eval"):
        seen["eval", "before"].add(logits, answers)
        wanted.add(logits / hot, answers)
    layer = output_of("the model", config, tensors)
    left_out = fold(job.path("source"), job.output, layer, 1 / hot, report)
    for part in parts:
        for logits, answers in rows(job.output, part):
            seen[part, "after"].add(logits, answers)
    scores = {key: one.scores(job.seed) for key, one in seen.items()}
    rounding = abs(scores["eval", "after"]["nll"]["value"] - wanted.scores(job.seed)["nll"]["value"])
    if rounding > FAR:
        raise NotFolded(
            f"scaling {layer.name} did not divide the logits by {hot:.4g}: this architecture does more with it",
            fix="nothing was kept; a temperature of its generation config has the same effect where text is written",
        )
    counts = {f"{part}_tokens": seen[part, "before"].count for part in parts}
    return {**_facts(scores), "temperature": hot, "layer": layer.name, "rounding": rounding, **counts,
            "eval_rows": len(held), "fit_rows": len(fitted_on), "left_out": left_out}  # fmt: skip


def _least(method: str, change: Affine) -> Affine | float:
    """What has to change: no bias where nothing is added to it."""
    return float(change.matrix[0, 0]) if method == "temperature" else change


def _parameters(method: str, change: Affine) -> Facts:
    if method == "temperature":
        return {"temperature": 1 / float(change.matrix[0, 0])}
    if method == "platt":
        return {"scale": float(change.matrix[0, 0]), "shift": float(2 * change.bias[1])}
    return {"scale" if method == "vector" else "matrix_diagonal": np.diag(change.matrix).tolist(),
            "bias": change.bias.tolist()}  # fmt: skip


def _facts(scores: dict[tuple[str, str], Any]) -> Facts:
    facts = {name: value for (part, when), found in scores.items() for name, value in told(part, when, found).items()}
    order = sorted(facts, key=lambda name: (not name.startswith("eval"), name.split("_")[1], name.endswith("after")))
    bins = {when: scores["eval", when]["ece"]["details"]["bins"] for when in ("before", "after")}
    return {**{name: facts[name] for name in order}, "reliability": bins}


def calibrated(folder: Path, logits: Array) -> Array:
    """Probabilities [rows, labels] from the logits of the model in `folder`, by its calibration.json where it has one.

    Isotonic regression and histogram binning are no part of the weights: softmax alone does not apply them.
    """
    shares = softmax(np.asarray(logits, dtype=np.float64))
    path = folder / FILE
    return apply_map(json.loads(path.read_text(encoding="utf-8")), shares) if path.exists() else shares


TRANSFORM = Transform(
    params=CalibrateParams,
    inputs=(Input("source", "a classifier of texts, or a causal language model (temperature only)"),),
    determinism="same-machine",
    version=1,
    run=run,
    datasets="required",
    check=check,
)
