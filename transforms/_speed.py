"""How fast a model is here: the time for a new token, and the tokens that it reads in a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _metrics
from mreg.transforms._evaluation import EvaluationParams
from mreg.transforms._metrics import Found
from mreg.transforms._spelling import most_tokens

if TYPE_CHECKING:
    import torch

ONE_ROW = 128
"""Tokens of a row that speed is taken on."""

NEW_TOKENS = 16


def latency(job: Job, params: EvaluationParams, model: Any, kind: str, report: Report) -> Found:
    """Seconds for a new token after a prompt of 32, with the cache; of a classifier, for one row."""
    import torch

    ids = _random_ids(job, model, 1)
    if kind != "causal":
        once: Callable[[], Any] = lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))  # noqa: E731
        each = 1
    else:
        ids = ids[:, :32]
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        once = lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # noqa: E731
        each = NEW_TOKENS
    taken = [seconds / each for seconds in _timed(once, params.repeats, job.device, report)]
    return _metrics.median("latency", taken, "s", job.seed)


def throughput(job: Job, params: EvaluationParams, model: Any, report: Report) -> Found:
    """Tokens read in a second, `batch_size` rows of 128 at once."""
    import torch

    ids = _random_ids(job, model, params.batch_size)
    mask = torch.ones_like(ids)
    taken = _timed(lambda: model(input_ids=ids, attention_mask=mask), params.repeats, job.device, report)
    return _metrics.median("throughput", [ids.numel() / seconds for seconds in taken], "tokens/s", job.seed)


def _random_ids(job: Job, model: Any, rows: int) -> torch.Tensor:
    import torch

    chance = torch.Generator().manual_seed(job.seed)
    width = min(ONE_ROW, most_tokens(model) - NEW_TOKENS)
    size = model.config.get_text_config().vocab_size
    return torch.randint(size, (rows, width), generator=chance).to(model.device)


def _timed(once: Callable[[], Any], repeats: int, device: str, report: Report) -> Iterator[float]:
    """Seconds of each time after the first, which warms up."""
    import torch

    with torch.no_grad():
        for place in range(repeats + 1):
            began = time.perf_counter()
            once()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if place:
                yield time.perf_counter() - began
            report(Progress(place, repeats, "timing"))
