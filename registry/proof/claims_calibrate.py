"""Claims of calibration: one layer was scaled or mapped as the record says, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, common, is_same
from mreg.registry.proof.claims_exact import computed
from mreg.registry.proof.evidence import Floats

BESIDE = ("isotonic", "histogram")
FILE = "calibration.json"
ZERO_CENTRED = ("gemma", "recurrent_gemma", "qwen3_next")
"""Beginnings of model types whose norms multiply by 1 + weight."""


def calibrate(made: Made) -> Iterator[Claim]:
    """One layer changed, by the map whose numbers the run told; or a file was added, and no tensor changed."""
    method = str(made.params.get("method") or "temperature")
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim("a calibration keeps the tensors", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    if method in BESIDE:
        said = f"{changed[0]} changed" if changed else f"{len(names)} tensors, bit for bit"
        yield Claim("no weight changed", "contradicted" if changed else "proved", said)
        beside = made.beside.get("output", ())
        if beside:
            there = FILE in beside[0].files
            yield Claim(
                f"the map is in {FILE}", "consistent" if there else "contradicted", "it is there" * there or "it is not"
            )
        return
    module = str(made.facts.get("layer") or (changed[0].rpartition(".")[0] if changed else ""))
    extra = [name for name in changed if name not in (f"{module}.weight", f"{module}.bias")]
    what = f"only {module} changed" if module else "one layer changed"
    if extra or not changed:
        yield Claim(what, "contradicted", f"{extra[0]} changed too" if extra else "no tensor did")
        return
    if any(made.source.tensor(name).shape != made.output.tensor(name).shape for name in changed):
        yield Claim(what, "contradicted", f"{changed[0]} has another shape")
        return
    yield Claim(what, "proved", f"{len(names) - len(changed)} tensors are what they were, bit for bit")
    yield from _mapped(made, method, module, changed)


def _mapped(made: Made, method: str, module: str, changed: Sequence[str]) -> Iterator[Claim]:
    weight, bias = f"{module}.weight", f"{module}.bias"
    facts = made.facts
    scales: Any
    shift: Any = 0.0
    if method == "temperature":
        hot = facts.get("temperature")
        if not _is_number(hot) or not hot:
            yield from _one_factor(made, changed)
            return
        what, scales = f"its logits are divided by {hot:.6g}", 1 / hot
    elif method == "platt" and _is_number(facts.get("scale")) and _is_number(facts.get("shift")):
        what, scales = f"its logits are scaled by {facts['scale']:.6g}", facts["scale"]
        shift = np.array([-facts["shift"] / 2, facts["shift"] / 2])
    elif method == "vector" and _are_numbers(facts.get("scale")) and _are_numbers(facts.get("bias")):
        what, scales, shift = "each logit is scaled and shifted as told", np.array(facts["scale"]), facts["bias"]
        shift = np.array(shift)
    elif method == "matrix" and _are_numbers(facts.get("matrix_diagonal")):
        yield from _matrix(made, weight)
        return
    else:
        yield Claim(f"its logits are mapped by {method}", "not-checkable", "the run did not tell the map: replay it")
        return
    worst, where = 0.0, ""
    for name in (weight, bias):
        if name not in set(made.source.names()):
            continue
        before, after = made.source.tensor(name), made.output.tensor(name)
        exact = _scaled(before, scales, shift if name == bias else 0.0, _offset(made, module) if name == weight else 0)
        if exact is None:
            yield Claim(what, "contradicted", f"{name} does not have as many rows as the map")
            return
        if (excess := evidence.worst_excess(after, exact, np.abs(exact) * 2.0**-48)) > worst:
            worst, where = excess, name
    yield computed(what, worst, where, steps=1)


def _scaled(before: Tensor, scales: Any, shift: Any, offset: float) -> Floats | None:
    rows = before.shape[0]
    if any(np.ndim(each) and len(each) != rows for each in (scales, shift)):
        return None
    each_row = np.reshape(scales, (-1, *[1] * (len(before.shape) - 1))) if np.ndim(scales) else scales
    exact: Floats = (evidence.numbers(before) + offset) * each_row - offset + shift
    return exact


def _one_factor(made: Made, changed: Sequence[str]) -> Iterator[Claim]:
    """Where the temperature was not told: that there is one."""
    what, worst, where = "the layer is multiplied by one number", 0.0, ""
    before = [evidence.numbers(made.source.tensor(name)) for name in changed]
    after = [evidence.numbers(made.output.tensor(name)) for name in changed]
    above = sum(float(np.sum(x * y)) for x, y in zip(before, after, strict=True))
    factor = above / max(sum(float(np.sum(x * x)) for x in before), 1e-300)
    for name, exact in zip(changed, before, strict=True):
        tensor = made.output.tensor(name)
        if (excess := evidence.worst_excess(tensor, exact * factor, np.abs(exact * factor) * 2.0**-9)) > worst:
            worst, where = excess, name
    said = f"{factor:.6g}, at most {worst:.3g} steps off" + (f", in {where}" if where else "")
    yield Claim(what, "consistent" if worst <= 1 else "contradicted", said)


def _matrix(made: Made, weight: str) -> Iterator[Claim]:
    """The new rows are mixtures of the old ones, whose own shares are those that were told."""
    what, told = "each logit is a mixture of the old ones, as told", np.array(made.facts["matrix_diagonal"])
    before, after = (evidence.numbers(one.tensor(weight)) for one in (made.source, made.output))
    if before.ndim != 2 or len(told) != len(before):
        yield Claim(what, "contradicted", f"{weight} does not have as many rows as the map")
        return
    mixed = np.linalg.lstsq(before.T, after.T, rcond=None)[0].T
    off = evidence.distance(after, mixed @ before)
    apart = float(np.max(np.abs(np.diag(mixed) - told)) / max(float(np.max(np.abs(told))), 1e-300))
    # What rounding does to the rows it does to the shares, and more where rows are alike.
    slack = 2.0 ** (-7 if made.output.tensor(weight).dtype == "BF16" else -9)
    fits = off <= slack and apart <= slack * float(np.linalg.cond(before))
    yield Claim(
        what, "consistent" if fits else "contradicted", f"{off:.2g} of it is no mixture, shares {apart:.2g} off"
    )


def _offset(made: Made, module: str) -> float:
    is_norm = len(made.source.tensor(f"{module}.weight").shape) == 1
    return 1.0 if is_norm and str(made.config.get("model_type")).startswith(ZERO_CENTRED) else 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(_is_number(one) for one in value)
