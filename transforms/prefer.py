"""Align a language model with preferences: DPO and its losses, KTO, ORPO, CPO or SimPO."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check, _lengths, _rows
from mreg.transforms._architecture import SAFE
from mreg.transforms._checkpointing import train
from mreg.transforms._training import Meter, arguments, facts_of, follow, has_tokenizer, read_rows
from mreg.transforms._tuning import PROMPTS, Kind, TuningParams, freeze, peft_config, save_trained
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from datasets import Dataset

Loss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
    "kto",
    "apo_zero_unpaired",
    "simpo",
]


@dataclass(frozen=True)
class Method:
    """A trainer of TRL: where it is, its losses with its own first, and which options it uses."""

    module: str
    name: str
    losses: tuple[Loss, ...]
    uses: frozenset[str]
    formats: tuple[_rows.Format, ...] = (_rows.PREFERRED, _rows.PAIRED)
    reference: bool = False
    beta: float = 0.1
    settled: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_DPO = frozenset({"loss_type", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type", "use_weighting"})

METHODS: Mapping[str, Method] = {
    "dpo": Method(
        "trl.trainer.dpo",
        "DPO",
        (
            *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
            *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
        ),
        _DPO | {"f_alpha_divergence_coef", "discopop_tau"},
        reference=True,
    ),
    "kto": Method(
        "trl.trainer.kto",
        "KTO",
        ("kto", "apo_zero_unpaired"),
        frozenset({"loss_type", "desirable_weight", "undesirable_weight"}),
        formats=(_rows.LABELLED, _rows.PREFERRED),
        reference=True,
    ),
    "orpo": Method("trl.experimental.orpo.orpo", "ORPO", (), frozenset()),
    "cpo": Method(
        "trl.experimental.cpo.cpo",
        "CPO",
        ("sigmoid", "hinge", "ipo"),
        frozenset({"loss_type", "label_smoothing", "cpo_alpha", "alpha"}),
        settled={"cpo_alpha": 1.0},
    ),
    "simpo": Method(
        "trl.experimental.cpo.cpo",
        "CPO",
        ("simpo",),
        frozenset({"loss_type", "label_smoothing", "cpo_alpha", "simpo_gamma", "alpha"}),
        beta=2.0,
        settled={"cpo_alpha": 0.0},
    ),
}

OPTIONS = frozenset(name for method in METHODS.values() for name in method.uses) | {"beta"}
WATCHED = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}


class PreferParams(TuningParams):
    """The options of `prefer`, by the names that TRL and PEFT give them."""

    LEARNING_RATES: ClassVar[Mapping[str, float]] = {"full": 1e-6, "adapter": 1e-5}

    method: Literal["dpo", "kto", "orpo", "cpo", "simpo"] = "dpo"
    """How preferences are learnt: dpo and kto against a frozen reference, orpo, cpo and simpo without one."""

    tuning: Kind = "lora"
    """What is trained: every weight (full), or an adapter of that kind beside the weights."""

    learning_rate: float | None = Field(None, gt=0)
    """The peak of the schedule; unless said, 1e-6 where every weight is trained and 1e-5 for adapters."""

    beta: float | None = Field(None, gt=0)
    """How much is lost by leaving the reference, or the scale of the rewards; 0.1 unless said, for simpo 2."""

    loss_type: tuple[Loss, ...] = ()
    """The loss, a variant of the method; dpo also takes several, which are added up. Unless said, the method's own."""

    loss_weights: tuple[float, ...] = ()
    """dpo: the weight of each loss, if there are several."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs taken to be the wrong way round: dpo with exo_pair, robust and aot, cpo and simpo."""

    ld_alpha: float | None = Field(None, ge=0, le=1)
    """dpo: the weight of the tokens beyond the length of the shorter half (LD-DPO)."""

    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """dpo: how distance from the reference is measured (f-DPO)."""

    f_alpha_divergence_coef: float = 0.5
    """dpo: the alpha of alpha_divergence."""

    use_weighting: bool = False
    """dpo: weigh the pairs by how likely the model itself writes them (WPO)."""

    discopop_tau: float = Field(0.05, gt=0)
    """dpo: the temperature of discopop."""

    desirable_weight: float = Field(1.0, ge=0)
    """kto: the weight of good completions."""

    undesirable_weight: float = Field(1.0, ge=0)
    """kto: the weight of bad completions."""

    cpo_alpha: float | None = Field(None, ge=0)
    """cpo and simpo: the weight of the likelihood of what was chosen; 1 for cpo and 0 for simpo unless said."""

    simpo_gamma: float = Field(0.5, ge=0)
    """simpo: the margin of rewards to reach."""

    alpha: float = 0.0
    """cpo and simpo: the shape of the reward (AlphaPO); 0 leaves log-probabilities."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_method(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        method = METHODS.get(str(given.get("method", "dpo")))
        if method is None:
            return dict(given)
        losses = given.get("loss_type") or method.losses[:1]
        own = {"beta": method.beta, **method.settled}
        filled = {name: value for name, value in own.items() if given.get(name) is None}
        return {**given, **filled, "loss_type": (losses,) if isinstance(losses, str) else losses}

    @model_validator(mode="after")
    def _fit_together(self) -> PreferParams:
        method = METHODS[self.method]
        for name in sorted(OPTIONS - method.uses - {"beta"}):
            if getattr(self, name) not in (type(self).model_fields[name].default, ()):
                raise ValueError(f"{name} does nothing with {self.method}")
        for loss in self.loss_type:
            if loss not in method.losses:
                raise ValueError(f"{self.method} has no loss {loss}, only {', '.join(method.losses)}")
        if len(self.loss_type) > 1 and self.method != "dpo":
            raise ValueError(f"{self.method} takes one loss_type")
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(f"{len(self.loss_weights)} loss_weights for {len(self.loss_type)} loss_type")
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("the loss exo_pair needs a label_smoothing above 0, such as 0.001")
        if self.use_weighting and {"aot", "aot_unpaired"} & set(self.loss_type):
            raise ValueError("use_weighting does not go with aot, which sorts the pairs")
        if self.f_divergence_type != "reverse_kl" and not set(self.loss_type) <= _ANY_DIVERGENCE:
            raise ValueError(f"f_divergence_type goes with the losses {', '.join(sorted(_ANY_DIVERGENCE))} only")
        if self.loss_type == ("kto",) and self.per_device_train_batch_size < 2:
            raise ValueError("kto compares the rows of a batch: per_device_train_batch_size must be 2 or more")
        if not method.reference and self.tuning in PROMPTS:
            raise ValueError(f"{self.method} cannot train {self.tuning}: use dpo or kto, or another tuning")
        return self


_ANY_DIVERGENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}


def check(params: PreferParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be trained, a reference of other tokens, and rows that prefer nothing."""
    source, *references = materials
    method = METHODS[params.method]
    _check.tunable(source, params)
    has_tokenizer(source)
    for reference in references:
        if not method.reference:
            raise Refused(f"{params.method} has no reference model", fix="leave the reference out, or use dpo or kto")
        _check.complete_model(reference, "a reference")
        _check.same_vocabulary(source, reference, fix="give a reference with the tokenizer of the source")
    columns = _rows.check_rows(source, rows, method.formats)
    if columns == _rows.LABELLED:
        _rows.check_both_labels(rows, None if params.shuffle else params.max_rows)
    else:
        _rows.check_pairs(rows, same_start=columns == _rows.PAIRED)
    _lengths.check_lengths(source, rows, columns, params.max_length)


