"""Let a model criticize and revise its own answers by principles, and train it on that."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from mreg.registry.errors import MregError, Refused
from mreg.registry.transform import Facts, FileText, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._dialogue import Answer, Speaker, Turn, assistant, revise, spelled
from mreg.transforms._rows import CHAT, PROMPTED, check_rows, format_of
from mreg.transforms._supervised import SupervisedParams, check_supervised, load_causal, split, supervise
from mreg.transforms._training import Meter, arguments, facts_of, follow, has_tokenizer, read_rows
from mreg.transforms._tuning import PROMPTS, Kind, freeze, peft_config, save_trained
from pydantic import Field, model_validator

FORMATS = (PROMPTED, CHAT)
WATCHED = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


class NothingRevised(MregError):
    """The model's revisions are all empty, or all what it had drafted."""

    exit_code = 6


class ConstituteParams(SupervisedParams):
    """The options of `constitute`."""

    principles: Annotated[str, FileText()] = Field(min_length=1)
    """The constitution: one principle a line; empty lines and those that begin with # are left out."""

    train: Literal["sft", "dpo", "both"] = "both"
    """sft: on the revisions; dpo: to prefer them to the drafts (Rafailov et al. 2023); both: one after the other."""

    tuning: Kind = "lora"
    """What is trained: every weight (full), or an adapter of that kind beside the weights."""

    num_revisions: int = Field(1, ge=1)
    """How often an answer is criticized and revised, each time by a principle drawn at random."""

    critique_request: str = (
        "Here is a principle for good answers: {principle}\nPoint out, briefly and concretely, how your last answer "
        "falls short of it."
    )
    """How a critique is asked for; {principle} stands for the principle."""

    revision_request: str = "Write your last answer again so that it follows the principle. Write the new answer only."
    """How a revision is asked for; {principle} stands for the principle."""

    max_new_tokens: int = Field(256, ge=1)
    """The longest draft, critique or revision."""

    temperature: float = Field(0.7, ge=0)
    """At which they are drawn; 0 takes the likeliest token each time."""

    generation_batch_size: int = Field(8, ge=1)
    """Conversations that are continued at once."""

    beta: float = Field(0.1, gt=0)
    """dpo: how much is lost by leaving the model as it was."""

    dpo_learning_rate: float | None = Field(None, gt=0)
    """dpo: the peak of the schedule; unless said, 1e-6 where every weight is trained and 1e-5 for adapters."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_dpo(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        rate = given.get("dpo_learning_rate")
        default = 1e-6 if cls.tuning_of(given) == "full" else 1e-5
        return {**given, "dpo_learning_rate": default if rate is None else rate}

    @model_validator(mode="after")
    def _fit_together(self) -> ConstituteParams:
        if not self.constitution:
            raise ValueError("principles holds no principle: write one a line")
        if "{principle}" not in self.critique_request:
            raise ValueError("critique_request has no {principle} in it")
        if self.train != "sft" and self.tuning in PROMPTS | {"pissa"}:
            raise ValueError(f"{self.tuning} goes with train sft only")
        return self

    @property
    def constitution(self) -> list[str]:
        """The principles."""
        lines = (line.strip() for line in self.principles.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def check(params: ConstituteParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse models that write no text, and rows that ask nothing."""
    source = materials[0]
    for material in materials:
        _check.complete_model(material, "trained")
        _check.causal_model(material)
        has_tokenizer(material)
    _check.tunable(source, params)
    check_supervised(params, rows)
    if check_rows(source, rows, FORMATS) == CHAT:
        for dataset in rows:
            for number, row in enumerate(dataset, start=1):
                if not question(row["messages"]):
                    raise Refused(
                        f"row {number} of {dataset.name} has messages without a question",
                        fix="messages end with a turn of the user, or with the assistant's answer to one",
                    )


