"""Train a reward model: it gives a number to what was written, higher for what is preferred."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import Any, ClassVar

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check, _lengths, _ranks, _rows
from mreg.transforms._adapter import labels_of, save_adapter
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._folder import change_config
from mreg.transforms._training import Meter, arguments, facts_of, follow, has_tokenizer, read_rows, save_whole
from mreg.transforms._tuning import PROMPTS, Kind, TuningParams, freeze, peft_config
from pydantic import Field, model_validator

FORMATS = (_rows.PREFERRED, _rows.PAIRED)
JUDGED = 1000
"""Rows that the finished model is asked about."""


class RewardParams(TuningParams):
    """The options of `reward`, by the names that TRL and PEFT give them."""

    LEARNING_RATES: ClassVar[Mapping[str, float]] = {"full": 1e-4, "adapter": 1e-4}

    tuning: Kind = "full"
    """What is trained: every weight (full), or an adapter of that kind and the new head beside the weights."""

    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; 1e-4 unless said."""

    max_length: int = Field(1024, ge=2)
    """Pairs of which one half has more tokens are left out."""

    center_rewards_coefficient: float | None = Field(None, ge=0)
    """How strongly rewards are held around zero (Eisenstein et al. 2023)."""

    @model_validator(mode="after")
    def _has_a_last_token(self) -> RewardParams:
        if self.tuning in PROMPTS:
            raise ValueError(f"{self.tuning} cannot train a reward model, which reads its number off the last token")
        return self


def check(params: RewardParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be trained, and rows that prefer nothing."""
    (source,) = materials
    _check.tunable(source, params)
    has_tokenizer(source)
    columns = _rows.check_rows(source, rows, FORMATS)
    _rows.check_pairs(rows)
    _lengths.check_lengths(source, rows, columns, params.max_length)


def run(job: Job, params: RewardParams, report: Report) -> Facts:
    """A Bradley-Terry reward model by TRL, with the loss -log sigmoid(r(chosen) - r(rejected)).

    Its head takes the place of the one that writes text: the output is a sequence classifier with one label, or the
    adapter of one.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    source = job.path("source")
    report(Progress(0, params.max_steps or 0, "loading"))
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    dataset = read_rows(job, _rows.format_of(job.datasets[0].name, job.datasets[0].columns, FORMATS))
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=params.dtype, **SAFE)
    freeze(model, params)
    peft = peft_config(params, "SEQ_CLS")
    meter = Meter(model, tokenizer.pad_token_id)
    with tempfile.TemporaryDirectory() as folder:
        more = {"center_rewards_coefficient": params.center_rewards_coefficient}
        trainer: Any = RewardTrainer(
            model=model,
            args=arguments(RewardConfig, job, params, folder, **more),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft,
        )
        if not len(trainer.train_dataset):
            raise Refused(f"no pair fits into {params.max_length} tokens", fix="raise --max-length")
        curves = follow(trainer, report, {"loss": "loss", "accuracy": "accuracy", "margin": "margin"})
        train(trainer, job, meters=[meter])
        facts = facts_of(trainer, curves, rows=len(dataset), meters=[meter]) | _judge(trainer)
        _ranks.leave_to_first()
        if peft is None:
            saved = save_whole(job, trainer.model, report, keep_rest=False)
            padding = trainer.model.config.get_text_config().pad_token_id
            labels = labels_of(trainer.model.config)
            change_config(source, job.output, architectures=[type(model).__name__], pad_token_id=padding, **labels)
        else:
            save_adapter(trainer.model, job.output)
            saved = {}
        return {**facts, "too_long": len(dataset) - len(trainer.train_dataset), **saved}


def _judge(trainer: Any) -> Facts:
    """How many of the first pairs the finished model ranks rightly, and by how much on average."""
    import torch

    margins: list[float] = []
    pairs = trainer.train_dataset.select(range(min(JUDGED, len(trainer.train_dataset))))
    trainer.model.eval()
    with torch.no_grad():
        for batch in _ranks.held_out_batches(trainer, pairs):
            chosen, rejected = trainer.model(**batch).logits.squeeze(-1).chunk(2)
            margins += (chosen - rejected).tolist()
    judged, ranked, margin = _ranks.summed(len(margins), sum(margin > 0 for margin in margins), sum(margins))
    return {"judged": int(judged), "accuracy": round(ranked / judged, 6), "margin": round(margin / judged, 6)}


TRANSFORM = Transform(
    params=RewardParams,
    inputs=(Input("source", "the model to make a reward model of"),),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
    distributed=True,
)
