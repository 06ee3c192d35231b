"""Claims that whole parts of a model were cut out: those that are left are looked for in the source, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mreg.registry.models.layer_names import number_of
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, Verdict, common
from mreg.registry.proof.matching import Kept, by_layer, cuts_of, found_layers, is_equal, kept_parts

PARTS = {"heads": ("num_key_value_heads", "num_attention_heads"), "channels": ("intermediate_size", "n_inner")}
"""What config.json calls the number of parts of a structure; the first that is there counts."""

TIED = 1e-9
"""Two parts of which the weights differ by less than this, relatively, are equally important."""


def structured(made: Made) -> Iterator[Claim]:
    """As many parts went as said, the others are what they were, and by magnitude the least important ones went."""
    if made.params.get("structure") == "layers":
        yield from without_layers(made, made.number("sparsity", math.nan))
        return
    structure = str(made.params.get("structure"))
    what = f"the {structure} that are left are the source's"
    names, missing = common(made.source, made.output)
    cuts = {} if missing else cuts_of(made.source, made.output, names)
    if missing or not cuts:
        problem = "some have other shapes" if cuts is None else "no tensor got smaller"
        yield Claim(what, "contradicted", missing or problem)
        return
    for name in names:
        if name not in cuts and not is_equal(made.source, name, made.output, name):
            yield Claim(what, "contradicted", f"{name} changed and got no smaller")
            return
    by_config = _parts(made.config_of("source"), structure)
    left: dict[int | None, Kept] = {}
    for layer, inside in by_layer(list(cuts)).items():
        left[layer] = kept = kept_parts(made.source, made.output, {name: cuts[name] for name in inside}, by_config)
        if kept.amiss:
            yield Claim(what, "contradicted", f"layer {layer}: {kept.amiss}")
            return
    yield Claim(what, "proved", f"{len(cuts)} tensors in {len(left)} layers, bit for bit")
    first = next(iter(left.values()))
    yield from _how_many(structure, first.parts, {len(kept.stay) for kept in left.values()}, made)
    removed = made.facts.get("removed")
    if isinstance(removed, list) and by_config:
        gone = [sorted(set(range(kept.parts)) - set(kept.stay)) for kept in left.values()]
        if [list(map(int, one)) for one in removed if isinstance(one, list)] != gone:
            yield Claim("those went that the record names", "contradicted", f"{gone[0]} of the first layer are gone")
    if made.params.get("importance", "magnitude") != "magnitude":
        yield Claim("those went that do least on the data", "consistent", "which they are, only a replay tells")
        return
    kept_more = {layer: _out_of_order(made.source, {n: cuts[n].dimension for n in cuts if number_of(n) == layer}, kept)
                 for layer, kept in left.items()}  # fmt: skip
    wrong = [layer for layer, disordered in kept_more.items() if disordered]
    said = f"in layer {wrong[0]} a larger one went than one that stayed" if wrong else f"in all {len(left)} layers"
    yield Claim(f"the {structure} of the smallest weights went", "contradicted" if wrong else "proved", said)


def without_layers(made: Made, sparsity: float) -> Iterator[Claim]:
    """Whole layers went, and the others follow each other as they did."""
    what = "the layers that are left are the source's"
    before, after = by_layer(list(made.source.names())), by_layer(list(made.output.names()))
    counts = [sum(number is not None for number in found) for found in (before, after)]
    for name in sorted({*before.get(None, ()), *after.get(None, ())}):
        if not {name} <= set(before.get(None, ())) & set(after.get(None, ())):
            yield Claim(what, "contradicted", f"{name}, which is in no layer, is in one of the two models only")
            return
        if not is_equal(made.source, name, made.output, name):
            yield Claim(what, "contradicted", f"{name}, which is in no layer, changed")
            return
    found = found_layers(made.source, made.output)
    if len(found) < counts[1]:
        lost = next(number for number in range(counts[1]) if number not in found)
        yield Claim(what, "contradicted", f"layer {lost} is none of the {counts[0]} there were")
        return
    order = [found[number] for number in sorted(found)]
    if order != sorted(set(order)):
        yield Claim(what, "contradicted", f"they come in the order {', '.join(map(str, order))}")
        return
    yield Claim(what, "proved", f"layers {', '.join(map(str, order))}, bit for bit")
    yield from _how_many("layers", counts[0], {counts[1]}, made, sparsity)
    gone = [number for number in range(counts[0]) if number not in set(order)]
    removed = made.facts.get("removed")
    if isinstance(removed, list) and removed != gone:
        yield Claim("those went that the record names", "contradicted", f"{gone} are gone, {removed} are named")
    if made.params.get("importance", "magnitude") != "magnitude":
        yield Claim("those went that do least on the data", "consistent", "which they are, only a replay tells")
        return
    sizes = {number: _size(made.source, before[number]) for number in range(counts[0])}
    largest, smallest = max((sizes[one] for one in gone), default=0.0), min(sizes[one] for one in order)
    verdict: Verdict = "contradicted" if largest > smallest * (1 + TIED) else "proved"
    yield Claim("the layers of the smallest weights went", verdict, f"{largest:.6g} at most of {smallest:.6g} and more")


def _how_many(structure: str, parts: int, stay: set[int], made: Made, sparsity: float | None = None) -> Iterator[Claim]:
    asked = made.number("sparsity", math.nan) if sparsity is None else sparsity
    if math.isnan(asked):
        return
    what, wanted = f"{asked:.0%} of the {structure} went", parts - round(asked * parts)
    verdict: Verdict = "proved" if stay == {wanted} else "contradicted"
    yield Claim(what, verdict, f"{', '.join(map(str, sorted(stay)))} of {parts} are left, {wanted} should be")


def _parts(config: Mapping[str, Any], structure: str) -> int | None:
    given = (config.get(key) for key in PARTS.get(structure, ()))
    return next((one for one in given if isinstance(one, int) and one > 0), None)


def _out_of_order(source: TensorSource, dimensions: Mapping[str, int], kept: Kept) -> bool:
    """Whether a part went whose squared weights are larger than those of one that stayed."""
    sizes = np.zeros(kept.parts)
    for name, dimension in dimensions.items():
        squares = np.moveaxis(evidence.numbers(source.tensor(name)) ** 2, dimension, 0)
        sizes += squares.reshape(kept.parts, -1).sum(axis=1)
    stays = np.isin(np.arange(kept.parts), kept.stay)
    if stays.all():
        return False
    return bool(sizes[~stays].max() > sizes[stays].min() * (1 + TIED))


def _size(source: TensorSource, names: Sequence[str]) -> float:
    """The squared weights of a layer; gains of norms are all near one and do not count."""
    tensors = (source.tensor(name) for name in names)
    return math.fsum(float(np.sum(evidence.numbers(one) ** 2)) for one in tensors if len(one.shape) > 1)
