"""Fold an adapter into its base, so that the result is a model of its own."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._adapter import adapter_config, merge_with_peft
from mreg.transforms._bottleneck import KIND as BOTTLENECK
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite

if TYPE_CHECKING:
    import torch
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

# They add tokens or modules beside the weights, so there is nothing to add to the weights.
APART = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE"}

# What a LoRA may say besides and still be W + scale·B·A; anything else that is set goes the way of PEFT.
PLAIN = {"peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "inference_mode"} | {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying", "auto_mapping"),
}
FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


class FuseParams(Params):
    """`fuse` has no options: an adapter says itself how it is scaled."""


def check(params: FuseParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse kinds of adapter that are no change of weights, and a quantized base."""
    del params, rows
    adapter, base = materials
    kind = adapter.config.get("peft_type")
    if not adapter.adapter or kind is None:
        raise Refused(f"{adapter.name} is no PEFT adapter", fix="fuse takes a version that has an adapter_config.json")
    if kind == BOTTLENECK:
        raise Refused(
            f"{adapter.name} is a bottleneck adapter, which adds layers and changes no weights",
            fix=f"use it beside its base: Registry.open().load({adapter.name!r})",
        )
    if kind in APART:
        raise Refused(
            f"{adapter.name} is {kind}, which adds to the input and changes no weights", fix="load it with PEFT instead"
        )
    if not adapter.tensors:
        raise Refused(f"{adapter.name} has no safetensors weights", fix="save the adapter again with a newer PEFT")
    _check.complete_model(base, "fused into")


def run(job: Job, params: FuseParams, report: Report) -> Facts:
    """`W + scale·B·A` in float32, rounded once to the dtype of `W` (LoRA, Hu et al. 2021); other kinds by PEFT.

    A plain LoRA is computed in a fixed order, so it comes out the same on every machine. What the adapter does not
    touch keeps its bytes, and every other file is the base's.
    """
    del params
    config = adapter_config(job.path("source"))
    with ModelFolder(job.path("base")) as base, ModelFolder(job.path("source")) as adapter:
        left_out = copy_rest(base.path, job.output)
        if (template := adapter.path / "chat_template.jinja").exists():
            shutil.copyfile(template, job.output / template.name)  # The one that the adapter was trained with.
        pairs = plain_pairs(config, adapter, base)
        if pairs is None:
            changed = merge_with_peft(job, base, report)
            order = "as PEFT does"
        else:
            scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])

            def make(slot: Slot) -> Iterator[torch.Tensor]:
                weight = base.tensor(slot.name)
                if slot.name in pairs:
                    b, a = (adapter.tensor(name) for name in pairs[slot.name])
                    weight = (weight.float() + low_rank(b.float(), a.float()) * scale).to(weight.dtype)
                yield weight

            rewrite(base, job.output, lambda slot: [slot], make, report)
            changed = sorted(pairs)
            order = "fixed"
    facts = {"kind": config["peft_type"], "order": order, "matrices": len(changed), "changed": _by_layer_kind(changed)}
    if "lora_alpha" in config:
        facts |= {"rank": config["r"], "alpha": config["lora_alpha"]}
    return {**facts, "left_out": left_out}


def plain_pairs(
    config: Mapping[str, Any], adapter: ModelFolder, base: ModelFolder
) -> dict[str, tuple[str, str]] | None:
    """For each weight of the base that a plain LoRA changes, the names of its B and A; None if it is not so plain."""
    special = {key for key, value in config.items() if value and key not in PLAIN} - {"bias", "init_lora_weights"}
    # Some ways to begin (PiSSA, OLoRA, CorDA …) also change the base, which only PEFT undoes.
    starts_at_base = config.get("init_lora_weights", True) in (True, False, None, "gaussian")
    if config["peft_type"] != "LORA" or special or config.get("bias", "none") != "none" or not starts_at_base:
        return None
    factors: dict[str, dict[str, str]] = {}
    for name in adapter.slots:
        match = FACTOR.fullmatch(name)
        if not match:
            return None
        factors.setdefault(f"{match['module']}.weight", {})[match["side"]] = name
    for weight, sides in factors.items():
        if weight not in base.slots or set(sides) != {"A", "B"}:
            return None
        (rows, rank), (inner, columns) = adapter.slots[sides["B"]].shape, adapter.slots[sides["A"]].shape
        if base.slots[weight].shape != (rows, columns) or not rank == inner == config["r"]:
            return None
    return {weight: (sides["B"], sides["A"]) for weight, sides in factors.items()}


def low_rank(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """`b @ a` in float32. Law: its bits do not depend on the machine, because the outer products are added one by one.

    Done in bands of rows that stay in the cache.
    """
    import torch

    product = torch.zeros(b.shape[0], a.shape[1])
    for start in range(0, b.shape[0], 64):
        band, factor = product[start : start + 64], b[start : start + 64]
        for rank in range(a.shape[0]):
            band += factor[:, rank : rank + 1] * a[rank]
    return product


def _by_layer_kind(names: list[str]) -> dict[str, int]:
    """`{"q_proj": 30}` for thirty layers' `…q_proj.weight`."""
    return dict(Counter(Path(name.replace(".", "/")).parent.name for name in names))


def predict(params: FuseParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """LoRA with all its patterns, DoRA and IA3; where PEFT did it, in the order of PEFT, some last bits may differ."""
    from mreg.transforms._predict_adapter import predictions

    del params
    return predictions(made)


TRANSFORM = Transform(
    params=FuseParams,
    inputs=(
        Input("source", "the adapter to fuse", takes="adapter"),
        Input("base", "the version that the adapter fits", derived=True),
    ),
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    predict=predict,
)
