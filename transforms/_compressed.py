"""Quantized layers in the format of compressed-tensors, which transformers and vLLM load: what stands in the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.transform import Facts, Report
from mreg.transforms._architecture import Linears
from mreg.transforms._folder import ModelFolder, Slot, rewrite

if TYPE_CHECKING:
    import torch

Kind = Literal["pack-quantized", "int-quantized", "float-quantized"]

State = Mapping[str, "torch.Tensor"]
"""The tensors of one layer by their last name: `weight`, `weight_scale`, `weight_zero_point`."""

MOST_LISTED = 256
"""Matrices whose errors are listed one by one; of larger models, those with the largest."""


@dataclass(frozen=True)
class Format:
    """How a weight of shape (rows, columns) is stored: integers or floats of `bits`, with a scale for every group.

    `pack-quantized` holds integers, packed into int32, and leaves activations alone (group size -1: one scale a row).
    `int-quantized` (int8) and `float-quantized` (fp8, e4m3) have one scale a row, and round the inputs of a layer too,
    with a scale for each token that is found while the model runs.
    """

    kind: Kind
    bits: int = 8
    group_size: int = -1
    symmetric: bool = True

    @property
    def weights(self) -> Any:
        """The `QuantizationArgs` of the weights."""
        from compressed_tensors.quantization import QuantizationArgs

        return QuantizationArgs(
            num_bits=self.bits,
            type="float" if self.kind == "float-quantized" else "int",
            symmetric=self.symmetric,
            strategy="channel" if self.group_size == -1 else "group",
            group_size=None if self.group_size == -1 else self.group_size,
        )

    @property
    def scheme(self) -> Any:
        """The `QuantizationScheme` of every layer."""
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        inputs = None
        if self.kind != "pack-quantized":
            inputs = QuantizationArgs(num_bits=8, type=self.weights.type, strategy="token", dynamic=True)
        return QuantizationScheme(targets=["Linear"], weights=self.weights, input_activations=inputs, format=self.kind)

    def slots(self, slot: Slot) -> list[Slot]:
        """What stands in the file in place of one weight."""
        module = slot.name.removesuffix("weight")
        rows, columns = slot.shape
        groups = 1 if self.group_size == -1 else columns // self.group_size
        scale = Slot(f"{module}weight_scale", slot.dtype, (rows, groups))
        if self.kind != "pack-quantized":
            return [Slot(slot.name, "I8" if self.kind == "int-quantized" else "F8_E4M3", slot.shape), scale]
        slots = [
            Slot(f"{module}weight_packed", "I32", (rows, -(-columns * self.bits // 32))),
            scale,
            Slot(f"{module}weight_shape", "I64", (2,)),
        ]
        if not self.symmetric:
            slots.append(Slot(f"{module}weight_zero_point", "I32", (-(-rows * self.bits // 32), groups)))
        return slots

    def nearest(self, weight: torch.Tensor) -> State:
        """A weight with the scales of round-to-nearest, by the largest element of each group.

        Computed in float32, then rounded to the dtype they are stored in, so that the integers fit the stored scales.
        """
        import torch
        from compressed_tensors.quantization.utils import calculate_qparams

        rows, columns = weight.shape
        groups = weight.float().reshape(rows, -1, columns if self.group_size == -1 else self.group_size)
        scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), self.weights)
        stored = scale.to(weight.dtype)
        stored = torch.where(stored == 0, torch.finfo(weight.dtype).tiny, stored)
        return {"weight": weight, "weight_scale": stored, "weight_zero_point": zero_point}

    def compress(self, slot: Slot, state: State) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The tensors for `slots(slot)`, in that order, and the weight that comes back from them, in float32."""
        from compressed_tensors.compressors import BaseCompressor

        compressor = BaseCompressor.get_value_from_registry(self.kind)
        scheme = self.scheme
        packed = compressor.compress({**state, "weight": state["weight"].float()}, scheme)
        module = slot.name.removesuffix("weight")
        made = [packed[each.name.removeprefix(module)] for each in self.slots(slot)]
        return made, compressor.decompress(packed, scheme)["weight"].float()

    def described(self, linears: Linears) -> dict[str, Any]:
        """The `quantization_config` from which transformers and vLLM rebuild the layers."""
        from compressed_tensors.quantization import QuantizationConfig

        config = QuantizationConfig(
            config_groups={"group_0": self.scheme},
            ignore=list(linears.ignored),
            format=self.kind,
            quantization_status="compressed",
        )
        described: dict[str, Any] = json.loads(config.model_dump_json())
        return described


def store(
    source: ModelFolder,
    output: Path,
    stored: Format,
    weights: Collection[str],
    choose: Callable[[Slot], State],
    report: Report,
    *,
    other: Callable[[Slot], torch.Tensor] | None = None,
    exact: Callable[[str], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Write a model with what `choose` gives for its `weights`, and return the relative error of each.

    The other tensors are those of the source unless `other` has them; errors are against `exact`, or the source.
    """
    errors: dict[str, float] = {}

    def plan(slot: Slot) -> list[Slot]:
        return stored.slots(slot) if slot.name in weights else [slot]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        if slot.name not in weights:
            yield other(slot) if other else source.tensor(slot.name)
            return
        made, restored = stored.compress(slot, choose(slot))
        errors[slot.name] = relative_error((exact or source.tensor)(slot.name), restored)
        yield from made

    rewrite(source, output, plan, make, report)
    return errors


def relative_error(weight: torch.Tensor, restored: torch.Tensor) -> float:
    """The Frobenius norm of what was lost over that of the weight."""
    difference = (restored.float() - weight.float()).norm() / weight.float().norm().clamp_min(1e-30)
    return float(f"{float(difference):.4g}")  # More digits would depend on the order of the sum.


def told(errors: Mapping[str, float], what: str) -> Facts:
    """Facts on the errors of matrices by name: the mean, the worst, and each of them as far as MOST_LISTED goes."""
    ranked = sorted(errors, key=lambda name: -errors[name])
    listed = set(ranked[:MOST_LISTED])
    return {
        f"mean_{what}_error": float(f"{sum(errors.values()) / len(errors):.4g}"),
        f"worst_{what}_error": errors[ranked[0]],
        "worst_matrix" if what == "relative" else f"worst_{what}_matrix": ranked[0],
        f"{what}_errors": {name: error for name, error in errors.items() if name in listed},
    }
