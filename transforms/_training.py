"""What every training has in common: its options, the trainer's arguments, the loss curve, and the facts at the end.

TRL and transformers do the training. Settled here is what they leave to chance or to this machine: seeds, dtype,
device, where files go, and what is reported of the run.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from mreg.registry.errors import MregError, Refused
from mreg.registry.runs.curves import facts_of as curves_facts
from mreg.registry.transform import Facts, Job, JobDataset, Material, Params, Progress, Report
from mreg.transforms import _ranks
from mreg.transforms._folder import ModelFolder, copy_rest, write_trained
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from datasets import Dataset

Curves = dict[str, list[tuple[int, float]]]
"""By name, what was measured at which step."""

LOSS: Mapping[str, str] = {"loss": "loss"}

TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}

Arguments = TypeVar("Arguments")


class Diverged(MregError):
    """The loss is no longer a number."""

    exit_code = 6


class TrainingParams(Params):
    """The options of every training, by the names that transformers gives them."""

    LEARNING_RATES: ClassVar[Mapping[str, float]] = {"full": 2e-5, "adapter": 2e-4}
    """The default peak for each way of tuning; `adapter` stands for those that have none of their own."""

    max_steps: int | None = Field(None, ge=1)
    """Stop after so many optimizer steps, whatever `num_train_epochs` says."""

    num_train_epochs: float = Field(1.0, gt=0)
    """How often the data is gone through."""

    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; unless said, 2e-5 where every weight is trained and 2e-4 for adapters."""

    per_device_train_batch_size: int = Field(4, ge=1)
    """Rows that are computed at once."""

    gradient_accumulation_steps: int = Field(1, ge=1)
    """Batches that make one optimizer step."""

    max_length: int = Field(512, ge=2)
    """Tokens at which a row is cut."""

    warmup_steps: int = Field(0, ge=0)
    """Steps in which the learning rate rises to its peak."""

    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    """How the learning rate falls after the peak."""

    weight_decay: float = Field(0.0, ge=0, lt=1)
    """Decoupled weight decay."""

    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""

    optim: Literal["adamw_torch", "sgd", "adafactor"] = "adamw_torch"
    """The optimizer."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What training computes in; the result has the dtype of the source."""

    max_rows: int | None = Field(None, ge=1)
    """Use the first so many rows of the data only."""

    shuffle: bool = False
    """Put the rows in an order that the seed gives, before `max_rows` are taken and any are held out."""

    @classmethod
    def tuning_of(cls, given: Mapping[str, Any]) -> str:
        """What is trained, for the default learning rate: `full` or a kind of adapter."""
        name = "tuning" if "tuning" in cls.model_fields else "method"
        default = cls.model_fields[name].default if name in cls.model_fields else "full"
        return str(given.get(name, default))

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # The event records what was used, so the default that hangs on another option is filled in here.
        rate = given.get("learning_rate")
        rates = cls.LEARNING_RATES
        default = rates.get(cls.tuning_of(given), rates["adapter"])
        return {**given, "learning_rate": default if rate is None else rate}


def arguments(kind: type[Arguments], job: Job, params: TrainingParams, folder: str, **more: Any) -> Arguments:
    """The trainer's arguments: those fields of `params` that it has, and what makes a run repeat itself."""
    fields = set(kind.__dataclass_fields__)  # type: ignore[attr-defined]  # transformers' arguments are dataclasses
    own = TrainingParams.model_fields.keys() - {"dtype", "max_steps", "max_rows", "shuffle"}
    chosen = {name: value for name, value in params.model_dump(include=own).items() if name in fields}
    settled: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": params.max_steps or -1,
        "seed": job.seed,
        "data_seed": job.seed,
        "use_cpu": job.device == "cpu",
        # TRL would otherwise train in bfloat16 behind our back; the dtype is that of the loaded model.
        "bf16": False,
        "gradient_checkpointing": False,
        "include_num_input_tokens_seen": "non_padding",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**{**chosen, **settled, **more})


