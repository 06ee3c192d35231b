"""Runs a language model, and another beside it, over rows of text, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _metrics, _sayings
from mreg.transforms._evaluation import FORMATS, EvaluationParams
from mreg.transforms._metrics import Found
from mreg.transforms._rows import format_of
from mreg.transforms._spelling import Spelled, logits_of, most_tokens, spell
from mreg.transforms._training import rows_of

if TYPE_CHECKING:
    import torch


@dataclass
class Observed:
    """What was seen in one row: sums over its `count` judged tokens. `worst` is where the two versions differ most."""

    row: int
    count: int
    nll: float
    right: int
    kl: float = 0.0
    agreed: int = 0
    worst: int = 0


def measure_text(
    job: Job, params: EvaluationParams, model: Any, other: Any, tokenizer: Any, report: Report
) -> dict[str, Found]:
    """Scores of a language model over rows."""
    (given,) = job.datasets
    columns = format_of(given.name, given.columns, FORMATS)
    rows = rows_of(given, columns)[: params.max_rows]
    most = min(params.max_length, most_tokens(model))
    spelled = [one for number, row in enumerate(rows, start=1) for one in spell(tokenizer, number, row, columns, most)]
    judged = [one for one in spelled if len(one.ids) > one.start]
    if not judged:
        raise Refused(f"no row of {given.name} has anything to predict in {most} tokens", fix="raise --max-length")
    found: dict[str, Found] = {}
    if any(name not in ("latency", "throughput") for name in params.metrics) or params.differences:
        calibration = _metrics.Calibration(params.bins)
        observed = list(_observe(model, other, judged, params.batch_size, calibration, report))
        found = _scores_of(observed, calibration, job.seed, other is not None)
        if params.differences and other is not None:
            _sayings.write_differences(job, params, model, other, tokenizer, judged, observed)
    if params.samples:
        report(Progress(0, params.samples, "samples"))
        _sayings.write_samples(job, params, model, tokenizer, spelled[: params.samples], columns)
    return found


def _observe(
    model: Any,
    other: Any,
    spelled: Sequence[Spelled],
    batch_size: int,
    calibration: _metrics.Calibration,
    report: Report,
) -> Iterator[Observed]:
    """Each row of tokens, read by both models. Rows of about one length are computed together, and come in order."""
    order = sorted(range(len(spelled)), key=lambda place: (-len(spelled[place].ids), place))
    seen: dict[int, tuple[Observed, Any]] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [spelled[place] for place in places]
        ours = logits_of(model, batch)
        theirs = logits_of(other, batch) if other is not None else [None] * len(batch)
        for place, one, mine, its in zip(places, batch, ours, theirs, strict=True):
            seen[place] = _judge(one, mine, its)
        report(Progress(min(start + batch_size, len(order)), len(order), "rows"))
    for place in range(len(spelled)):
        calibration.add(*seen[place][1])
        yield seen[place][0]


def _judge(one: Spelled, ours: torch.Tensor, theirs: torch.Tensor | None) -> tuple[Observed, Any]:
    import torch

    logp = torch.log_softmax(ours.double() if ours.shape[-1] < 4096 else ours.float(), dim=-1)
    targets = torch.tensor(one.ids[one.start :], device=ours.device)
    confidence, answers = logp.max(dim=-1)
    right = answers == targets
    observed = Observed(
        row=one.row,
        count=len(targets),
        nll=-float(logp.gather(1, targets[:, None]).double().sum()),
        right=int(right.sum()),
    )
    if theirs is not None:
        # An embedding may be padded: the tokens that both have are compared.
        width = min(ours.shape[-1], theirs.shape[-1])
        p = torch.log_softmax(theirs[:, :width].to(logp.dtype), dim=-1)
        q = torch.log_softmax(ours[:, :width].to(logp.dtype), dim=-1)
        each = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).double().sum(dim=-1)
        observed.kl = float(each.sum())
        observed.agreed = int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum())
        observed.worst = int(each.argmax())
    return observed, (confidence.double().exp().cpu().numpy(), right.double().cpu().numpy())


def _scores_of(
    observed: Sequence[Observed], calibration: _metrics.Calibration, seed: int, is_pair: bool
) -> dict[str, Found]:
    # A conversation has several judged parts: its row is the unit.
    rows = sorted({one.row for one in observed})
    place = {row: k for k, row in enumerate(rows)}
    sums = np.zeros((5, len(rows)))
    for one in observed:
        sums[:, place[one.row]] += [one.count, one.nll, one.right, one.kl, one.agreed]
    count, nll, right, kl, agreed = sums
    tokens = int(count.sum())
    interval = "normal over rows"
    mean, bounds = _metrics.ratio(nll, count)
    exponents = None if bounds is None else (_metrics.exponential(bounds[0]), _metrics.exponential(bounds[1]))
    details = {"rows": len(rows)}
    found = {
        "nll": _metrics.score(
            "nll", mean, tokens, "tokens", unit="nats", bounds=bounds, interval=interval, details=details
        ),
        "perplexity": _metrics.score(
            "perplexity",
            _metrics.exponential(mean),
            tokens,
            "tokens",
            bounds=exponents,
            interval=f"exp of {interval}",
            details=details,
        ),
        "ece": calibration.score("tokens", seed),
    }
    pairs = [("accuracy", right, "")] + ([("kl", kl, "nats"), ("agreement", agreed, "")] if is_pair else [])
    for name, totals, unit in pairs:
        value, around = _metrics.ratio(totals, count)
        if around is not None and name != "kl":
            around = (max(0.0, around[0]), min(1.0, around[1]))  # A share.
        found[name] = _metrics.score(
            name, value, tokens, "tokens", unit=unit, bounds=around, interval=interval, details=details
        )
    return found
