"""Which parts of one model are found again, bit for bit, in another: layers, attention heads, channels. Pure but for
reading."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from mreg.registry.models.layer_names import number_of, renumbered
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence


@dataclass(frozen=True)
class Cut:
    """A tensor of which parts went: its dimension, and how long it was along it and is."""

    dimension: int
    before: int
    after: int


@dataclass(frozen=True)
class Kept:
    """Of a layer that was cut, which of the `parts` are left, in order. `amiss` says why it is no cut at all."""

    parts: int = 0
    stay: tuple[int, ...] = ()
    amiss: str = ""


def is_equal(a: TensorSource, one: str, b: TensorSource, other: str) -> bool:
    """Whether two tensors are the same bit for bit, by their digests where both are known."""
    known = a.digest(one)
    if known is not None and (there := b.digest(other)) is not None:
        return known == there
    return evidence.same_bits(a.tensor(one), b.tensor(other))


def by_layer(names: Sequence[str]) -> dict[int | None, list[str]]:
    """The names of tensors by the layer that they are part of, None for those outside all layers; sorted."""
    found: dict[int | None, list[str]] = {}
    for name in sorted(names):
        found.setdefault(number_of(name), []).append(name)
    return found


def same_layer(a: TensorSource, number: int, b: TensorSource, other: int, names: Sequence[str]) -> str:
    """What tells layer `number` of `a` from layer `other` of `b`, which has these tensors; else nothing."""
    theirs = set(a.names())
    for name in names:
        source = renumbered(name, number)
        if source not in theirs:
            return f"{source} is missing"
        if not is_equal(a, source, b, renumbered(name, other)):
            return f"{name} is not that of layer {number}"
    return ""


def found_layers(a: TensorSource, b: TensorSource) -> dict[int, int]:
    """For each layer of `b` that is one of `a` bit for bit, which: in rising order where several would do."""
    ours, theirs = by_layer(list(a.names())), by_layer(list(b.names()))
    numbers = sorted(number for number in ours if number is not None)
    found: dict[int, int] = {}
    last = -1
    for other in sorted(number for number in theirs if number is not None):
        fits = [n for n in numbers if not same_layer(a, n, b, other, theirs[other])]
        if fits:
            found[other] = last = next((number for number in fits if number > last), fits[0])
    return found


def cuts_of(a: TensorSource, b: TensorSource, names: Sequence[str]) -> dict[str, Cut] | None:
    """The tensors that got shorter along one dimension; None where one has another shape in any other way."""
    found = {}
    for name in names:
        before, after = a.layout(name)[1], b.layout(name)[1]
        if before == after:
            continue
        differ = [place for place, (x, y) in enumerate(zip(before, after, strict=False)) if x != y]
        if len(before) != len(after) or len(differ) != 1 or after[differ[0]] > before[differ[0]]:
            return None
        found[name] = Cut(differ[0], before[differ[0]], after[differ[0]])
    return found


def kept_parts(a: TensorSource, b: TensorSource, cuts: Mapping[str, Cut], parts: int | None = None) -> Kept:
    """Which parts of a layer are left, such that every one of its tensors agrees, bit for bit.

    There are `parts` of them, or as many as all tensors can be divided into. Parts that are equal in all tensors could
    be either; the first is taken.
    """
    fewest = math.gcd(*(cut.before for cut in cuts.values()))
    count = parts if parts and fewest % parts == 0 else fewest
    if any(cut.after * count % cut.before for cut in cuts.values()):
        return Kept(amiss=f"no whole number of its {count} parts is left")
    left = {cut.after * count // cut.before for cut in cuts.values()}
    if len(left) != 1:
        return Kept(amiss="its tensors lost unequal numbers of parts")
    (stay,) = left
    before = _parts([(a.tensor(name), cut.dimension) for name, cut in sorted(cuts.items())], count)
    after = _parts([(b.tensor(name), cut.dimension) for name, cut in sorted(cuts.items())], stay)
    kept, place = [], 0
    for number, part in enumerate(after):
        while place < count and before[place] != part:
            place += 1
        if place == count:
            return Kept(amiss=f"part {number} of what is left is none of the {count} that there were, in their order")
        kept.append(place)
        place += 1
    return Kept(count, tuple(kept))


def _parts(tensors: Sequence[tuple[Tensor, int]], count: int) -> list[bytes]:
    """A digest of each of `count` parts over all tensors, each cut along its dimension."""
    hashers = [blake3() for _ in range(count)]
    for tensor, dimension in tensors:
        rows = np.moveaxis(tensor.array(), dimension, 0)
        raw = memoryview(rows.tobytes())
        size = len(raw) // count
        for number, hasher in enumerate(hashers):
            hasher.update(raw[number * size : (number + 1) * size])
    return [hasher.digest() for hasher in hashers]
