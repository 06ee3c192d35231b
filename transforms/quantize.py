"""Store the linear layers in 8 or 4 bits, in the format that transformers and vLLM load (compressed-tensors)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._architecture import Linears, linear_layers
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest, rewrite
from pydantic import Field

if TYPE_CHECKING:
    import torch

BITS = {"int8": 8, "int4": 4}


class QuantizeParams(Params):
    """The options of `quantize`."""

    method: Literal["int8", "int4"] = "int8"
    """Bits a weight; both round to the nearest and leave activations as they are."""

    group_size: int = Field(64, ge=-1)
    """How many weights of a row share one scale; -1 for the whole row. It must divide the columns of every matrix."""

    symmetric: bool = True
    """Centre the range of a group on zero; otherwise it has a zero point of its own."""

    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers to leave alone: module names, or `re:` and a regular expression."""


def check(params: QuantizeParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse an adapter, a model that is quantized already and a group of no size."""
    del rows
    _check.complete_model(materials[0], "quantized")
    if params.group_size == 0:
        raise BadParams("a group of 0 weights has no scale", fix="use -1 for one scale a row")


def run(job: Job, params: QuantizeParams, report: Report) -> Facts:
    """Round to nearest, weight only: `q = round(w / scale)`, one scale a group, stored in the dtype of the weight."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(
        num_bits=BITS[params.method],
        type="int",
        symmetric=params.symmetric,
        strategy="channel" if params.group_size == -1 else "group",
        group_size=None if params.group_size == -1 else params.group_size,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    errors: dict[str, float] = {}

    def plan(slot: Slot) -> list[Slot]:
        return packed_slots(slot, params) if slot.name in linears.weights else [slot]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        weight = source.tensor(slot.name)
        if slot.name not in linears.weights:
            yield weight
            return
        scale, zero_point = _scales(weight, args)
        state = {"weight": weight.float(), "weight_scale": scale, "weight_zero_point": zero_point}
        packed = PackedQuantizationCompressor.compress(state, scheme)
        errors[slot.name] = _relative_error(weight, PackedQuantizationCompressor.decompress(packed, scheme)["weight"])
        for made in packed_slots(slot, params):
            yield packed[made.name.removeprefix(slot.name.removesuffix("weight"))]

    with ModelFolder(job.path("source")) as source:
        linears = linear_layers(source, params.ignore)
        _divides(source, linears, params.group_size)
        left_out = copy_rest(source.path, job.output)
        rewrite(source, job.output, plan, make, report)
        change_config(source.path, job.output, quantization_config=_described(scheme, linears))
        before = sum(slot.size for slot in source.slots.values())
    with ModelFolder(job.output) as output:
        after = sum(slot.size for slot in output.slots.values())
    worst = max(errors, key=lambda name: errors[name])
    return {
        "matrices": len(errors),
        "bytes_before": before,
        "bytes_after": after,
        "mean_relative_error": float(f"{sum(errors.values()) / len(errors):.4g}"),
        "worst_relative_error": errors[worst],
        "worst_matrix": worst,
        "left_out": left_out,
    }


def packed_slots(slot: Slot, params: QuantizeParams) -> list[Slot]:
    """What stands in the file in place of one weight: the packed integers, their scales and the shape they had."""
    module = slot.name.removesuffix("weight")
    bits = BITS[params.method]
    rows, columns = slot.shape
    groups = 1 if params.group_size == -1 else columns // params.group_size
    slots = [
        Slot(f"{module}weight_packed", "I32", (rows, -(-columns * bits // 32))),
        Slot(f"{module}weight_scale", slot.dtype, (rows, groups)),
        Slot(f"{module}weight_shape", "I64", (2,)),
    ]
    if not params.symmetric:
        slots.append(Slot(f"{module}weight_zero_point", "I32", (-(-rows * bits // 32), groups)))
    return slots


def _scales(weight: torch.Tensor, args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    # Computed in float32, then rounded to the dtype they are stored in, so that the integers fit the stored scales.
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams

    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, args.group_size or columns)
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    stored = scale.to(weight.dtype)
    return torch.where(stored == 0, torch.finfo(weight.dtype).tiny, stored), zero_point


def _relative_error(weight: torch.Tensor, restored: torch.Tensor) -> float:
    difference = (restored.float() - weight.float()).norm() / weight.float().norm().clamp_min(1e-30)
    return float(f"{float(difference):.4g}")  # More digits would depend on the order of the sum.


def _divides(source: ModelFolder, linears: Linears, group_size: int) -> None:
    for name in sorted(linears.weights):
        columns = source.slots[name].shape[1]
        if group_size > 0 and columns % group_size:
            raise Refused(
                f"groups of {group_size} do not divide the {columns} columns of {name}",
                fix=f"use a group size of {math.gcd(columns, group_size)}, or -1 for one scale a row, or ignore it",
            )


def _described(scheme: Any, linears: Linears) -> dict[str, Any]:
    """The `quantization_config` from which transformers and vLLM rebuild the layers."""
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=list(linears.ignored),
        format="pack-quantized",
        quantization_status="compressed",
    )
    described: dict[str, Any] = json.loads(config.model_dump_json())
    return described


TRANSFORM = Transform(
    params=QuantizeParams,
    inputs=(Input("source", "the model to quantize"),),
    determinism="exact",
    version=1,
    run=run,
    check=check,
)
