"""Runs a version, and another beside it, over rows: what is observed becomes scores (the torch side of evaluating)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mreg.registry.measures import metrics
from mreg.registry.transform import Job, Report
from mreg.transforms import _labelling, _speed, _text_scores
from mreg.transforms._adapter import load_adapted
from mreg.transforms._architecture import SAFE, model_class
from mreg.transforms._evaluation import EvaluationParams, gguf_file
from mreg.transforms._metrics import Found
from mreg.transforms._training import TOKENIZERS

TASKS = {"causal": "CAUSAL_LM", "classifier": "SEQ_CLS", "token classifier": "TOKEN_CLS"}
"""By kind of model: what PEFT calls its task."""


def measure(job: Job, params: EvaluationParams, report: Report) -> list[Found]:
    """Every score that the params ask for."""
    kind = _kind(job)
    model = _load(job, "source", params, kind)
    tokenizer = _tokenizer(job, "source", kind)
    found: dict[str, Found] = {}
    if job.datasets:
        other = _load(job, "against", params, kind) if job.paths("against") else None
        if kind == "causal":
            found |= _text_scores.measure_text(job, params, model, other, tokenizer, report)
        else:
            found |= _labelling.measure_labels(job, params, kind, model, other, tokenizer, report)
    if "latency" in params.metrics:
        found["latency"] = _speed.latency(job, params, model, kind, report)
    if "throughput" in params.metrics:
        found["throughput"] = _speed.throughput(job, params, model, report)
    scores = [found[name] for name in params.metrics]
    if params.tasks:
        from mreg.transforms._harness import run_tasks

        scores += run_tasks(job, params, model, tokenizer, report)
    return scores


def _kind(job: Job) -> str:
    """What kind of model the source is: what an adapter says that it is for, or what the config names."""
    kind = next((kind for kind, task in TASKS.items() if task == _task(job.path("source"))), None)
    config = _config_of(job, "source")
    if kind is not None or config is None:
        return kind or "causal"
    named = (json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""])[0]
    return metrics.kind_of(named) if metrics.kind_of(named) in TASKS else "causal"


def _config_of(job: Job, role: str) -> Path | None:
    """The config.json that holds: an adapter's own where it brings one, else its base's."""
    folders = [*job.paths(role), *job.paths("base" if role == "source" else "against_base")]
    return next((folder / "config.json" for folder in folders if (folder / "config.json").exists()), None)


def _task(folder: Path) -> str | None:
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("task_type") if path.exists() else None


def _load(job: Job, role: str, params: EvaluationParams, kind: str) -> Any:
    """The model of a role, for reading; an adapter on its base."""
    folder = job.path(role)
    if job_adapter(job, role):
        model = load_adapted(job.path("base" if role == "source" else "against_base"), folder, dtype=params.dtype)
    elif gguf := gguf_file(folder):
        model = model_class({}, TASKS[kind]).from_pretrained(folder, gguf_file=gguf, dtype=params.dtype)
    else:
        model = model_class({}, TASKS[kind]).from_pretrained(folder, dtype=params.dtype, **SAFE)
    return (model if job.device == "cpu" else model.to(job.device)).eval()


def job_adapter(job: Job, role: str) -> bool:
    """Whether the input with this role is an adapter."""
    return any(given.adapter for given in job.inputs if given.role == role)


def _tokenizer(job: Job, role: str, kind: str) -> Any:
    from transformers import AutoTokenizer

    folders = [*job.paths(role), *job.paths("base" if role == "source" else "against_base")]
    folder = next((one for one in folders if any((one / name).exists() for name in TOKENIZERS)), folders[0])
    if not any((folder / name).exists() for name in TOKENIZERS):
        return None
    # Words are given one by one, as when such a model is trained.
    spaced = {"add_prefix_space": True} if kind == "token classifier" else {}
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **spaced)