def run(job: Job, params: PreferParams, report: Report) -> Facts:
    """Preference optimization by TRL; the same job gives the same weights on the same machine.

    Unless another is given, the reference is the source itself.
    """
    from transformers import AutoTokenizer

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    method = METHODS[params.method]
    trainer_class = getattr(importlib.import_module(f"{method.module}_trainer"), f"{method.name}Trainer")
    config_class = getattr(importlib.import_module(f"{method.module}_config"), f"{method.name}Config")
    report(Progress(0, params.max_steps or 0, "loading"))
    source = job.path("source")
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    columns = _rows.format_of(job.datasets[0].name, job.datasets[0].columns, method.formats)
    dataset = read_rows(job, columns)
    if params.method == "kto":
        dataset = _mixed(dataset, columns, job.seed)
    model = _load(source, params)
    freeze(model, params)
    others: dict[str, Any] = {}
    # An adapter is switched off to get the reference, but PiSSA takes its beginning out of the base.
    given = job.paths("reference")
    if method.reference and (given or params.tuning in ("full", "pissa")):
        others["ref_model"] = _load(given[0] if given else source, params)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = trainer_class(
            model=model,
            args=arguments(config_class, job, params, folder, **_options(params)),
            train_dataset=dataset,
            processing_class=tokenizer,
            peft_config=peft_config(params),
            **others,
        )
        models = [trainer.model, others.get("ref_model")]
        meters = [Meter(each, tokenizer.pad_token_id) for each in models if each is not None]
        curves = follow(trainer, report, WATCHED)
        train(trainer, job, meters=meters)
        facts = facts_of(trainer, curves, rows=len(dataset), meters=meters)
        return {**facts, **save_trained(job, params, trainer.model, report)}


def _mixed(dataset: Dataset, columns: _rows.Format, seed: int) -> Dataset:
    """Good and bad completions in one order: TRL estimates the KL term from neighbours, so it does not shuffle them."""
    from trl.data_utils import unpair_preference_dataset

    return (dataset if columns == _rows.LABELLED else unpair_preference_dataset(dataset)).shuffle(seed=seed)


def _load(folder: Any, params: PreferParams) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=params.dtype, **SAFE)


def _options(params: PreferParams) -> dict[str, Any]:
    """The options that the method uses, in the form of its config; those left out keep TRL's defaults."""
    options = {name: getattr(params, name) for name in METHODS[params.method].uses | {"beta"}}
    if "loss_weights" in options:
        options["loss_weights"] = list(params.loss_weights) or None
    if "loss_type" in options:
        options["loss_type"] = list(params.loss_type) if params.method == "dpo" else params.loss_type[0]
    return options


TRANSFORM = Transform(
    params=PreferParams,
    inputs=(
        Input("source", "the model to train"),
        Input("reference", "the model to stay near, if not the source itself (dpo, kto)", optional=True),
    ),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
    distributed=True,
)
