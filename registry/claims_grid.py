"""What quantization claims: that weights stand on the grid that their scales span."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from mreg.registry import evidence
from mreg.registry.claim import Claim, Made, Verdict, is_same
from mreg.registry.weights import Tensor

MOST_ERROR = 0.35
"""The relative error that a calibrated 4-bit quantization stays below by far; another model's weights are at 1.4."""


def quantize(made: Made) -> Iterator[Claim]:
    """Rounding to nearest is checked weight by weight; calibrated methods by their distance."""
    method = str(made.params.get("method", ""))
    rounds = method in {"int8", "int4", "rtn"}
    source, output = set(made.source.names()), set(made.output.names())
    packed = sorted(name.removesuffix("_packed") for name in output if name.endswith(".weight_packed"))
    if not packed:
        yield Claim(
            "weights are on the grid of their scales", "not-checkable", "its format is not read here: replay it"
        )
        return
    others = sorted(name for name in output if not re.search(r"\.weight_(packed|scale|shape|zero_point|g_idx)$", name))
    touched = [name for name in others if name not in source or not is_same(made, name)]
    scaled = method in {"awq", "smoothquant"}
    yield Claim(
        "what is not quantized is what it was",
        "consistent" if scaled else "contradicted" if touched else "proved",
        f"{touched[0]} changed, {len(touched)} in all" if touched else f"{len(others)} tensors, bit for bit",
    )
    bits = int(made.params.get("bits") or (8 if method == "int8" else 4))
    worst_off, worst_error, where = 0.0, 0.0, ""
    for name in packed:
        if name not in source:
            yield Claim("every matrix has its source", "contradicted", f"the source has no {name}")
            return
        weight, scale = made.source.tensor(name), made.output.tensor(f"{name}_scale")
        integers = evidence.unpacked(made.output.tensor(f"{name}_packed"), bits, weight.shape[1])
        zero_point = _zero_point(made, name, bits, weight.shape[0])
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        spread = weight.shape[1] // scale.shape[1]
        scales = np.repeat(evidence.numbers(scale), spread, axis=1)
        shift = 0 if zero_point is None else np.repeat(zero_point, spread, axis=1)
        error = evidence.rounding_error(weight, (integers - shift) * scales)
        off = evidence.off_grid(weight, integers, scale, zero_point, low, high)
        if error > worst_error:
            worst_error, where = error, name
        worst_off = max(worst_off, off)
    grid = f"a grid of {2**bits} points a group"
    if rounds:
        verdict: Verdict = "contradicted" if worst_off > 0 else "proved"
        yield Claim(f"each weight is its nearest point of {grid}", verdict, f"{worst_off:.3%} are not, at worst")
    elif scaled:
        yield Claim(f"weights are on {grid}", "consistent", "they were rescaled before, by what only a replay tells")
    else:
        verdict = "contradicted" if worst_error > MOST_ERROR else "consistent"
        yield Claim(f"weights are near their points of {grid}", verdict, f"relative error {worst_error:.3g} in {where}")


def _zero_point(made: Made, name: str, bits: int, rows: int) -> Any:
    if f"{name}_zero_point" not in set(made.output.names()):
        return None
    # Packed along the rows, unlike the weights.
    packed = made.output.tensor(f"{name}_zero_point")
    turned = packed.array().T.copy()
    return evidence.unpacked(Tensor("I32", turned.shape, memoryview(turned.tobytes())), bits, rows).T
