"""Teach a language model to answer: supervised training on chats, of which only the answers are learnt."""

from __future__ import annotations

from typing import Annotated, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, FileText, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _chat, _check, _lengths, _rows
from mreg.transforms._supervised import SupervisedParams, check_supervised, load_causal, split, supervise
from mreg.transforms._training import has_tokenizer, read_rows
from mreg.transforms._tuning import PROMPTS, AnyKind, save_trained
from pydantic import Field, model_validator

FORMATS = (_rows.CHAT, _rows.COMPLETED)
TEMPLATE = "chat_template.jinja"


class InstructParams(SupervisedParams):
    """The options of `instruct`, by the names that TRL and PEFT give them."""

    tuning: AnyKind = "lora"
    """What is trained: every weight (full), or an adapter of that kind beside the weights (adapter: bottlenecks)."""

    max_length: int = Field(1024, ge=2)
    """Tokens at which a conversation is cut; with packing, the length of what is packed."""

    assistant_only_loss: bool = True
    """Learn what the assistant says and nothing else."""

    packing: bool = False
    """Put several conversations into one sequence, each of which sees only itself."""

    chat_template: Annotated[str, FileText()] = ""
    """A file with the Jinja template that spells conversations instead of the model's own; it goes with the result."""

    builtin_template: bool = False
    """Spell conversations with a template of ours, which suits any tokenizer; it goes with the result."""

    system_prompt: str = ""
    """Put this before every conversation that has no system message."""

    @model_validator(mode="after")
    def _fit_together(self) -> InstructParams:
        if self.chat_template and self.builtin_template:
            raise ValueError("chat_template and builtin_template are two templates")
        if self.packing and self.tuning in PROMPTS:
            raise ValueError(f"packing does not go with {self.tuning}, which puts tokens before a sequence")
        return self

    @property
    def template(self) -> str:
        """The template that was asked for, empty for the model's own."""
        return _chat.BUILTIN if self.builtin_template else self.chat_template


def check(params: InstructParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse a model that has no way to spell a conversation, and rows in which nobody answers."""
    (source,) = materials
    _check.tunable(source, params)
    _check.causal_model(source)
    has_tokenizer(source)
    check_supervised(params, rows)
    template = params.template or _chat.template_of(source)
    if template is None:
        raise Refused(f"{source.name} has no chat template", fix="give one with --chat-template, or --builtin-template")
    if params.assistant_only_loss and not _chat.marks_the_assistant(template):
        raise Refused(
            "the chat template does not mark what the assistant says",
            fix="put {% generation %} and {% endgeneration %} around it and give the file with --chat-template, use "
            "--builtin-template, or learn everything with --no-assistant-only-loss",
        )
    columns = _rows.check_rows(source, rows, FORMATS, template=True)
    _lengths.check_lengths(source, rows, columns, params.max_length)
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            if not any(turn["role"] == "assistant" for turn in conversation(row, columns)):
                raise Refused(
                    f"row {number} of {dataset.name} has messages in which the assistant says nothing",
                    fix=_rows.told(FORMATS),
                )


def conversation(row: dict[str, Any], columns: _rows.Format, system_prompt: str = "") -> list[dict[str, Any]]:
    """The turns of a row; a prompt is what the user says, and a completion what the assistant does."""
    turns: list[dict[str, Any]] = []
    for column, role in zip(columns, ("user", "assistant"), strict=False):
        turns += row[column] if isinstance(row[column], list) else [{"role": role, "content": row[column].strip()}]
    if system_prompt and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system_prompt})
    return turns


def run(job: Job, params: InstructParams, report: Report) -> Facts:
    """Supervised fine-tuning on conversations by TRL; the same job gives the same weights on the same machine."""
    import datasets
    from transformers import AutoTokenizer

    report(Progress(0, params.max_steps or 0, "loading"))
    source = job.path("source")
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.chat_template = params.template or tokenizer.chat_template
    columns = _rows.format_of(job.datasets[0].name, job.datasets[0].columns, FORMATS)
    turns = [{"messages": conversation(row, columns, params.system_prompt)} for row in read_rows(job, columns)]
    rows, held = split(datasets.Dataset.from_list(turns), params.eval_fraction, job.seed)
    model, facts = supervise(
        job,
        params,
        report,
        model=load_causal(source, params),
        tokenizer=tokenizer,
        rows=rows,
        measured={} if held is None else {"eval": held},
        assistant_only_loss=params.assistant_only_loss,
        packing=params.packing,
    )
    saved = save_trained(job, params, model, report)
    if params.template:
        spelled = _chat.unmarked(params.template) if params.builtin_template else params.template
        (job.output / TEMPLATE).write_text(spelled, encoding="utf-8")
    return {**facts, **saved}


TRANSFORM = Transform(
    params=InstructParams,
    inputs=(Input("source", "the model to teach"),),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
    distributed=True,
)
