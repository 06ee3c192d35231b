"""Train a model on text, on prompts and completions, on chats, or to tell classes apart."""

from __future__ import annotations

from typing import Any, Literal

from mreg.registry.transform import Facts, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check, _lengths, _rows
from mreg.transforms._classify import LABELS, check_labelled, classify
from mreg.transforms._supervised import SupervisedParams, check_supervised, load_causal, split, supervise
from mreg.transforms._training import has_tokenizer, read_rows
from mreg.transforms._tuning import PROMPTS, AnyKind, save_trained
from pydantic import model_validator

FORMATS = (_rows.TEXT, _rows.COMPLETED, _rows.CHAT)


class FinetuneParams(SupervisedParams):
    """The options of `finetune`, by the names that TRL and PEFT give them."""

    method: AnyKind = "lora"
    """What is trained: every weight (full), or an adapter of that kind beside the weights (adapter: bottlenecks)."""

    task: Literal["causal-lm", "sequence-classification", "token-classification"] = "causal-lm"
    """What the model learns: to go on writing, to label a text, or to label each of its words."""

    @model_validator(mode="after")
    def _fit_together(self) -> FinetuneParams:
        if self.task != "causal-lm" and self.method in PROMPTS | {"qlora"}:
            raise ValueError(f"{self.method} is for causal-lm: use another method with {self.task}")
        return self


def check(params: FinetuneParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be trained, a model without a tokenizer, and rows that have none of the formats."""
    (source,) = materials
    _check.tunable(source, params)
    has_tokenizer(source)
    check_supervised(params, rows)
    if params.task in LABELS:
        check_labelled(params.task, source, rows)
        columns: _rows.Format = LABELS[params.task][:1]
    else:
        _check.causal_model(source)
        columns = _rows.check_rows(source, rows, FORMATS)
    _lengths.check_lengths(source, rows, columns, params.max_length)


def run(job: Job, params: FinetuneParams, report: Report) -> Facts:
    """Supervised fine-tuning by TRL; the same job gives the same weights on the same machine."""
    from transformers import AutoTokenizer

    report(Progress(0, params.max_steps or 0, "loading"))
    if params.task in LABELS:
        return classify(job, params, params.task, report)
    source = job.path("source")
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    rows = read_rows(job, _rows.format_of(job.datasets[0].name, job.datasets[0].columns, FORMATS))
    rows, held = split(rows, params.eval_fraction, job.seed)
    model, facts = supervise(
        job,
        params,
        report,
        model=load_causal(source, params),
        tokenizer=tokenizer,
        rows=rows,
        measured={} if held is None else {"eval": held},
    )
    return {**facts, **save_trained(job, params, model, report)}


TRANSFORM = Transform(
    params=FinetuneParams,
    inputs=(Input("source", "the model to train"),),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
    distributed=True,
)
