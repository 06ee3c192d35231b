"""Runs a version, and another beside it, over rows: what is observed becomes scores (the torch side of evaluating)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Progress, Report
from mreg.transforms import _metrics
from mreg.transforms._adapter import load_adapted
from mreg.transforms._architecture import SAFE, model_class
from mreg.transforms._evaluation import FORMATS, EvaluationParams, gguf_file
from mreg.transforms._metrics import Found
from mreg.transforms._rows import CHAT, COMPLETED, format_of
from mreg.transforms._training import TOKENIZERS, rows_of

if TYPE_CHECKING:
    import torch

ONE_ROW = 128
"""Tokens of a row that speed is taken on."""

NEW_TOKENS = 16

TASKS = {"causal": "CAUSAL_LM", "classifier": "SEQ_CLS"}


@dataclass(frozen=True)
class Spelled:
    """Tokens of a row, of which those from `start` on are judged; `row` counts from 1."""

    row: int
    ids: list[int]
    start: int


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


def measure(job: Job, params: EvaluationParams, report: Report) -> list[Found]:
    """Every score that the params ask for."""
    config = _config_of(job, "source")
    named = json.loads(config.read_text(encoding="utf-8")) if config is not None else {}
    is_classifier = (named.get("architectures") or [""])[0].endswith("ForSequenceClassification")
    kind = "classifier" if is_classifier or _task(job.path("source")) == "SEQ_CLS" else "causal"
    model = _load(job, "source", params, kind)
    tokenizer = _tokenizer(job, "source")
    found: dict[str, Found] = {}
    if job.datasets and kind == "classifier":
        from mreg.transforms._labelling import measure_labels

        found |= measure_labels(job, params, model, tokenizer, lambda: _load(job, "against", params, kind), report)
    elif job.datasets:
        other = _load(job, "against", params, kind) if job.paths("against") else None
        found |= _measure_text(job, params, model, other, tokenizer, report)
    if "latency" in params.metrics:
        found["latency"] = _latency(job, params, model, kind, report)
    if "throughput" in params.metrics:
        found["throughput"] = _throughput(job, params, model, report)
    scores = [found[name] for name in params.metrics]
    if params.tasks:
        from mreg.transforms._harness import run_tasks

        scores += run_tasks(job, params, model, tokenizer, report)
    return scores


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


def _tokenizer(job: Job, role: str) -> Any:
    from transformers import AutoTokenizer

    folders = [*job.paths(role), *job.paths("base" if role == "source" else "against_base")]
    folder = next((one for one in folders if any((one / name).exists() for name in TOKENIZERS)), folders[0])
    if not any((folder / name).exists() for name in TOKENIZERS):
        return None
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def spell(tokenizer: Any, row: int, given: dict[str, Any], columns: tuple[str, ...], most: int) -> Iterator[Spelled]:
    """A row as tokens: a text is judged from its second token on, else what the assistant says, a turn at a time."""
    if columns == CHAT or (columns == COMPLETED and isinstance(given["prompt"], list)):
        turns = given["messages"] if columns == CHAT else [*given["prompt"], *given["completion"]]
        first = 0 if columns == CHAT else len(given["prompt"])
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and place >= first:
                before = tokenizer.apply_chat_template(turns[:place], tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template(turns[: place + 1], tokenize=False)
                yield _after(tokenizer, row, before, whole, most, special=False)
    elif columns == COMPLETED:
        yield _after(tokenizer, row, given["prompt"], given["prompt"] + given["completion"], most, special=True)
    else:
        yield Spelled(row, tokenizer(given["text"])["input_ids"][:most], 1)


def _after(tokenizer: Any, row: int, before: str, whole: str, most: int, *, special: bool) -> Spelled:
    """The tokens of `whole`, judged from where they leave those of `before`."""
    first = tokenizer(before, add_special_tokens=special)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
    start = next((k for k, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), min(len(first), len(ids)))
    return Spelled(row, ids[:most], max(1, start))


def _measure_text(
    job: Job, params: EvaluationParams, model: Any, other: Any, tokenizer: Any, report: Report
) -> dict[str, Found]:
    """Scores of a language model over rows."""
    (given,) = job.datasets
    columns = format_of(given.name, given.columns, FORMATS)
    rows = rows_of(given, columns)[: params.max_rows]
    most = min(params.max_length, _longest(model))
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
            _write_differences(job, params, model, other, tokenizer, judged, observed)
    if params.samples:
        report(Progress(0, params.samples, "samples"))
        _write_samples(job, params, model, tokenizer, spelled[: params.samples], columns)
    return found


def _longest(model: Any) -> int:
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    return int(most)


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


def logits_of(model: Any, batch: Sequence[Spelled]) -> list[torch.Tensor]:
    """For each row, the logits [judged, vocabulary] from which its judged tokens are predicted."""
    import torch

    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, one in enumerate(batch):
        ids[place, : len(one.ids)] = torch.tensor(one.ids)
        mask[place, : len(one.ids)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    # Learnt prompts stand before the tokens.
    logits = logits[:, -longest:]
    return [logits[place, one.start - 1 : len(one.ids) - 1] for place, one in enumerate(batch)]


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


def _write_samples(
    job: Job,
    params: EvaluationParams,
    model: Any,
    tokenizer: Any,
    spelled: Sequence[Spelled],
    columns: tuple[str, ...],
) -> None:
    """What the model says after the beginning of each row, by the most probable token."""
    lines = []
    for one in spelled:
        # Of a plain text, half is given and half is to be said.
        cut = one.start if columns != ("text",) else max(1, len(one.ids) // 2)
        said = go_on(model, tokenizer, one.ids[:cut], params.max_new_tokens)
        lines.append(
            {
                "row": one.row,
                "prompt": tokenizer.decode(one.ids[:cut]),
                "generated": said,
                "expected": tokenizer.decode(one.ids[cut : cut + params.max_new_tokens]),
            }
        )
    write_made(job, "samples", lines)


def go_on(model: Any, tokenizer: Any, ids: list[int], most: int) -> str:
    """The text that a model finds most probable after these tokens."""
    import torch

    given = torch.tensor([ids], device=model.device)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        out = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            pad_token_id=padding,
        )
    text: str = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return text


def _write_differences(
    job: Job,
    params: EvaluationParams,
    model: Any,
    other: Any,
    tokenizer: Any,
    spelled: Sequence[Spelled],
    observed: Sequence[Observed],
) -> None:
    """The rows with the greatest KL a token; each is shown at the token on which the two differ most."""
    order = sorted(range(len(observed)), key=lambda k: (-observed[k].kl / observed[k].count, k))
    lines = []
    for place in order[: params.differences]:
        one, seen = spelled[place], observed[place]
        cut = one.start + seen.worst
        sides = {}
        for side, each in (("a", other), ("b", model)):
            sides[side] = {
                "next": _most_probable(each, tokenizer, Spelled(one.row, one.ids[: cut + 1], cut)),
                "continuation": go_on(each, tokenizer, one.ids[:cut], params.max_new_tokens),
            }
        lines.append(
            {
                "row": one.row,
                "kl": round(seen.kl / seen.count, 6),
                "agreement": round(seen.agreed / seen.count, 6),
                "tokens": seen.count,
                "text": tokenizer.decode(one.ids[:cut]),
                "expected": tokenizer.decode(one.ids[cut : cut + params.max_new_tokens]),
                **sides,
            }
        )
    write_made(job, "differences", lines)


def _most_probable(model: Any, tokenizer: Any, one: Spelled, most: int = 5) -> list[dict[str, Any]]:
    import torch

    (logits,) = logits_of(model, [one])
    shares, ids = torch.softmax(logits[-1].float(), dim=-1).topk(most)
    return [
        {"token": tokenizer.decode([int(token)]), "probability": round(float(share), 6)}
        for share, token in zip(shares, ids, strict=True)
    ]


def write_made(job: Job, name: str, lines: Sequence[dict[str, Any]]) -> None:
    """Leave rows behind as a dataset."""
    job.made.mkdir(exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (job.made / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _latency(job: Job, params: EvaluationParams, model: Any, kind: str, report: Report) -> Found:
    """Seconds for a new token after a prompt of 32, with the cache; of a classifier, for one row."""
    import torch

    ids = _random_ids(job, model, 1)
    if kind == "classifier":
        once: Callable[[], Any] = lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))  # noqa: E731
        each = 1
    else:
        ids = ids[:, :32]
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        once = lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # noqa: E731
        each = NEW_TOKENS
    taken = [seconds / each for seconds in _timed(once, params.repeats, job.device, report)]
    return _metrics.median("latency", taken, "s", job.seed)


def _throughput(job: Job, params: EvaluationParams, model: Any, report: Report) -> Found:
    """Tokens read in a second, `batch_size` rows of 128 at once."""
    import torch

    ids = _random_ids(job, model, params.batch_size)
    mask = torch.ones_like(ids)
    taken = _timed(lambda: model(input_ids=ids, attention_mask=mask), params.repeats, job.device, report)
    return _metrics.median("throughput", [ids.numel() / seconds for seconds in taken], "tokens/s", job.seed)


def _random_ids(job: Job, model: Any, rows: int) -> torch.Tensor:
    import torch

    chance = torch.Generator().manual_seed(job.seed)
    width = min(ONE_ROW, _longest(model) - NEW_TOKENS)
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
