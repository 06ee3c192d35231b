"""Train a student to predict what a teacher predicts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check, _lengths
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._distilling import gkd_trainer, kl_to_teacher, match_trainer, targets
from mreg.transforms._folder import ModelFolder
from mreg.transforms._layers import count_layers, drop_layers, shortened, spread
from mreg.transforms._rows import CHAT, COMPLETED, PROMPTED, TEXT, Format, check_rows, format_of
from mreg.transforms._training import Meter, facts_of, follow, has_tokenizer, read_rows, save_whole
from mreg.transforms._tuning import PROMPTS, Kind, TuningParams, freeze, save_trained
from pydantic import Field, model_validator

Method = Literal["logit", "hidden", "gkd"]

FORMATS: Mapping[Method, tuple[Format, ...]] = {
    "logit": (CHAT, COMPLETED, TEXT),
    "hidden": (CHAT, COMPLETED, TEXT),
    "gkd": (CHAT, COMPLETED, PROMPTED),
}
USED_BY: Mapping[str, tuple[Method, ...]] = {
    "alpha": ("logit", "hidden"),
    "hidden_loss": ("hidden",),
    "hidden_weight": ("hidden",),
    "teacher_layers": ("hidden",),
    "lmbda": ("gkd",),
    "beta": ("gkd",),
    "seq_kd": ("gkd",),
    "max_new_tokens": ("gkd",),
}
TEMPERATURES: Mapping[str, float] = {"gkd": 0.9}


class DistillParams(TuningParams):
    """The options of `distill`, by the names that TRL and the papers give them."""

    method: Method = "logit"
    """logit: the teacher's distribution (Hinton et al. 2015); hidden: its hidden states too (Jiao et al. 2020); gkd: on
    what the student says itself (Agarwal et al. 2024)."""

    tuning: Kind = "full"
    """What of the student is trained: every weight, or a kind of adapter."""

    keep_layers: tuple[int, ...] = ()
    """Begin with these layers of the source only, counted from 0."""

    num_hidden_layers: int | None = Field(None, ge=1)
    """Begin with so many layers of the source, evenly spread, the first and the last among them (Sanh et al. 2019)."""

    temperature: float | None = Field(None, gt=0)
    """logit and hidden: both distributions are softened by it, 2 unless said. gkd: completions are drawn at it, 0.9."""

    alpha: float = Field(0.5, ge=0, le=1)
    """The share of the teacher in the loss; the rest is the cross-entropy of the rows."""

    hidden_loss: Literal["mse", "cosine"] = "mse"
    """hidden: how far apart hidden states are."""

    hidden_weight: float = Field(1.0, gt=0)
    """hidden: the weight of that distance, added to the loss."""

    teacher_layers: tuple[int, ...] = ()
    """hidden: the teacher's layer that each of the student's is held to, counted from 0; evenly spread unless said."""

    lmbda: float = Field(0.5, ge=0, le=1)
    """gkd: the share of batches whose completions the student writes."""

    beta: float = Field(0.5, ge=0, le=1)
    """gkd: between the forward Kullback-Leibler divergence at 0 and the reverse one at 1."""

    seq_kd: bool = False
    """gkd: the teacher writes the completions of the other batches (Kim and Rush 2016)."""

    max_new_tokens: int = Field(128, ge=1)
    """gkd: the longest completion that is written."""

    @model_validator(mode="before")
    @classmethod
    def _soften(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        chosen = given.get("temperature")
        return {**given, "temperature": TEMPERATURES.get(given.get("method", ""), 2.0) if chosen is None else chosen}

    @model_validator(mode="after")
    def _fit_the_method(self) -> DistillParams:
        for name, methods in USED_BY.items():
            if self.method not in methods and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with {self.method}")
        if list(self.keep_layers) != sorted({*self.keep_layers}) or any(layer < 0 for layer in self.keep_layers):
            raise ValueError("keep_layers names layers in rising order")
        if self.keep_layers and self.num_hidden_layers is not None:
            raise ValueError("keep_layers and num_hidden_layers say the same thing")
        if self.drops_layers and self.tuning != "full":
            raise ValueError("layers are dropped with tuning full: an adapter would fit a model that is no version")
        if self.method == "gkd" and self.tuning in PROMPTS:
            raise ValueError(f"gkd cannot train {self.tuning}")
        return self

    @property
    def drops_layers(self) -> bool:
        """Whether the student is made by dropping layers."""
        return bool(self.keep_layers) or self.num_hidden_layers is not None

    @property
    def formats(self) -> tuple[Format, ...]:
        """What rows may look like; prompts alone do where every completion is written by one of the models."""
        written = self.lmbda == 1 or self.seq_kd
        return tuple(each for each in FORMATS[self.method] if each != PROMPTED or written)


def check(params: DistillParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse a teacher of another vocabulary, layers that are not there, and rows that the method cannot use."""
    source, teacher = materials
    for material, verb in ((source, "trained"), (teacher, "distilled")):
        _check.complete_model(material, verb)
        _check.causal_model(material)
    if not params.drops_layers:
        _check.tunable(source, params)
    has_tokenizer(source)
    _check.same_vocabulary(source, teacher, fix="give a teacher that shares the student's tokenizer")
    sizes = [material.config.get("vocab_size") for material in (source, teacher)]
    if params.method == "gkd" and sizes[0] != sizes[1]:
        raise Refused(
            f"{source.name} predicts {sizes[0]} tokens and {teacher.name} {sizes[1]}", fix="use method logit or hidden"
        )
    if source.name == teacher.name and not params.drops_layers:
        raise Refused(f"{source.name} is its own teacher", fix="drop layers of it, or name another teacher")
    if params.drops_layers or params.teacher_layers:
        layers = count_layers(source.name, source.config, source.tensors)
        if params.drops_layers:
            keep = kept(params, layers, source.name)
            shortened(source.config, keep, layers)
            layers = len(keep)
        targets(params.teacher_layers, layers, count_layers(teacher.name, teacher.config, teacher.tensors))
    columns = check_rows(source, rows, params.formats)
    if columns == CHAT and params.method == "gkd":
        _check_last_turns(rows)
    for material in materials:
        _lengths.check_lengths(material, rows, columns, params.max_length)


