"""A fused adapter as predictions: `W + scale·B·A` for LoRA, that in its new length for DoRA, `W·l` for IA3."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mreg.transforms._predicting import FLOATS, IN_F32, NARROW, prediction

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import TensorSource
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

PART = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?:lora_(?P<side>[AB])\.weight|(?:ia3_|lora_)(?P<vector>l|magnitude)(?:_vector)?)"
)

# What more these do is not a sum of base and factors.
BEYOND = ("fan_in_fan_out", "use_bdlora", "alora_invocation_tokens")
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal")


def predictions(made: Made) -> Iterator[tuple[str, Prediction]]:
    """What each weight that an adapter aims at has become."""
    # What was only recorded may have the base as its source, and the adapter in another role.
    adapters = [role for role in made.inputs if role in made.configs]
    models = [role for role in ("base", *made.inputs) if role in made.inputs and role not in made.configs]
    if len(adapters) != 1 or not models:
        return
    config = made.configs[adapters[0]]
    if any(config.get(key) for key in BEYOND) or config.get("init_lora_weights", True) not in PLAIN_BEGINNINGS:
        return
    adapter, base = made.inputs[adapters[0]][0], made.inputs[models[0]][0]
    held, names = set(base.names()), set(made.output.names())
    for module, parts in _parts(adapter).items():
        weight = f"{module}.weight"
        if weight not in held or weight not in names:
            continue
        layouts = [base.layout(weight), made.output.layout(weight), *(adapter.layout(one) for one in parts.values())]
        if any(dtype not in FLOATS for dtype, _ in layouts) or len(layouts[0][1]) != 2:
            continue
        if set(parts) == {"A", "B"}:
            factors = [(base, weight), (adapter, parts["B"]), (adapter, parts["A"])]
            params = {**IN_F32, "scale": _scale(config, module)}
            yield weight, prediction("low-rank", factors, params)
            if (dtype := made.output.layout(weight)[0]) in NARROW:
                yield weight, prediction("low-rank", factors, {**params, "arithmetic": dtype})
        elif set(parts) == {"A", "B", "magnitude"}:
            factors = [(base, weight), *((adapter, parts[part]) for part in ("B", "A", "magnitude"))]
            yield weight, prediction("dora", factors, {**IN_F32, "scale": _scale(config, module)})
        elif set(parts) == {"l"}:
            axis = "columns" if adapter.layout(parts["l"])[1][0] == 1 else "rows"
            yield weight, prediction("scaled", [(base, weight), (adapter, parts["l"])], {**IN_F32, "axis": axis})


def _parts(adapter: TensorSource) -> dict[str, dict[str, str]]:
    """By module, the tensors of an adapter: A and B, with DoRA also magnitude, or l."""
    found: dict[str, dict[str, str]] = {}
    for name in adapter.names():
        if match := PART.fullmatch(name):
            found.setdefault(match["module"], {})[match["side"] or match["vector"]] = name
    return found


def _scale(config: Mapping[str, Any], module: str) -> float:
    rank, alpha = _of(config, "r", "rank_pattern", module), _of(config, "lora_alpha", "alpha_pattern", module)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of(config: Mapping[str, Any], key: str, patterns: str, module: str) -> float:
    """A number of an adapter's config, or that of the first pattern that fits the end of the module's name."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(config[key])
