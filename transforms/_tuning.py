"""What of a model is trained: all of it, some of its layers, or an adapter beside it. One entry of TUNINGS is one way.

Another of PEFT's kinds is one more entry, its name in `Kind`, and nothing anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Job, Report
from mreg.transforms import _ranks
from mreg.transforms._adapter import save_adapter
from mreg.transforms._bottleneck import add_bottlenecks, save_bottlenecks
from mreg.transforms._training import TrainingParams, save_whole
from pydantic import Field, model_validator

Kind = Literal[
    "full", "lora", "rslora", "dora", "pissa", "ia3", "oft", "vera", "loha", "lokr", "prompt", "p-tuning", "prefix"
]

AnyKind = Literal[Kind, "qlora", "adapter"]
"""Every kind: also those that need the model to be loaded or saved in a way of their own."""

PROMPTS = frozenset({"prompt", "p-tuning", "prefix"})
"""Kinds that put learnt tokens before the input."""

# What the families of models call these layers.
KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "k_lin", "v_lin", "c_attn", "query_key_value", "qkv_proj")
FEED_FORWARD = ("down_proj", "fc2", "lin2", "mlp.c_proj", "output.dense", "dense_4h_to_h", "wo", "w2")
BLOCK_ENDS = ("o_proj", "out_proj", "out_lin", "c_proj", "attention.dense", "self_attention.dense", *FEED_FORWARD)

LOW_RANK = frozenset({"rank", "lora_alpha", "lora_dropout", "target_modules", "layers"})


class TuningParams(TrainingParams):
    """The options of every training that can leave the base as it is. A subclass names the choice itself."""

    rank: int = Field(16, ge=1)
    """Low-rank kinds: the rank of the change; adapter: the width of the bottleneck."""

    lora_alpha: int = Field(32, ge=1)
    """LoRA kinds: the change is scaled by alpha / rank (by alpha / √rank for rslora)."""

    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """LoRA kinds: the fraction of its input that is dropped in training."""

    target_modules: tuple[str, ...] = ("all-linear",)
    """Kinds that change layers: which, by the end of their names. `all-linear` is all linear layers but the head; for
    ia3 keys, values and what goes into the last layer of a block; for adapter the last layer of each block."""

    layers: tuple[int, ...] = ()
    """Train these decoder layers only, counted from 0; all unless said."""

    freeze: tuple[str, ...] = ()
    """full: parameters to leave as they are, by a regular expression that is searched in their names; `backbone` is
    everything but the head."""

    num_virtual_tokens: int = Field(20, ge=1)
    """prompt, p-tuning and prefix: the tokens that are learnt."""

    @property
    def trained(self) -> AnyKind:
        """What is trained."""
        kind: AnyKind = getattr(self, "tuning", None) or getattr(self, "method")  # noqa: B009 the subclass has one
        return kind

    @model_validator(mode="after")
    def _no_idle_options(self) -> TuningParams:
        uses = TUNINGS[self.trained].uses
        for name in TuningParams.model_fields.keys() - TrainingParams.model_fields.keys() - uses:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with {self.trained}")
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"freeze: {pattern!r} is no regular expression ({error})") from error
        return self


@dataclass(frozen=True)
class Tuning:
    """One way: which options it uses, and the PEFT config it comes to (None: the weights themselves are trained)."""

    uses: frozenset[str]
    config: Callable[[TuningParams, str], Any] | None


def peft_config(params: TuningParams, task: str = "CAUSAL_LM") -> Any | None:
    """What PEFT is told, or None where the weights themselves are trained."""
    make = TUNINGS[params.trained].config
    return None if make is None else make(params, task)


def freeze(model: Any, params: TuningParams) -> None:
    """Leave what is not trained as it is, where PEFT does not see to it. Raises Refused."""
    if params.trained == "adapter":
        add_bottlenecks(model, width=params.rank, target_modules=_chosen(params, BLOCK_ENDS), layers=params.layers)
    if params.trained != "full" or not (params.layers or params.freeze):
        return
    backbone = f"^{re.escape(model.base_model_prefix)}\\."
    frozen = [re.compile(backbone if pattern == "backbone" else pattern) for pattern in params.freeze]
    for name, parameter in model.named_parameters():
        layer = re.search(r"\.(?:layers|layer|h|blocks)\.(\d+)\.", name)
        outside = bool(params.layers) and (layer is None or int(layer[1]) not in params.layers)
        parameter.requires_grad = not outside and not any(pattern.search(name) for pattern in frozen)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise Refused("nothing is left to train", fix="name layers that the model has, or freeze less")


def save_trained(job: Job, params: TuningParams, model: Any, report: Report) -> Facts:
    """Write what was trained: the whole model, or the adapter alone."""
    _ranks.leave_to_first()
    if params.trained == "full":
        return save_whole(job, model, report)
    if params.trained == "adapter":
        save_bottlenecks(model, job.output)
    else:
        save_adapter(model, job.output)
    return {}


def _targets(params: TuningParams) -> str | list[str]:
    return "all-linear" if params.target_modules == ("all-linear",) else list(params.target_modules)


def _chosen(params: TuningParams, own: tuple[str, ...]) -> tuple[str, ...]:
    return own if params.target_modules == ("all-linear",) else params.target_modules


def _where(params: TuningParams) -> dict[str, Any]:
    layers = {"layers_to_transform": list(params.layers)} if params.layers else {}
    return {"target_modules": _targets(params), **layers}


def _lora(**more: Any) -> Callable[[TuningParams, str], Any]:
    def make(params: TuningParams, task: str) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            task_type=task,
            r=params.rank,
            lora_alpha=params.lora_alpha,
            lora_dropout=params.lora_dropout,
            **_where(params),
            **more,
        )

    return make


def _ia3(params: TuningParams, task: str) -> Any:
    """The vectors of IA3 (Liu et al. 2022): on keys, on values, and on what goes into the last layer of a block."""
    from peft import IA3Config

    targets = _chosen(params, (*KEYS_AND_VALUES, *FEED_FORWARD))
    inner = [name for name in targets if name.endswith(FEED_FORWARD)]
    return IA3Config(task_type=task, target_modules=list(targets), feedforward_modules=inner)


def _other(name: str, **named: str) -> Callable[[TuningParams, str], Any]:
    """A PEFT config by its class name; `named` maps its options to ours."""

    def make(params: TuningParams, task: str) -> Any:
        import peft

        where = _where(params) if "target_modules" in TUNINGS[params.trained].uses else {}
        options = {theirs: getattr(params, ours) for theirs, ours in named.items()}
        return getattr(peft, name)(task_type=task, **where, **options)

    return make


_CHOSEN = frozenset({"target_modules", "layers"})
_VIRTUAL = frozenset({"num_virtual_tokens"})

TUNINGS: Mapping[str, Tuning] = {
    "full": Tuning(frozenset({"layers", "freeze"}), None),
    "lora": Tuning(LOW_RANK, _lora()),
    "rslora": Tuning(LOW_RANK, _lora(use_rslora=True)),
    "dora": Tuning(LOW_RANK, _lora(use_dora=True)),
    "pissa": Tuning(LOW_RANK, _lora(init_lora_weights="pissa")),
    "ia3": Tuning(frozenset({"target_modules"}), _ia3),
    "oft": Tuning(_CHOSEN, _other("OFTConfig")),
    "vera": Tuning(_CHOSEN | {"rank"}, _other("VeraConfig", r="rank")),
    "loha": Tuning(_CHOSEN | {"rank"}, _other("LoHaConfig", r="rank", alpha="rank")),
    "lokr": Tuning(_CHOSEN | {"rank"}, _other("LoKrConfig", r="rank", alpha="rank")),
    "prompt": Tuning(_VIRTUAL, _other("PromptTuningConfig", num_virtual_tokens="num_virtual_tokens")),
    "p-tuning": Tuning(_VIRTUAL, _other("PromptEncoderConfig", num_virtual_tokens="num_virtual_tokens")),
    "prefix": Tuning(_VIRTUAL, _other("PrefixTuningConfig", num_virtual_tokens="num_virtual_tokens")),
    "qlora": Tuning(LOW_RANK, _lora()),
    "adapter": Tuning(_CHOSEN | {"rank"}, None),
}
