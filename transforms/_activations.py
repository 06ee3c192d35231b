"""What goes through a model on recorded rows: samples as tokens, and how much each part of its layers does on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Material, Progress, Report, Rows
from mreg.transforms._rows import CHAT, COMPLETED, TEXT, Format, check_rows, format_of
from mreg.transforms._training import has_tokenizer, rows_of

if TYPE_CHECKING:
    import torch

FORMATS: tuple[Format, ...] = (CHAT, COMPLETED, TEXT)
LENGTHS = ("max_position_embeddings", "n_positions")


def check_samples(source: Material, rows: Sequence[Rows], samples: int) -> None:
    """Refuse a model without a tokenizer, rows that are no text, and fewer of them than are asked for."""
    has_tokenizer(source)
    check_rows(source, rows, FORMATS)
    held = sum(dataset.count for dataset in rows)
    if held < samples:
        raise Refused(
            f"{samples} calibration samples are asked for and the data has {held} rows",
            fix=f"give more rows, or --num-calibration-samples {held}",
        )


def read_samples(job: Job, count: int, longest: int, config: Mapping[str, Any]) -> list[list[int]]:
    """The tokens of the first `count` rows, each cut at `longest` or where the model's positions end."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(job.path("source"), trust_remote_code=False)
    limit = min([longest, *(config[key] for key in LENGTHS if isinstance(config.get(key), int))])
    rows = [row for given in job.datasets for row in rows_of(given, format_of("the data", given.columns, FORMATS))]
    return [_tokens(tokenizer, row)[:limit] for row in rows[:count]]


def _tokens(tokenizer: Any, row: Mapping[str, Any]) -> list[int]:
    if "text" in row:
        ids: list[int] = tokenizer(row["text"]).input_ids
        return ids
    turns = row.get("messages")
    if turns is None and not isinstance(row["prompt"], str):
        turns = [*row["prompt"], *row["completion"]]
    if turns is None:
        return _tokens(tokenizer, {"text": row["prompt"] + row["completion"]})
    spelled = tokenizer.apply_chat_template(turns, tokenize=False)
    told: list[int] = tokenizer(spelled, add_special_tokens=False).input_ids
    return told


@dataclass
class Observed:
    """What was measured: `inputs` has for each module the squared norm of each input feature, over all tokens.

    `changes` has for each layer 1 less the mean cosine between what goes in and what comes out, the block influence of
    Men et al. (2024).
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    changes: dict[str, float] = field(default_factory=dict)
    tokens: int = 0


def observe(
    model: Any, samples: Iterable[Sequence[int]], report: Report, *, modules: Sequence[str], layers: Sequence[str]
) -> Observed:
    """Run a model in evaluation mode on samples, one at a time; sums are in float64."""
    import torch

    seen = Observed()
    given = list(samples)
    named = dict(model.named_modules())
    hooks = [named[name].register_forward_pre_hook(_norms(seen, name)) for name in modules]
    hooks += [named[name].register_forward_hook(_cosines(seen, name)) for name in layers]
    for done, ids in enumerate(given, start=1):
        with torch.no_grad():
            model(torch.tensor([ids], device=model.device))
        seen.tokens += len(ids)
        report(Progress(done, len(given), "measuring activations"))
    for hook in hooks:
        hook.remove()
    seen.changes = {name: total / seen.tokens for name, total in seen.changes.items()}
    return seen


def _norms(seen: Observed, name: str) -> Callable[..., None]:
    def hook(module: Any, inputs: tuple[Any, ...]) -> None:
        del module
        squared = inputs[0].detach().double().reshape(-1, inputs[0].shape[-1]).square().sum(0).cpu()
        seen.inputs[name] = seen.inputs[name] + squared if name in seen.inputs else squared

    return hook


def _cosines(seen: Observed, name: str) -> Callable[..., None]:
    def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        from torch.nn.functional import cosine_similarity

        del module
        after = output[0] if isinstance(output, tuple) else output
        apart = 1 - cosine_similarity(inputs[0].detach().double(), after.detach().double(), dim=-1)
        seen.changes[name] = seen.changes.get(name, 0.0) + float(apart.sum())

    return hook


def load(folder: Path, config: Mapping[str, Any], device: str) -> Any:
    """The model of a folder in float32, in evaluation mode."""
    from mreg.transforms._architecture import SAFE, model_class

    return model_class(config).from_pretrained(folder, dtype="float32", **SAFE).to(device).eval()
