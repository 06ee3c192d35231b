"""What quantization claims: that weights stand on the grid that their scales span."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
from mreg.registry.models.grids import FLOATS8, Grid, grid_of, quantized
from mreg.registry.models.layer_names import number_of
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, Verdict, is_same
from mreg.registry.proof.evidence import Floats

MOST_ERROR = 0.35
"""The relative error that a calibrated 4-bit quantization stays below by far; another model's weights are at 1.4."""

MOST_OF_STEPS = 1.5
"""What rescaled weights may be off, in what rounding to the nearest makes on average."""

SCALED = ("awq", "smoothquant")
"""Methods that scale rows and columns before they round."""

NEAREST = ("int8", "int4", "rtn", "fp8", "dynamic-int8")

PART = re.compile(r"\.weight_(?:packed|scale|shape|zero_point|g_idx)$|\.(?:scale|SCB)$")
"""Tensors that say how a matrix is quantized."""

NORM_SLACK = 0.03
"""How far a norm may be from the scales that went out of it into the matrices, relatively."""


def quantize(made: Made) -> Iterator[Claim]:
    """Rounding to nearest is checked weight by weight; calibrated methods by their distance."""
    if made.gguf is not None:
        from mreg.registry.proof.claims_gguf import gguf

        yield from gguf(made)
        return
    method = str(made.params.get("method", ""))
    names = quantized(made.source, made.output)
    if not names:
        yield Claim(
            "weights are on the grid of their scales", "not-checkable", "its format is not read here: replay it"
        )
        return
    source, output = set(made.source.names()), set(made.output.names())
    lost = sorted(name for name in source - set(names) if name not in output)
    if lost:
        yield Claim("every weight is there", "contradicted", f"{lost[0]} is gone")
        return
    others = sorted(name for name in output if name not in names and not PART.search(name))
    touched = [name for name in others if name not in source or not is_same(made, name)]
    scaled = method in SCALED
    wrong = [one for one in touched if not scaled or one not in source or len(made.output.layout(one)[1]) != 1]
    what = "what is not quantized is what it was, but for norms" if scaled else "what is not quantized is what it was"
    said = f"{wrong[0]} changed, {len(wrong)} in all" if wrong else f"{len(others) - len(touched)} tensors, bit for bit"
    yield Claim(what, "contradicted" if wrong else "proved", said)
    yield from _matrices(made, method, names, touched if scaled else [])


def _matrices(made: Made, method: str, names: list[str], norms: list[str]) -> Iterator[Claim]:
    rounds, scaled = method in NEAREST, method in SCALED
    off = error = share = 0.0
    where, points = "", set()
    columns: dict[str, tuple[Floats, float]] = {}
    for name in names:
        weight = made.source.tensor(name) if name in set(made.source.names()) else None
        found = grid_of(made.output, name, weight, made.params.get("bits") or (8 if method == "int8" else None))
        if isinstance(found, str) or weight is None:
            yield Claim("every matrix has its source", "contradicted", str(found))
            return
        points.add(f"{found.dtype}" if found.dtype in FLOATS8 else f"{2**found.bits} points")
        rounding = evidence.step_error(found.steps, found.restored)
        if scaled:
            apart, columns[name] = _fit(weight, found, rounding)
            if apart / max(rounding, 1e-12) > share:
                share, where = apart / max(rounding, 1e-12), name
            continue
        off = max(off, found.off(weight))
        apart = evidence.rounding_error(weight, found.restored)
        if apart > error:
            error, where = apart, name
    grid = f"a grid of {' and '.join(sorted(points))}"
    if asked := _asked(made, method):
        wrong = [one for one in points if one != asked]
        yield Claim(f"matrices have {asked}", "contradicted" if wrong else "proved", f"{', '.join(sorted(points))}")
    if rounds:
        verdict: Verdict = "contradicted" if off > 0 else "proved"
        yield Claim(f"each weight is its nearest point of {grid}", verdict, f"{off:.3%} are not, at worst")
    elif scaled:
        verdict = "contradicted" if share > MOST_OF_STEPS else "consistent"
        said = f"{share:.3g} of what rounding makes on average, in {where}"
        yield Claim(f"weights are the source's on {grid}, rows and columns scaled", verdict, said)
        yield from _norms(made, norms, columns)
    else:
        verdict = "contradicted" if error > MOST_ERROR else "consistent"
        yield Claim(f"weights are near their points of {grid}", verdict, f"relative error {error:.3g} in {where}")


def _fit(weight: Tensor, found: Grid, rounding: float) -> tuple[float, tuple[Floats, float]]:
    apart, columns = evidence.rescaled(weight, found.restored)
    return apart, (columns, rounding / math.sqrt(weight.shape[0]))


def _norms(made: Made, norms: list[str], columns: dict[str, tuple[Floats, float]]) -> Iterator[Claim]:
    """What was taken out of a norm must have gone into the columns of a matrix of its layer."""
    what, worst = "what was taken out of the norms went into the columns", 0.0
    for norm in norms:
        before, after = (evidence.numbers(one.tensor(norm)) for one in (made.source, made.output))
        with np.errstate(divide="ignore", invalid="ignore"):
            taken = np.where(after == 0, 1.0, before / after)
        least = math.inf
        for name, (scale, noise) in columns.items():
            if number_of(name) == number_of(norm) and scale.shape == taken.shape:
                ratio = scale / taken
                apart = float(np.std(ratio) / max(abs(float(np.mean(ratio))), 1e-300))
                least = min(least, max(0.0, apart - 2 * noise))
        if least > NORM_SLACK:
            yield Claim(what, "contradicted", f"{norm} changed, and no matrix of its layer made up for it")
            return
        worst = max(worst, least)
    if norms:
        yield Claim(what, "consistent", f"{len(norms)} norms, to within {worst:.2g}")


def _asked(made: Made, method: str) -> str:
    if method == "fp8":
        return "F8_E4M3"
    bits = made.params.get("bits") or {"int8": 8, "int4": 4, "dynamic-int8": 8, "smoothquant": 8}.get(method)
    return f"{2**bits} points" if isinstance(bits, int) and 1 < bits <= 8 else ""
