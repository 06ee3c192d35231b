"""Train a language model on the rewards of what it writes itself: GRPO, RLOO or online DPO."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import (
    BadParams,
    Facts,
    FileText,
    Input,
    Job,
    Material,
    Progress,
    Report,
    Rows,
    Transform,
)
from mreg.transforms import _check, _lengths, _reward_function, _rows
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._training import Meter, arguments, facts_of, follow, has_tokenizer, read_rows
from mreg.transforms._tuning import Kind, TuningParams, freeze, peft_config, save_trained
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from datasets import Dataset

Loss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo", "sigmoid", "ipo"]

COMMON = frozenset({"beta", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "reward_weights"})


@dataclass(frozen=True)
class Method:
    """A trainer of TRL: where it is, which options it uses, its defaults, and under which names it logs."""

    module: str
    name: str
    uses: frozenset[str]
    losses: tuple[Loss, ...]
    defaults: Mapping[str, Any]
    watched: Mapping[str, str]
    length: str = "max_completion_length"


_GROUPED = frozenset({"num_generations", "num_iterations", "epsilon", "epsilon_high", "mask_truncated_completions"})
_LOGGED = {"reward": "reward", "loss": "loss", "kl": "kl", "completions/mean_length": "length"}

METHODS: Mapping[str, Method] = {
    "grpo": Method(
        "trl.trainer.grpo",
        "GRPO",
        _GROUPED | {"loss_type", "scale_rewards", "importance_sampling_level", "multi_objective_aggregation"},
        ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
        {"loss_type": "dapo", "num_generations": 8, "beta": 0.0, "temperature": 1.0},
        _LOGGED,
    ),
    "rloo": Method(
        "trl.trainer.rloo",
        "RLOO",
        _GROUPED | {"normalize_advantages", "reward_clip_range"},
        (),
        {"num_generations": 2, "beta": 0.05, "temperature": 1.0},
        _LOGGED,
    ),
    "online-dpo": Method(
        "trl.experimental.online_dpo.online_dpo",
        "OnlineDPO",
        frozenset({"loss_type", "missing_eos_penalty"}),
        ("sigmoid", "ipo"),
        {"loss_type": "sigmoid", "beta": 0.1, "temperature": 0.9},
        {"objective/scores": "reward", "loss": "loss", "objective/kl": "kl", "rewards/margins": "margin"},
        length="max_new_tokens",
    ),
}
OPTIONS = frozenset(name for method in METHODS.values() for name in method.uses)


class ReinforceParams(TuningParams):
    """The options of `reinforce`, by the names that TRL and PEFT give them."""

    LEARNING_RATES: ClassVar[Mapping[str, float]] = {"full": 1e-6, "adapter": 1e-5}

    method: Literal["grpo", "rloo", "online-dpo"] = "grpo"
    """How rewards are learnt from: within groups (GRPO), against the others (RLOO), or in pairs (online DPO)."""

    tuning: Kind = "lora"
    """What is trained: every weight (full), or an adapter of that kind beside the weights."""

    reward_function: Annotated[str | None, FileText()] = None
    """Python with one public function, `def reward(prompts, completions, **columns)`, that returns a number for each
    completion; `columns` are those of the rows. It is kept in the log, and run in the process that trains."""

    reward_weights: tuple[float, ...] = ()
    """The weight of each reward: those of the models in their order, then that of the function. 1 unless said."""

    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; unless said, 1e-6 where every weight is trained and 1e-5 for adapters."""

    per_device_train_batch_size: int = Field(8, ge=1)
    """Completions that are learnt from at once; for online-dpo prompts, with two completions each."""

    max_length: int = Field(1024, ge=2)
    """Tokens of a prompt and its completion; rows with a longer prompt are left out."""

    max_completion_length: int = Field(256, ge=1)
    """Tokens at which a completion is cut."""

    num_generations: int | None = Field(None, ge=2)
    """grpo and rloo: completions for each prompt; 8 for grpo and 2 for rloo unless said."""

    temperature: float | None = Field(None, gt=0)
    """The temperature of sampling; 1 unless said, for online-dpo 0.9."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together."""

    top_k: int = Field(0, ge=0)
    """Sample from so many of the likeliest tokens; 0 for all."""

    min_p: float | None = Field(None, ge=0, le=1)
    """Sample from the tokens that have this share of the likeliest one's probability."""

    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens that were used become less likely."""

    loss_type: Loss | None = None
    """grpo and online-dpo: the loss, dapo or sigmoid unless said. dr_grpo is Dr. GRPO, best with scale_rewards none."""

    beta: float | None = Field(None, ge=0)
    """How much is lost by leaving the model that it started from; unless said, 0 for grpo, 0.05 for rloo and 0.1."""

    num_iterations: int = Field(1, ge=1)
    """grpo and rloo: how often a completion is learnt from."""

    epsilon: float = Field(0.2, gt=0)
    """grpo and rloo: how far the probability of a token may move for one completion."""

    epsilon_high: float | None = Field(None, gt=0)
    """grpo and rloo: the same upwards; as epsilon unless said."""

    mask_truncated_completions: bool = False
    """grpo and rloo: leave completions that were cut out of the loss."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """grpo: rewards are divided by the standard deviation of their group, of the batch, or not at all."""

    importance_sampling_level: Literal["token", "sequence"] = "token"
    """grpo: what is reweighted; sequence is GSPO."""

    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """grpo: how several rewards become one."""

    normalize_advantages: bool = False
    """rloo: bring the advantages of a batch to mean 0 and deviation 1."""

    reward_clip_range: tuple[float, float] | None = None
    """rloo: rewards are cut to this range."""

    missing_eos_penalty: float | None = Field(None, ge=0)
    """online-dpo: what is taken off the reward of a completion without an end."""

    @property
    def step(self) -> int:
        """Completions that one optimizer step learns from; for online-dpo, prompts."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @model_validator(mode="before")
    @classmethod
    def _resolve_method(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        method = METHODS.get(str(given.get("method", "grpo")))
        defaults = method.defaults if method else {}
        return {**given, **{name: value for name, value in defaults.items() if given.get(name) is None}}

    @model_validator(mode="after")
    def _fit_together(self) -> ReinforceParams:
        method = METHODS[self.method]
        for name in sorted(OPTIONS - method.uses):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with {self.method}")
        if self.loss_type and self.loss_type not in method.losses:
            raise ValueError(f"{self.method} has no loss {self.loss_type}, only {', '.join(method.losses)}")
        if self.max_completion_length >= self.max_length:
            raise ValueError("max_completion_length must leave room for a prompt in max_length")
        if self.num_generations and self.step % self.num_generations:
            raise ValueError(
                f"the {self.step} completions of a step, per_device_train_batch_size times "
                f"gradient_accumulation_steps, are not a multiple of the {self.num_generations} num_generations"
            )
        if self.method == "online-dpo" and self.tuning in ("prompt", "p-tuning"):
            raise ValueError(f"online-dpo cannot train {self.tuning}: use grpo or rloo, or another tuning")
        if self.tuning == "pissa" and self.beta:
            raise ValueError("pissa takes its start out of the base, so beta has nothing to measure from: use lora")
        return self


def check(params: ReinforceParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be trained, what gives no reward, and rows without a prompt."""
    source, *rewards = materials
    _check.tunable(source, params)
    has_tokenizer(source)
    for reward in rewards:
        _is_reward_model(reward)
    sources = len(rewards) + (params.reward_function is not None)
    if not sources:
        raise BadParams(
            "reinforce needs rewards",
            fix="name a reward model with --with reward=REV, or a Python file with --reward-function",
        )
    if params.reward_weights and len(params.reward_weights) != sources:
        raise BadParams(f"{len(params.reward_weights)} reward_weights for {sources} rewards", fix="give one for each")
    _rows.check_rows(source, rows, (_rows.PROMPTED,))
    if params.reward_function is not None:
        function = _reward_function.signature(params.reward_function)
        for dataset in rows:
            for column in function.columns:
                if column not in dataset.columns:
                    raise Refused(
                        f"{function.name} asks for {column}, and {dataset.name} has no such column",
                        fix=f"its columns are {', '.join(dataset.columns)}",
                    )
        _rows.check_kinds(rows, _reward_function.columns_for(dict.fromkeys(chain(*(each.columns for each in rows)))))
    _check_prompts(params, source, rows)
    if any(isinstance(row["prompt"], list) for dataset in rows[:1] for row in dataset):
        for reward in rewards:
            if not _rows.has_chat_template(reward):
                raise Refused(f"{reward.name} has no chat template for messages", fix="give prompts as text")


def _check_prompts(params: ReinforceParams, source: Material, rows: Sequence[Rows]) -> None:
    """Refuse too few prompts, or too few that fit, and those that leave no room in the model for a completion."""
    count, positions = _lengths.counter(source), _lengths.positions_of(source.config)
    room = params.max_length - params.max_completion_length
    fitting, longest, place = 0, -1, ""
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            tokens = 0 if count is None else _lengths.length(row, _rows.PROMPTED, count)
            if tokens > room:
                continue
            fitting += 1
            if tokens > longest:
                longest, place = tokens, f"row {number} of {dataset.name}"
    if not fitting:
        raise Refused(f"every prompt has more than {room} tokens", fix="raise --max-length")
    _enough(min(fitting, params.max_rows or fitting), params)
    if positions is not None and longest + params.max_completion_length > positions:
        raise Refused(
            f"{place} has {longest} tokens, and {source.name} takes {positions} with the "
            f"{params.max_completion_length} of a completion",
            fix=f"lower --max-completion-length to {max(1, positions - longest)}, or give shorter prompts",
        )


def _enough(rows: int, params: ReinforceParams) -> None:
    """Refuse fewer prompts than one step takes, since TRL would then end without a step."""
    needed = params.step // (params.num_generations or params.step)
    if rows < needed:
        raise Refused(
            f"a step takes {needed} prompts with {params.num_generations} completions each, "
            f"and there are {rows} that fit",
            fix=f"set --per-device-train-batch-size {rows * (params.num_generations or 1)}, or give more rows",
        )


def _is_reward_model(material: Material) -> None:
    _check.complete_model(material, "a reward model")
    has_tokenizer(material)
    named = material.config.get("architectures") or ["nothing"]
    labels = len(material.config.get("id2label", {0: "", 1: ""}))
    if not named[0].endswith("ForSequenceClassification") or labels != 1:
        raise Refused(
            f"{material.name} is no reward model ({named[0]} with {labels} labels)",
            fix="make one: mreg apply reward --from REV --data pairs.jsonl",
        )


def run(job: Job, params: ReinforceParams, report: Report) -> Facts:
    """Reinforcement learning by TRL; the same job gives the same weights on the same machine.

    The losses of these methods hover about zero and say little: `reward` is what rises.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    method = METHODS[params.method]
    trainer_class = getattr(importlib.import_module(f"{method.module}_trainer"), f"{method.name}Trainer")
    config_class = getattr(importlib.import_module(f"{method.module}_config"), f"{method.name}Config")
    report(Progress(0, params.max_steps or 0, "loading"))
    source = job.path("source")
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    dataset = _prompts(job, params)
    fitting = _fitting(dataset, tokenizer, params.max_length - params.max_completion_length)
    _enough(len(fitting), params)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=params.dtype, **SAFE)
    freeze(model, params)
    rewards, readers = _rewards(job, params)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = trainer_class(
            model=model,
            reward_funcs=list(rewards),
            args=arguments(config_class, job, params, folder, **_options(params)),
            train_dataset=fitting,
            processing_class=tokenizer,
            reward_processing_classes=readers,
            peft_config=peft_config(params),
        )
        learning = [model for model in (trainer.model, trainer.ref_model) if model is not None]
        meters = [Meter(model, tokenizer.pad_token_id) for model in learning]
        meters += [Meter(model, reader.pad_token_id) for model, reader in zip(rewards, readers, strict=True) if reader]
        curves = follow(trainer, report, method.watched)
        train(trainer, job, meters=meters, period=params.num_iterations)
        saved = save_trained(job, params, trainer.model, report)
    facts = facts_of(trainer, curves, rows=len(dataset), meters=meters)
    return {**facts, "too_long": len(dataset) - len(fitting), "rewards": len(rewards), **saved}


def _prompts(job: Job, params: ReinforceParams) -> Dataset:
    """The rows, with the columns that the reward function may ask for."""
    held = dict.fromkeys(column for dataset in job.datasets for column in dataset.columns)
    return read_rows(job, ("prompt", *(_reward_function.columns_for(held) if params.reward_function else ())))


def _fitting(dataset: Dataset, tokenizer: Any, limit: int) -> Dataset:
    def fits(row: dict[str, Any]) -> bool:
        prompt = row["prompt"]
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(prompt).input_ids) <= limit

    fitting = dataset.filter(fits)
    if not len(fitting):
        raise Refused(f"every prompt has more than {limit} tokens", fix="raise --max-length")
    return fitting


def _rewards(job: Job, params: ReinforceParams) -> tuple[list[Any], list[Any]]:
    """What gives rewards, and for each its tokenizer, or None for the function."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rewards: list[Any] = []
    readers: list[Any] = []
    for folder in job.paths("reward"):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=params.dtype, **SAFE)
        rewards.append(model.eval())
        readers.append(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    if params.reward_function is not None:
        rewards.append(_reward_function.load(params.reward_function))
        readers.append(None)
    return rewards, readers


def _options(params: ReinforceParams) -> dict[str, Any]:
    """The options that the method uses, by the names of its config."""
    method = METHODS[params.method]
    options = {name: getattr(params, name) for name in method.uses | COMMON}
    options["reward_weights"] = list(params.reward_weights) or None
    options[method.length] = params.max_completion_length
    return options


TRANSFORM = Transform(
    params=ReinforceParams,
    inputs=(
        Input("source", "the model to train"),
        Input("reward", "a reward model, as the transform reward makes them", many=True, optional=True),
    ),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
)
