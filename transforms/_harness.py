"""Tasks of lm-evaluation-harness, put to a model that is already in memory (Gao et al. 2024)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError
from mreg.registry.revs import suggest
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _metrics
from mreg.transforms._evaluation import EvaluationParams
from mreg.transforms._metrics import Found

SHARES = frozenset({"acc", "acc_norm", "exact_match"})
"""Metrics of the harness that count examples that are right."""


class UnknownTask(MregError):
    """The evaluation harness knows no task of this name."""

    exit_code = 4


def run_tasks(job: Job, params: EvaluationParams, model: Any, tokenizer: Any, report: Report) -> list[Found]:
    """Every number that the harness gives for the tasks, as `task/name`, with an interval where there is one."""
    report(Progress(0, len(params.tasks), "tasks"))
    local = params.include_path is not None
    if not local:
        _allow_network()
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if params.include_path is not None:
        # What a task says of its files is relative to where it lies.
        os.chdir(params.include_path)
    manager = TaskManager(include_path=params.include_path, include_defaults=not local)
    for task in params.tasks:
        if task not in manager.all_tasks:
            where = f"{Path(params.include_path).name} has" if params.include_path else "the harness has"
            names = list(manager.all_tasks)
            told = f"{where} {', '.join(names) or 'none'}" if len(names) < 20 else f"{where} {len(names)} tasks"
            raise UnknownTask(f"no task is called {task!r}", fix=suggest(task, names, told))
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=params.batch_size, device=job.device),
        tasks=list(params.tasks),
        num_fewshot=params.num_fewshot,
        limit=params.max_rows,
        apply_chat_template=params.apply_chat_template,
        task_manager=manager,
        log_samples=False,
        bootstrap_iters=1000,
        random_seed=job.seed,
        numpy_random_seed=job.seed,
        torch_random_seed=job.seed,
        fewshot_random_seed=job.seed,
    )
    assert results is not None
    return [found for task in params.tasks for found in _scores(task, results)]


def _scores(task: str, results: Mapping[str, Any]) -> list[Found]:
    told = results["results"][task]
    count = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
    found = []
    for name, value in sorted(told.items()):
        metric, comma, chosen = name.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        label = metric if chosen == "none" else f"{metric},{chosen}"
        error = told.get(f"{metric}_stderr,{chosen}")
        bounds, interval = None, "normal, by the harness"
        if metric in SHARES and count:
            bounds, interval = _metrics.wilson(round(float(value) * count), count), "Wilson"
        elif isinstance(error, float):
            bounds = (value - _metrics.Z * error, value + _metrics.Z * error)
        details = {"task_version": results.get("versions", {}).get(task), "num_fewshot": _shots(results, task)}
        found.append(
            _metrics.score(
                f"{task}/{label}",
                float(value),
                count,
                "examples",
                bounds=bounds,
                interval=interval,
                details=details,
            )
        )
    return found


def _shots(results: Mapping[str, Any], task: str) -> int | None:
    shots = results.get("n-shot", {}).get(task)
    return int(shots) if isinstance(shots, int) else None


def _allow_network() -> None:
    """Let this child download what a task asks, which no other work may."""
    import datasets.config
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = False
    datasets.config.HF_HUB_OFFLINE = False