def _check_last_turns(rows: Sequence[Rows]) -> None:
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            if len(row["messages"]) < 2 or row["messages"][-1]["role"] != "assistant":
                raise Refused(
                    f"row {number} of {dataset.name} has messages that end without an answer",
                    fix="gkd takes the last turn of the assistant as the completion",
                )


def kept(params: DistillParams, layers: int, name: str) -> tuple[int, ...]:
    """Which of the source's layers the student begins with. Raises Refused."""
    if params.num_hidden_layers is not None:
        return spread(params.num_hidden_layers, layers, name)
    if params.keep_layers and params.keep_layers[-1] >= layers:
        raise Refused(f"{name} has no layer {params.keep_layers[-1]}", fix=f"its layers are 0 to {layers - 1}")
    return params.keep_layers or tuple(range(layers))


def run(job: Job, params: DistillParams, report: Report) -> Facts:
    """Train on the job's rows; the same job gives the same weights on the same machine."""
    with tempfile.TemporaryDirectory() as folder:
        source = _student(job, params, Path(folder), report)
        return _train(job, params, source, report)


def _student(job: Job, params: DistillParams, folder: Path, report: Report) -> Path:
    """The folder that training begins with."""
    if not params.drops_layers:
        return job.path("source")
    with ModelFolder(job.path("source")) as source:
        drop_layers(source, kept(params, count_layers("source", source.config, source.slots), "source"), folder, report)
    return folder


def _train(job: Job, params: DistillParams, source: Path, report: Report) -> Facts:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report(Progress(0, params.max_steps or 0, "loading"))
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    student: Any = AutoModelForCausalLM.from_pretrained(source, dtype=params.dtype, **SAFE)
    teacher: Any = AutoModelForCausalLM.from_pretrained(job.path("teacher"), dtype=params.dtype, **SAFE)
    teacher.to(job.device).eval().requires_grad_(False)
    freeze(student, params)
    dataset = read_rows(job, format_of("the data", job.datasets[0].columns, params.formats))
    make: Callable[..., Any] = gkd_trainer if params.method == "gkd" else match_trainer
    depths = [model.config.num_hidden_layers for model in (student, teacher)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(job, params, folder, student=student, teacher=teacher, tokenizer=tokenizer, dataset=dataset)
        before = kl_to_teacher(trainer, teacher, job.seed)
        meters = [Meter(model, tokenizer.pad_token_id) for model in (trainer.model, teacher)]
        parts = ("loss", "kl", "cross_entropy", "hidden")
        curves = follow(trainer, report, {part: part for part in parts})
        train(trainer, job, meters=meters, besides=getattr(trainer, "maps", None))
        facts = facts_of(trainer, curves, rows=len(dataset), meters=meters)
        after = kl_to_teacher(trainer, teacher, job.seed)
    if params.tuning == "full":
        facts |= save_whole(job, trainer.model, report, like=source)
    else:
        facts |= save_trained(job, params, trainer.model, report)
    return {
        **facts,
        "kl_to_teacher_before": before,
        "kl_to_teacher": after,
        "teacher_parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        "layers": depths[0],
        "teacher_layers": depths[1],
    }


TRANSFORM = Transform(
    params=DistillParams,
    inputs=(Input("source", "the student"), Input("teacher", "the model to learn from")),
    datasets="required",
    determinism="same-machine",
    version=2,
    run=run,
    check=check,
    resumes=True,
)
