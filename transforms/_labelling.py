"""Runs a classifier, of texts or of words, and another beside it, over labelled rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _confidence, _metrics
from mreg.transforms._evaluation import EvaluationParams
from mreg.transforms._last_layer import FILE, number_of
from mreg.transforms._metrics import Array, Found
from mreg.transforms._rows import CLASSIFIED, TAGGED
from mreg.transforms._sayings import write_made
from mreg.transforms._training import rows_of


@dataclass(frozen=True)
class Judged:
    """What has one label: a text, or a word in its row. `row` counts from 1; `shown` is it as people are to see it."""

    row: int
    label: int
    shown: str


def measure_labels(
    job: Job, params: EvaluationParams, kind: str, model: Any, other: Any, tokenizer: Any, report: Report
) -> dict[str, Found]:
    """Scores of a classifier over rows of a text and its label, or of words and theirs.

    A calibration.json that `calibrate` wrote beside the weights is part of the version: its probabilities are judged.
    """
    names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
    models = [one for one in (model, other) if one is not None]
    judge = _texts if kind == "classifier" else _words
    units, told = judge(job, params, models, tokenizer, names, report)
    ours, of = told[0], np.array([one.row for one in units])
    labels = np.array([one.label for one in units], dtype=np.int64)
    unit = "rows" if kind == "classifier" else "words"
    found = _metrics.classification(np.exp(ours), labels, names, params.bins, job.seed, of=of, unit=unit)
    if other is None:
        return found
    theirs = told[1]
    each, differ = _apart(ours, theirs), ours.argmax(axis=1) != theirs.argmax(axis=1)
    found |= _metrics.difference(each, ~differ, of, unit)
    if params.differences:
        order = np.argsort(-each, kind="stable")[: params.differences]
        lines = [
            {
                "row": units[k].row,
                "kl": round(float(each[k]), 6) if np.isfinite(each[k]) else None,
                "agreement": float(not differ[k]),
                "tokens": 1,
                "text": units[k].shown,
                "expected": names[labels[k]],
                "a": _answer(theirs[k], names),
                "b": _answer(ours[k], names),
            }
            for k in order
        ]
        write_made(job, "differences", lines)
    return found


def _texts(
    job: Job, params: EvaluationParams, models: Sequence[Any], tokenizer: Any, names: list[str], report: Report
) -> tuple[list[Judged], list[Array]]:
    """The texts of the rows, and of each model its log probabilities [texts, classes]."""
    (given,) = job.datasets
    rows = rows_of(given, CLASSIFIED)[: params.max_rows]
    units = [Judged(k, _number(row["label"], names, given.name), row["text"]) for k, row in enumerate(rows, start=1)]
    texts = [one.shown for one in units]
    told = [
        _calibrated(job.path(role), _of_texts(model, tokenizer, texts, params, report), names)
        for role, model in zip(("source", "against"), models, strict=False)
    ]
    return units, told


def _words(
    job: Job, params: EvaluationParams, models: Sequence[Any], tokenizer: Any, names: list[str], report: Report
) -> tuple[list[Judged], list[Array]]:
    """The words of the rows as far as they are read, and of each model its log probabilities [words, classes]."""
    (given,) = job.datasets
    rows = rows_of(given, TAGGED)[: params.max_rows]
    texts = [row["tokens"] for row in rows]
    places = [_first_tokens(tokenizer, words, params.max_length) for words in texts]
    units = [
        Judged(k + 1, _number(rows[k]["labels"][word], names, given.name), " ".join(texts[k][: word + 1]))
        for k, found in enumerate(places)
        for word, _ in found
    ]
    if not units:
        raise Refused(f"{given.name} has no word in the first {params.max_length} tokens of a row", fix="give others")
    return units, [_of_words(model, tokenizer, texts, places, params, report) for model in models]


def _number(label: str | int, names: Sequence[str], data: str) -> int:
    found = number_of(label, names)
    if found is None:
        known = ", ".join(names)
        raise Refused(f"{data} has the label {label!r}, which the model does not know", fix=f"it knows {known}")
    return found


def _of_texts(model: Any, tokenizer: Any, texts: Sequence[str], params: EvaluationParams, report: Report) -> Array:
    """Log probabilities [texts, classes]."""
    import torch

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    parts: list[Array] = []
    for start in range(0, len(texts), params.batch_size):
        batch = list(texts[start : start + params.batch_size])
        given = tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=params.max_length)
        with torch.no_grad():
            logits = model(**given.to(model.device)).logits
        parts.append(torch.log_softmax(logits.double(), dim=-1).cpu().numpy())
        report(Progress(min(start + params.batch_size, len(texts)), len(texts), "rows"))
    return np.concatenate(parts)


def _first_tokens(tokenizer: Any, words: Sequence[str], most: int) -> list[tuple[int, int]]:
    """Each word of a row with the place of its first token, which has its label in training too; `most` are read."""
    of = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=most).word_ids()
    starts = enumerate(zip([None, *of], of, strict=False))
    return [(word, place) for place, (before, word) in starts if word is not None and word != before]


def _of_words(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Sequence[str]],
    places: Sequence[Sequence[tuple[int, int]]],
    params: EvaluationParams,
    report: Report,
) -> Array:
    """Log probabilities [words, classes], the words of all rows one after the other."""
    import torch

    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    parts: list[Array] = []
    for start in range(0, len(rows), params.batch_size):
        stop = min(start + params.batch_size, len(rows))
        given = tokenizer(
            [list(row) for row in rows[start:stop]],
            is_split_into_words=True,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=params.max_length,
        )
        with torch.no_grad():
            logits = model(**given.to(model.device)).logits
        at = [(k, place) for k, found in enumerate(places[start:stop]) for _, place in found]
        logs = torch.log_softmax(logits[[k for k, _ in at], [place for _, place in at]].double(), dim=-1)
        parts.append(logs.cpu().numpy())
        report(Progress(stop, len(rows), "rows"))
    return np.concatenate(parts)


def _calibrated(folder: Path, logs: Array, names: Sequence[str]) -> Array:
    """Log probabilities as the calibration.json in a folder makes them, where `calibrate` wrote one. Raises Refused."""
    path = folder / FILE
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    told = str(document.get("format", "") if isinstance(document, dict) else "")
    if not told.startswith(_confidence.FORMAT.partition("/")[0] + "/"):
        return logs
    if told != _confidence.FORMAT:
        raise Refused(f"its {FILE} is written as {told}, which is not known here", fix="evaluate with a newer mreg")
    if document["labels"] != list(names):
        raise Refused(
            f"its {FILE} is for the labels {', '.join(document['labels'])}, and the model has {', '.join(names)}",
            fix="calibrate the model anew, from a version without that file",
        )
    with np.errstate(divide="ignore"):
        found: Array = np.log(_confidence.apply_map(document, np.exp(logs)))
    return found


def _apart(ours: Array, theirs: Array) -> Array:
    """KL(theirs ‖ ours) of each text or word; infinite where one is ruled out that the other allows."""
    each: Array = np.zeros_like(theirs)
    there = ~np.isneginf(theirs)
    each[there] = np.exp(theirs[there]) * (theirs[there] - ours[there])
    whole: Array = each.sum(axis=1)
    return whole


def _answer(logits: Array, names: Sequence[str]) -> dict[str, Any]:
    order = np.argsort(-logits, kind="stable")[:5]
    most = [{"token": names[k], "probability": round(float(np.exp(logits[k])), 6)} for k in order]
    return {"next": most, "continuation": names[order[0]]}
