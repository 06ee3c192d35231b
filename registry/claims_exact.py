"""Claims that can be computed again exactly: a cast, and a linear merge."""

from __future__ import annotations

from collections.abc import Iterator

from mreg.registry import evidence
from mreg.registry.claim import Claim, Made, common

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def cast(made: Made) -> Iterator[Claim]:
    """Every weight rounded to the nearest of the new dtype, bit for bit."""
    what = f"every weight is the source's, rounded to {made.params.get('dtype', 'another dtype')}"
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim(what, "contradicted", missing)
        return
    wanted = _DTYPE_NAMES.get(str(made.params.get("dtype")))
    for name in names:
        before, after = made.source.tensor(name), made.output.tensor(name)
        if evidence.is_float(before) and wanted not in (None, after.dtype):
            yield Claim(what, "contradicted", f"{name} is {after.dtype}, not {wanted}")
            return
        if not (evidence.is_cast(before, after) or evidence.same_bits(before, after)):
            yield Claim(what, "contradicted", f"{name} is not")
            return
    yield Claim(what, "proved", f"all {len(names)} tensors, bit for bit")


def merge(made: Made) -> Iterator[Claim]:
    """A linear merge and task arithmetic are sums: they are computed again, in float64, and judged within rounding."""
    method = made.params.get("method", "linear")
    parents = [*made.inputs["source"], *made.inputs.get("others", ())]
    if method not in ("linear", "task-arithmetic"):
        yield Claim(f"a {method} merge of {len(parents)}", "not-checkable", "replay it: only sums are checked here")
        return
    weights = [float(one) for one in made.params.get("weights") or [1.0] * len(parents)]
    what = f"a {method} merge of its parents: " + " + ".join(f"{one:.3g}" for one in weights)
    if len(weights) != len(parents):
        yield Claim(what, "contradicted", f"there are {len(parents)} parents")
        return
    normalize = made.params.get("normalize")
    if (total := sum(weights)) and (method == "linear" if normalize is None else normalize):
        weights = [one / total for one in weights]
    if method == "task-arithmetic":
        if "base" not in made.inputs:
            yield Claim(what, "not-checkable", "the record does not say on which base")
            return
        weights = [one * float(made.params.get("lambda", 1.0)) for one in weights]
        parents, weights = [*made.inputs["base"], *parents], [1 - sum(weights), *weights]
    names, missing = common(made.source, made.output)
    lacking = [name for name in names if any(name not in set(one.names()) for one in parents)]
    if missing or lacking:
        yield Claim(what, "contradicted", missing or f"a parent has no {lacking[0]}")
        return
    worst, where = 0.0, names[0]
    for name in names:
        tensors, after = [one.tensor(name) for one in parents], made.output.tensor(name)
        if not evidence.is_float(after):
            continue
        if any(one.shape != after.shape for one in tensors):
            yield Claim(what, "contradicted", f"{name} has another shape in a parent")
            return
        exact, lost = evidence.weighted_sum(tensors, weights)
        if (excess := evidence.worst_excess(after, exact, lost)) > worst:
            worst, where = excess, name
    yield computed(what, worst, where, steps=len(parents))


def computed(what: str, worst: float, where: str, *, steps: int) -> Claim:
    """What should be one rounding away from the exact one; more roundings leave room for another order."""
    shown = f"at most {worst:.3g} steps of its dtype off" + (f", in {where}" if where else "")
    if worst <= 0.5 + 1e-6:
        return Claim(what, "proved", shown)
    return Claim(what, "consistent" if worst <= 0.5 + steps else "contradicted", shown)
