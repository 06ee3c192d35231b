"""Calibration at work: what is fitted on one part of the rows, written, and measured on the other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mreg.registry.errors import MregError
from mreg.registry.transform import Facts, Job, Report
from mreg.transforms._confidence import (
    Affine,
    Array,
    Labels,
    apply_map,
    fit_affine,
    fit_map,
    fit_temperature,
    softmax,
)
from mreg.transforms._last_layer import AFFINE, FILE, classifier_of, fold, label_names, number_of, output_of
from mreg.transforms._predictions import TokenScores, class_logits, halves, judged, token_logits, told
from mreg.transforms._rows import CLASSIFIED, TEXT
from mreg.transforms._training import rows_of

if TYPE_CHECKING:
    import torch
    from mreg.transforms.calibrate import CalibrateParams

FAR = 0.05
"""Nats by which the folded model may miss the loss that was fitted; rounding to bfloat16 costs a tenth of it."""


class NotFolded(MregError):
    """The written model does not compute the logits that were fitted."""

    exit_code = 6


def calibrate_classifier(job: Job, params: CalibrateParams, config: Any, tensors: Any, report: Report) -> Facts:
    """Fold what is fitted into the last layer, or write it beside the weights; measure what was written."""
    names, rows = label_names(config), rows_of(job.datasets[0], CLASSIFIED)
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


def calibrate_causal(job: Job, params: CalibrateParams, config: Any, tensors: Any, report: Report) -> Facts:
    """Divide the logits by the temperature that suits the tokens of one part; measure what was written."""
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
