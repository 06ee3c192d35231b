"""Adapters as they are stored: for which weights of a base they are, and what these become with them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import BadRecord
from mreg.registry.proof.evidence import FP32_ROUNDING, Floats

PART = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)"
    r"\.(?P<part>lora_[AB]\.weight|lora_magnitude_vector|ia3_l|bottleneck\.[02]\.weight)"
)


@dataclass(frozen=True)
class Part:
    """What an adapter has for one weight of its base: the rows and columns that it is for, None where any will do."""

    weight: str
    rows: int | None
    columns: int | None
    rank: int | None

    @property
    def told(self) -> str:
        """Its shape in words."""
        return f"{self.rows or 'any'}x{self.columns or 'any'}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of this shape is one that it is for. Some models hold theirs the other way round."""
        wanted = (self.rows, self.columns)
        either = (shape, shape[::-1])
        return len(shape) == 2 and any(all(w in (None, s) for w, s in zip(wanted, s, strict=True)) for s in either)


def parts_of(adapter: TensorSource) -> list[Part]:
    """The weights that an adapter is for: of the LoRA kinds, of IA3 and of bottlenecks; empty for others."""
    parts = []
    for module, named in sorted(_named(adapter).items()):
        weight, held = f"{module}.weight", {part: adapter.layout(name)[1] for part, name in named.items()}
        if {"lora_A.weight", "lora_B.weight"} <= held.keys():
            (rows, rank), (_, columns) = held["lora_B.weight"], held["lora_A.weight"]
            parts.append(Part(weight, rows, columns, rank))
        elif "ia3_l" in held:
            rows, columns = held["ia3_l"]
            parts.append(Part(weight, rows if rows > 1 else None, columns if columns > 1 else None, None))
        elif "bottleneck.2.weight" in held:
            rows, width = held["bottleneck.2.weight"]
            parts.append(Part(weight, rows, None, width))
    return parts


def scale_of(config: Mapping[str, Any]) -> float:
    """What `B·A` is multiplied by. Raises BadRecord."""
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if not isinstance(alpha, (int, float)) or not isinstance(rank, int) or rank < 1:
        raise BadRecord("adapter_config.json has no lora_alpha or no r", fix="mend it and import the adapter again")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether it is a LoRA of which the delta is `scale·B·A`."""
    special = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
    starts_at_base = config.get("init_lora_weights", True) in (True, False, None, "gaussian")
    return config.get("peft_type") == "LORA" and not any(config.get(key) for key in special) and starts_at_base


def is_dora(config: Mapping[str, Any]) -> bool:
    """Whether it is a DoRA, and nothing else besides."""
    return bool(config.get("use_dora")) and is_plain({**config, "use_dora": False})


def with_adapter(base: TensorSource, adapter: TensorSource, config: Mapping[str, Any]) -> dict[str, Fused] | None:
    """For each weight that an adapter is for, what it becomes; None for kinds of which that is not known here."""
    if not (is_plain(config) or is_dora(config) or config.get("peft_type") == "IA3"):
        return None
    held = set(base.names())
    fused: dict[str, Fused] = {}
    for module, named in _named(adapter).items():
        weight = f"{module}.weight"
        if weight in held and {"lora_A.weight", "lora_B.weight"} <= named.keys():
            fused[weight] = Fused(base, adapter, weight, named, scale_of(config))
        elif weight in held and "ia3_l" in named:
            fused[weight] = Fused(base, adapter, weight, named, 1.0)
    known = {name for named in _named(adapter).values() for name in named.values()}
    return fused if len(fused) == len(_named(adapter)) and known == set(adapter.names()) else None


@dataclass(frozen=True)
class Fused:
    """A weight with its part of an adapter: `W + s·B·A` (LoRA), `m·(W + s·B·A) / ‖W + s·B·A‖` by row (DoRA), or
    `W·l` (IA3)."""

    base: TensorSource
    adapter: TensorSource
    weight: str
    named: Mapping[str, str]
    scale: float

    @property
    def told(self) -> str:
        """The formula."""
        if "ia3_l" in self.named:
            return "W·l"
        if "lora_magnitude_vector" in self.named:
            return "W + s·B·A, each row of the length told,"
        return f"W + {self.scale:.3g}·B·A"

    def numbers(self) -> tuple[Floats, Floats]:
        """What comes out, in float64, and what float32 may lose of it."""
        weight = self.base.tensor(self.weight)
        if "ia3_l" in self.named:
            exact = evidence.numbers(weight) * evidence.numbers(self.adapter.tensor(self.named["ia3_l"]))
            return exact, np.abs(exact) * FP32_ROUNDING
        b, a = (self.adapter.tensor(self.named[f"lora_{side}.weight"]) for side in "BA")
        exact, lost = evidence.with_low_rank(weight, b, a, self.scale)
        if "lora_magnitude_vector" in self.named:
            length = evidence.numbers(self.adapter.tensor(self.named["lora_magnitude_vector"])).reshape(-1, 1)
            factor = length / np.linalg.norm(exact, axis=1, keepdims=True)
            exact, lost = exact * factor, (lost + np.abs(exact) * FP32_ROUNDING * math.sqrt(exact.shape[1])) * factor
        return exact, lost


def factors_of(adapter: TensorSource) -> dict[str, tuple[str, str]] | None:
    """For each weight of the base, the names of its B and A; None where it has other parts."""
    factors: dict[str, dict[str, str]] = {}
    for name in adapter.names():
        match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight", name)
        if match is None:
            return None
        factors.setdefault(f"{match['module']}.weight", {})[match["side"]] = name
    if not factors or any(set(sides) != {"A", "B"} for sides in factors.values()):
        return None
    return {weight: (sides["B"], sides["A"]) for weight, sides in factors.items()}


def _named(adapter: TensorSource) -> dict[str, dict[str, str]]:
    """The tensors that an adapter has for each module of its base, by what they are."""
    found: dict[str, dict[str, str]] = {}
    for name in adapter.names():
        if match := PART.fullmatch(name):
            found.setdefault(match["module"], {})[match["part"]] = name
    return found
