"""Claims about adapters: that one fits its base, could have been trained on it, or is what two versions differ by."""

from __future__ import annotations

from collections.abc import Iterator

from mreg.registry.models.adapters import factors_of, is_plain, parts_of, scale_of, with_adapter
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made
from mreg.registry.proof.matching import is_equal

MOST_ADDED = 1.0
"""An adapter that adds more than the norm of a matrix to it was trained on another."""

CROSS = 1e-3
"""How far, relatively, factors in float32 may be from the best ones."""


def adapter_fits(made: Made, *, trained: bool = True) -> Iterator[Claim]:
    """That the adapter that came out can stand on the model it is said to fit."""
    kind = str(made.config.get("peft_type"))
    shapes = {name: made.source.layout(name)[1] for name in made.source.names()}
    what = "the adapter fits its base"
    parts = parts_of(made.output)
    if not parts:
        prompt = made.config.get("num_virtual_tokens")
        yield Claim(
            what, "not-checkable", f"a {kind} has no matrices of the base" + f", {prompt} tokens" * bool(prompt)
        )
        return
    for part in parts:
        wanted = shapes.get(part.weight)
        if wanted is None or not part.fits(wanted):
            shape = "x".join(map(str, wanted)) if wanted else "missing"
            yield Claim(what, "contradicted", f"{part.weight} is {shape}, the adapter is for {part.told}")
            return
    ranks = {part.rank for part in parts if part.rank is not None}
    asked = made.config.get("r") or made.params.get("rank") or made.params.get("r")
    if asked and ranks and ranks != {asked} and not made.config.get("rank_pattern"):
        yield Claim(f"its rank is {asked}", "contradicted", f"it is {', '.join(map(str, sorted(ranks)))}")
        return
    told = made.params.get("rank") or made.params.get("r")
    # PiSSA is kept as the difference to where it began, which has twice the rank.
    if kind == "LORA" and isinstance(told, int) and asked not in (told, 2 * told, None):
        yield Claim(f"its rank is {told}", "contradicted", f"its config says {asked}")
        return
    ranked = f", rank {', '.join(map(str, sorted(ranks)))}" if ranks else ""
    yield Claim(what, "proved", f"{len(parts)} matrices{ranked}")
    if trained:
        yield from _trained(made)


def _trained(made: Made) -> Iterator[Claim]:
    """That the adapter could have been trained on its base: it changes something, and not all of it."""
    what, fused = "it could be a training on its base", with_adapter(made.source, made.output, made.config)
    if fused is None:
        yield Claim(what, "not-checkable", f"how far a {made.config.get('peft_type')} such as this one goes: replay it")
        return
    worst, where = 0.0, ""
    for name, part in fused.items():
        if (apart := evidence.rounding_error(made.source.tensor(name), part.numbers()[0])) > worst:
            worst, where = apart, name
    if not worst:
        yield Claim(what, "contradicted", "it changes nothing")
        return
    said = f"it moves {where} most: by {worst:.2g} of its norm"
    yield Claim(what, "consistent" if worst <= MOST_ADDED else "contradicted", said)


def extract(made: Made) -> Iterator[Claim]:
    """The factors are what is largest of the difference: the best approximation of their rank (Eckart and Young)."""
    yield from adapter_fits(made, trained=False)
    pairs, rank = factors_of(made.output), made.number("rank", 16)
    base = made.inputs.get("base")
    if pairs is None or base is None:
        return
    what = f"they are the {rank:.0f} largest directions of the difference"
    if not is_plain(made.config):
        yield Claim(what, "not-checkable", "it is no plain LoRA: replay it")
        return
    scale = scale_of(made.config)
    source, tensors = made.inputs["source"][0], set(made.inputs["source"][0].names())
    lost = left = whole = 0.0
    for name, (b, a) in sorted(pairs.items()):
        if name not in tensors or name not in set(base[0].names()):
            yield Claim(what, "contradicted", f"the two versions have no {name}")
            return
        delta = evidence.numbers(source.tensor(name)) - evidence.numbers(base[0].tensor(name))
        factors = evidence.numbers(made.output.tensor(b)), scale * evidence.numbers(made.output.tensor(a))
        if factors[0].shape[0] != delta.shape[0] or factors[1].shape[1] != delta.shape[1]:
            yield Claim(what, "contradicted", f"{name} has another shape")
            return
        found = evidence.captured(delta, *factors)
        if found.beside > CROSS or found.larger_left > 1 + CROSS:
            said = f"{found.beside:.2g} of it lies beside the difference" if found.beside > CROSS else "larger are left"
            yield Claim(what, "contradicted", f"in {name} {said}")
            return
        lost, left, whole = max(lost, found.beside), max(left, found.larger_left), whole + found.size
    unlike = [n for n in sorted(tensors & set(base[0].names())) if n not in pairs and _has_changed(source, base[0], n)]
    told = made.facts.get("not_captured")
    if isinstance(told, list) and sorted(told) != unlike:
        yield Claim("the others that differ are named", "contradicted", f"{len(unlike)} differ, {len(told)} are named")
    said = f"{lost:.2g} of it lies beside, what is left is {left:.2g} of the smallest kept; {len(unlike)} not captured"
    yield Claim(what, "proved", said)


def _has_changed(a: TensorSource, b: TensorSource, name: str) -> bool:
    return not is_equal(a, name, b, name)