def follow(trainer: Any, report: Report, watch: Mapping[str, str] = LOSS) -> Curves:
    """The curves of what the trainer logs, filled in while it runs; `watch` maps the trainer's names to ours.

    Ends the training where the loss is no number.
    """
    from transformers import TrainerCallback

    curves: Curves = {name: [] for name in watch.values()}

    def take(step: int, logs: Mapping[str, Any]) -> None:
        for theirs, ours in watch.items():
            if theirs in logs and math.isfinite(float(logs[theirs])):
                # Adding zero makes the negative zero of an empty loss a plain one.
                curves[ours].append((step, round(float(logs[theirs]), 6) + 0.0))

    class Follow(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control, kwargs
            # What was logged before the checkpoint that is gone on from.
            for logs in state.log_history:
                if "loss" in logs:
                    take(logs["step"], logs)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            del args, control
            logs = kwargs["logs"]
            if "loss" not in logs:
                return
            loss = float(logs["loss"])
            if not math.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {state.global_step}", fix="lower the learning rate")
            take(state.global_step, logs)
            told = ", ".join(f"{name} {curve[-1][1]:.3f}" for name, curve in curves.items() if curve)
            report(Progress(state.global_step, state.max_steps, told))

    trainer.add_callback(Follow())
    return curves


class Meter:
    """Counts the tokens that go into a model: those that are learnt from, and those that are only read.

    For the trainers that count none, or leave out what they generate and what a reference model reads. Padding does not
    count.
    """

    def __init__(self, model: Any, padding: int | None) -> None:
        self.learnt = self.read = 0
        self._model, self._padding = model, padding
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    @property
    def flops(self) -> int:
        """6·N a token learnt from and 2·N a token read, of N parameters."""
        size: int = sum(parameter.numel() for parameter in self._model.parameters())
        return (6 * self.learnt + 2 * self.read) * size

    def _count(self, module: Any, inputs: tuple[Any, ...]) -> None:
        import torch

        del module
        tokens = int((inputs[0] != self._padding).sum()) if self._padding is not None else inputs[0].numel()
        if torch.is_grad_enabled():
            self.learnt += tokens
        else:
            self.read += tokens


def facts_of(trainer: Any, curves: Curves, *, rows: int, meters: Sequence[Meter] = ()) -> Facts:
    """What a finished training says of itself: steps, tokens, parameters, floating-point operations, curves.

    Of these there are 6·N·D, where N counts every parameter and D the tokens seen without padding (Kaplan et al. 2020);
    or what the `meters` say, the first of which is on the model that learns.
    """
    sizes = [(_size(each), each.requires_grad) for each in trainer.model.parameters()]
    total = sum(size for size, _ in sizes)
    learnt, flops = (int(number) for number in _ranks.summed(*_metered(meters)))
    tokens = learnt if meters else int(trainer.state.num_input_tokens_seen)
    facts: Facts = {
        "steps": trainer.state.global_step,
        "rows": rows,
        "tokens": tokens,
        "parameters": total,
        "trainable_parameters": sum(size for size, trained in sizes if trained),
        "flops": flops if meters else 6 * total * tokens,
        "attention": trainer.model.config._attn_implementation,
    }
    for name, curve in curves.items():
        if curve:
            facts |= curves_facts(name, curve)
    return facts


def _metered(meters: Sequence[Meter]) -> tuple[int, int]:
    return (meters[0].learnt if meters else 0, sum(meter.flops for meter in meters))


def _size(parameter: Any) -> int:
    """How many weights a parameter holds; bitsandbytes packs two into a byte."""
    packed = getattr(parameter, "quant_state", None)
    return math.prod(packed.shape) if packed is not None else int(parameter.numel())


def read_rows(job: Job, columns: Sequence[str]) -> Dataset:
    """The rows of all of a job's datasets, with these columns only.

    They stand in their recorded order, unless the params say `shuffle`, and end where they say `max_rows`.
    """
    import datasets

    datasets.disable_caching()
    rows = [row for given in job.datasets for row in rows_of(given, columns)]
    return datasets.Dataset.from_list(sampled(job, rows))


def rows_of(given: JobDataset, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one dataset in their recorded order, with these columns only."""
    with open(given.path, encoding="utf-8") as lines:
        return [{column: row.get(column) for column in columns} for row in map(json.loads, lines)]


def sampled(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the params `shuffle` and `max_rows` leave of the rows; the same for the same seed."""
    order = list(rows)
    if job.params.get("shuffle"):
        random.Random(job.seed).shuffle(order)  # noqa: S311 no secret hangs on it
    return order[: job.params.get("max_rows")]


def save_whole(job: Job, model: Any, report: Report, *, like: Path | None = None, keep_rest: bool = True) -> Facts:
    """Write a trained model in the dtype, the shards and the names of its source, with the source's other files.

    `like` is another folder to take all that from. Tensors that the model lacks stay, or go without `keep_rest`.
    """
    _ranks.leave_to_first()
    with tempfile.TemporaryDirectory() as folder, ModelFolder(like or job.path("source")) as source:
        # Saving gives the tensors the names that they have in files, which may not be those of the modules.
        model.save_pretrained(folder)
        left_out = copy_rest(source.path, job.output)
        with ModelFolder(Path(folder)) as trained:
            changed = write_trained(source, trained, job.output, report, keep_rest=keep_rest)
    return {"changed_tensors": len(changed), "left_out": left_out}


def has_tokenizer(source: Material) -> None:
    """Refuse a model without a tokenizer."""
    if not TOKENIZERS & set(source.files):
        raise Refused(f"{source.name} has no tokenizer", fix="add its tokenizer files and import it again")
