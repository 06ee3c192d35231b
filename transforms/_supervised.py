"""What trainings on given text have in common: rows held out, the model loaded for its way of tuning, TRL's trainer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Job, Report, Rows
from mreg.transforms import _check, _ranks
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._training import arguments, facts_of, follow
from mreg.transforms._tuning import TuningParams, freeze, peft_config
from pydantic import Field

if TYPE_CHECKING:
    from datasets import Dataset

RATES: Mapping[str, float] = {
    "full": 2e-5,
    "adapter": 2e-4,
    "ia3": 3e-3,
    "vera": 4e-3,
    "prompt": 3e-2,
    "p-tuning": 1e-3,
    "prefix": 1e-2,
}
"""Peaks of the learning rate: the fewer the numbers that are learnt, the higher."""


class SupervisedParams(TuningParams):
    """The options of every training on given text."""

    LEARNING_RATES: ClassVar[Mapping[str, float]] = RATES

    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; unless said, 2e-5 where every weight is trained, 2e-4 for most adapters, and more for
    those with few numbers (ia3 3e-3, vera 4e-3, p-tuning 1e-3, prefix 1e-2, prompt 3e-2)."""

    eval_fraction: float = Field(0.0, ge=0, lt=1)
    """The share of the rows, picked by the seed, that is not trained on but measured before and after."""


def check_supervised(params: SupervisedParams, rows: tuple[Rows, ...]) -> None:
    """Refuse a split that leaves nothing on one side, and a way of tuning of which the package is missing."""
    if params.trained == "qlora":
        _check.needs("bitsandbytes", "qlora", "qlora")
    count = sum(dataset.count for dataset in rows)
    count = min(count, params.max_rows or count)
    if params.eval_fraction and count < 2:
        raise Refused("one row cannot be trained on and held out", fix="give more rows, or --eval-fraction 0")


def split(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Rows to train on and rows held out: at least one of each, both in the order that they had."""
    if not fraction:
        return rows, None
    import random

    held = set(random.Random(seed).sample(range(len(rows)), held_out(len(rows), fraction)))  # noqa: S311 no secret
    return rows.select([place for place in range(len(rows)) if place not in held]), rows.select(sorted(held))


def held_out(rows: int, fraction: float) -> int:
    """How many of the rows are held out."""
    return min(max(1, round(rows * fraction)), rows - 1) if fraction else 0


def load_causal(folder: Path, params: SupervisedParams) -> Any:
    """A causal language model, in 4 bits where only a LoRA beside it is trained (Dettmers et al. 2023)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, params.dtype)
    more: dict[str, Any] = {}
    if params.trained == "qlora":
        four_bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        make: Any = BitsAndBytesConfig
        more["quantization_config"] = make(**four_bits, bnb_4bit_compute_dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **more, **SAFE)


def supervise(
    job: Job,
    params: SupervisedParams,
    report: Report,
    *,
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    measured: Mapping[str, Dataset],
    stage: str = "",
    **options: Any,
) -> tuple[Any, Facts]:
    """Train `model` by TRL; return it and the facts. `stage` is for `train`, `options` go to `SFTConfig`.

    The mean loss of a token of each dataset in `measured` is told as it was before and as it is after.
    """
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    freeze(model, params)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = SFTTrainer(
            model=model,
            args=arguments(SFTConfig, job, params, folder, eval_packing=False, **options),
            train_dataset=rows,
            eval_dataset=dict(measured) or None,
            processing_class=tokenizer,
            peft_config=peft_config(params),
        )
        if not len(trainer.train_dataset):
            raise Refused(f"no row has anything to learn in {params.max_length} tokens", fix="raise --max-length")
        curves = follow(trainer, report)
        before = _losses(trainer, measured)
        train(trainer, job, stage=stage)
        after = _losses(trainer, measured)
        facts = facts_of(trainer, curves, rows=len(rows))
    for name, loss in before.items():
        facts |= {f"{name}_rows": len(measured[name]), f"{name}_loss_before": loss, f"{name}_loss_after": after[name]}
    return trainer.model, facts


def _losses(trainer: Any, names: Mapping[str, Any]) -> dict[str, float]:
    """The mean loss of a token of each dataset that is held out, in nats."""
    import torch

    losses = {}
    trainer.model.eval()
    for name in names:
        total, tokens = 0.0, 0
        with torch.no_grad():
            for batch in _ranks.held_out_batches(trainer, trainer.eval_dataset[name]):
                # What is predicted is the next token, so the first of a row is not.
                count = int((batch["labels"][:, 1:] != -100).sum())
                total, tokens = total + float(trainer.model(**batch).loss) * count, tokens + count
        lost, counted = _ranks.summed(total, tokens)
        losses[name] = round(lost / counted, 6) if counted and math.isfinite(lost) else 0.0
    return losses
