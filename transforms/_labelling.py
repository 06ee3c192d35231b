"""Runs a classifier of texts, and another beside it, over labelled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _metrics
from mreg.transforms._evaluation import LABELLED, EvaluationParams
from mreg.transforms._metrics import Array, Found
from mreg.transforms._training import rows_of


def measure_labels(
    job: Job, params: EvaluationParams, model: Any, tokenizer: Any, other: Callable[[], Any], report: Report
) -> dict[str, Found]:
    """Scores of a classifier over rows of `text` and `label`."""
    from mreg.transforms._scoring import write_made

    (given,) = job.datasets
    rows = rows_of(given, LABELLED)[: params.max_rows]
    texts = [row["text"] for row in rows]
    names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
    labels = np.array([_number(row["label"], names, given.name) for row in rows], dtype=np.int64)
    logits = _logits(model, tokenizer, texts, params, report)
    found = _metrics.classification(np.exp(logits), labels, names, params.bins, job.seed)
    if not job.paths("against"):
        return found
    theirs = _logits(other(), tokenizer, texts, params, report)
    each = np.where(np.isneginf(theirs), 0.0, np.exp(theirs) * (theirs - logits)).sum(axis=1)
    agreed = logits.argmax(axis=1) == theirs.argmax(axis=1)
    value, bounds = _metrics.ratio(each, np.ones(len(rows)))
    share = _metrics.wilson(int(agreed.sum()), len(rows))
    found["kl"] = _metrics.score(
        "kl", value, len(rows), "rows", unit="nats", bounds=bounds, interval="normal over rows"
    )
    found["agreement"] = _metrics.score(
        "agreement", float(agreed.mean()), len(rows), "rows", bounds=share, interval="Wilson"
    )
    if params.differences:
        order = np.argsort(-each, kind="stable")[: params.differences]
        lines = [
            {
                "row": int(k) + 1,
                "kl": round(float(each[k]), 6),
                "agreement": float(agreed[k]),
                "tokens": 1,
                "text": texts[k],
                "expected": names[labels[k]],
                "a": _answer(theirs[k], names),
                "b": _answer(logits[k], names),
            }
            for k in order
        ]
        write_made(job, "differences", lines)
    return found


def _number(label: str | int, names: Sequence[str], data: str) -> int:
    if str(label) in names:
        return names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise Refused(f"{data} has the label {label!r}, which the model does not know", fix=f"it knows {', '.join(names)}")


def _logits(model: Any, tokenizer: Any, texts: Sequence[str], params: EvaluationParams, report: Report) -> Array:
    """Log probabilities [rows, classes]."""
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


def _answer(logits: Array, names: Sequence[str]) -> dict[str, Any]:
    order = np.argsort(-logits, kind="stable")[:5]
    most = [{"token": names[k], "probability": round(float(np.exp(logits[k])), 6)} for k in order]
    return {"next": most, "continuation": names[order[0]]}
