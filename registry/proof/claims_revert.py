"""The claim that one step was taken out: what it changed is what it was before, and all the rest is the source's."""

from __future__ import annotations

from collections.abc import Iterator

from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, common


def revert(made: Made) -> Iterator[Claim]:
    """Bit for bit: nothing is computed by a revert."""
    what = "what the step changed is as it was before, the rest as in the source"
    if not {"step", "before"} <= made.inputs.keys():
        yield Claim(what, "not-checkable", "the record does not say which step")
        return
    (step, *_), (before, *_) = made.inputs["step"], made.inputs["before"]
    names, missing = common(made.source, made.output)
    if missing or {*names} != {*step.names()} or {*names} != {*before.names()}:
        yield Claim(what, "contradicted", missing or "the versions have other tensors")
        return
    restored = 0
    for name in names:
        is_changed = not _same(step, before, name)
        if is_changed and not _same(made.source, step, name):
            yield Claim(what, "contradicted", f"{name} is not in the source as the step left it")
            return
        if not _same(made.output, before if is_changed else made.source, name):
            yield Claim(what, "contradicted", f"{name} is not {'what it was before' if is_changed else 'the same'}")
            return
        restored += is_changed
    yield Claim(what, "proved", f"{restored} of {len(names)} tensors restored, bit for bit")


def _same(one: TensorSource, other: TensorSource, name: str) -> bool:
    known = one.digest(name)
    if known is not None and other.digest(name) is not None:
        return known == other.digest(name)
    return evidence.same_bits(one.tensor(name), other.tensor(name))
