"""Claims that can be computed again exactly: a cast, and the verdict on whatever else is."""

from __future__ import annotations

from collections.abc import Iterator

from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, common

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


def computed(what: str, worst: float, where: str, *, steps: int) -> Claim:
    """What should be one rounding away from the exact one; more roundings leave room for another order."""
    shown = f"at most {worst:.3g} steps of its dtype off" + (f", in {where}" if where else "")
    if worst <= 0.5 + 1e-6:
        return Claim(what, "proved", shown)
    return Claim(what, "consistent" if worst <= 0.5 + steps else "contradicted", shown)