def question(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation up to the last turn that is not the assistant's."""
    asked = list(turns)
    while asked and asked[-1]["role"] == "assistant":
        asked.pop()
    return asked


def run(job: Job, params: ConstituteParams, report: Report) -> Facts:
    """Draft, criticize, revise, train; the same job gives the same weights on the same machine.

    Everything that was written is kept as a dataset, and so is what was trained on.
    """
    from transformers import AutoTokenizer

    source = job.path("source")
    report(Progress(0, 0, "loading"))
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    model = load_causal(source, params).to(job.device)
    answers = _converse(job, params, model, tokenizer, report)
    made = _keep(job, answers, chat=bool(tokenizer.chat_template))
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    facts: Facts = {
        "prompts": len(answers),
        "revised": len(made["preferences"]),
        "empty": len(answers) - len(made["revisions"]),
    }
    stages: dict[str, Facts] = {}
    if params.train in ("sft", "both"):
        model, stages["sft"] = _imitate(job, params, model, tokenizer, made["revisions"], report)
    if params.train in ("dpo", "both"):
        model, stages["dpo"] = _prefer(job, params, model, tokenizer, made["preferences"], report)
    return {**facts, **joined(stages), **save_trained(job, params, model, report)}


def joined(stages: Mapping[str, Facts]) -> Facts:
    """The facts of the last stage, with steps, tokens and operations of all; those of the others by their name."""
    *others, last = stages
    facts = {f"{name}_{key}": value for name in others for key, value in stages[name].items()}
    sums = {key: sum(stage[key] for stage in stages.values()) for key in ("steps", "tokens", "flops")}
    return {**facts, **stages[last], **sums}


def _converse(job: Job, params: ConstituteParams, model: Any, tokenizer: Any, report: Report) -> list[Answer]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    columns = format_of(job.datasets[0].name, job.datasets[0].columns, FORMATS)
    rows = read_rows(job, columns)
    answers = [Answer(row["prompt"] if columns == PROMPTED else question(row["messages"])) for row in rows]
    batches = -(-len(answers) // params.generation_batch_size) * (1 + 2 * params.num_revisions)
    done = 0

    def told() -> None:
        nonlocal done
        report(Progress(done := done + 1, batches, "writing"))

    def speaker(model: Any, tokenizer: Any) -> Speaker:
        return Speaker(
            model,
            tokenizer,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            batch=params.generation_batch_size,
            told=told,
        )

    itself = critic = speaker(model, tokenizer)
    for folder in job.paths("critic"):
        other: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=params.dtype, **SAFE)
        critic = speaker(other.to(job.device), AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    revise(
        answers,
        itself.say,
        critic.say,
        principles=params.constitution,
        rounds=params.num_revisions,
        critique_request=params.critique_request,
        revision_request=params.revision_request,
        draw=random.Random(job.seed),  # noqa: S311 no secret hangs on it
    )
    return answers


def _keep(job: Job, answers: Iterable[Answer], *, chat: bool) -> dict[str, list[dict[str, Any]]]:
    """Write down what was said, and the rows to train on. Raises NothingRevised."""
    told = [asdict(answer) for answer in answers]
    revised = [answer for answer in answers if answer.last]

    def said(text: str) -> Any:
        return [assistant(text)] if chat else f" {text}"

    def asked(answer: Answer) -> Any:
        return answer.turns() if chat else f"{spelled(answer.turns())}\n\nAssistant:"

    made = {
        "drafts-and-revisions": told,
        "revisions": [{"prompt": asked(each), "completion": said(each.last)} for each in revised],
        "preferences": [
            {"prompt": asked(each), "chosen": said(each.last), "rejected": said(each.draft)}
            for each in revised
            if each.draft and each.last != each.draft
        ],
    }
    job.made.mkdir(exist_ok=True)
    for name, rows in made.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if text:
            (job.made / f"{name}.jsonl").write_text(text, encoding="utf-8")
    if not made["preferences"]:
        raise NothingRevised(
            "no revision says anything else than its draft",
            fix="change the requests or the temperature, or take a critic",
        )
    return made


def _imitate(
    job: Job, params: ConstituteParams, model: Any, tokenizer: Any, rows: list[dict[str, Any]], report: Report
) -> tuple[Any, Facts]:
    from datasets import Dataset

    learnt, held = split(Dataset.from_list(rows), params.eval_fraction, job.seed)
    measured = {} if held is None else {"eval": held}
    return supervise(job, params, report, model=model, tokenizer=tokenizer, rows=learnt, measured=measured, stage="sft")


def _prefer(
    job: Job, params: ConstituteParams, model: Any, tokenizer: Any, rows: list[dict[str, Any]], report: Report
) -> tuple[Any, Facts]:
    """Direct preference optimization against the model as it is now."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    reference: Any = None
    if params.tuning == "full":
        reference = load_causal(job.path("source"), params)
        reference.load_state_dict(model.state_dict())
    freeze(model, params)
    rate = {"learning_rate": params.dpo_learning_rate}
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = DPOTrainer(
            model=model,
            ref_model=reference,
            args=arguments(DPOConfig, job, params, folder, beta=params.beta, **rate),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            # An adapter that has learnt already is copied by TRL, and the copy is the reference.
            peft_config=None if params.train == "both" else peft_config(params),
        )
        meters = [Meter(each, tokenizer.pad_token_id) for each in (trainer.model, reference) if each is not None]
        curves = follow(trainer, report, WATCHED)
        train(trainer, job, meters=meters, stage="dpo")
    return trainer.model, facts_of(trainer, curves, rows=len(rows), meters=meters)


TRANSFORM = Transform(
    params=ConstituteParams,
    inputs=(
        Input("source", "the model to train"),
        Input("critic", "a model to write the critiques instead of the source", optional=True),
    ),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
)
