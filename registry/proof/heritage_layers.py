"""A model put together from the layers of several versions, as their digests tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mreg.registry.digests import Digest
from mreg.registry.models.layer_names import number_of, within
from mreg.registry.models.manifest import Manifest

Layer = tuple[tuple[str, Digest], ...]
"""The tensors of a layer, by the names within it."""


@dataclass(frozen=True)
class Stack:
    """The versions whose layers a model has, in the order in which they come, and where each layer comes from."""

    versions: tuple[Digest, ...]
    layers: tuple[tuple[Digest, int], ...]

    def told(self, names: Mapping[Digest, str]) -> str:
        """`layers 0-1 of v1, 1-3 of v4`."""
        runs: list[list[tuple[Digest, int]]] = []
        for digest, number in self.layers:
            if runs and runs[-1][-1] == (digest, number - 1):
                runs[-1].append((digest, number))
            else:
                runs.append([(digest, number)])
        spans = (f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)
        return "layers " + ", ".join(f"{span} of {names[run[0][0]]}" for span, run in zip(spans, runs, strict=True))


def stacked(tensors: Mapping[str, Digest], versions: Mapping[Digest, Manifest]) -> Stack | None:
    """Where each layer of a model comes from, with as few versions as cover them all; None where one is new, where a
    tensor outside the layers is, or where all are one version's in their places."""
    model, outside = _split(tensors)
    if not model:
        return None
    held = {digest: _split({t.name: t.digest for t in manifest.tensors()}) for digest, manifest in versions.items()}
    where = {
        digest: {layer: number for number, layer in sorted(layers.items(), reverse=True)}
        for digest, (layers, _) in held.items()
    }
    left, chosen = set(model), list[Digest]()
    while left:
        # The first of equals is the oldest, since versions come in their order.
        best = max(where, key=lambda digest: sum(model[number] in where[digest] for number in left), default=None)
        covered = {number for number in left if best is not None and model[number] in where[best]}
        if best is None or not covered:
            return None
        chosen.append(best)
        left -= covered
    known = {(name, digest) for digest_ in chosen for name, digest in held[digest_][1].items()}
    if any(item not in known for item in outside.items()):
        return None
    layers = tuple(_source(model[number], number, chosen, where) for number in sorted(model))
    in_place = all(number == place for place, (_, number) in enumerate(layers))
    if len(chosen) == 1 and (in_place or _rises([number for _, number in layers])):
        return None
    used = tuple(dict.fromkeys(digest for digest, _ in layers))
    return Stack(used, layers)


def _source(
    layer: Layer, place: int, chosen: Sequence[Digest], where: Mapping[Digest, Mapping[Layer, int]]
) -> tuple[Digest, int]:
    found = [(digest, where[digest][layer]) for digest in chosen if layer in where[digest]]
    return next((one for one in found if one[1] == place), found[0])


def _rises(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(set(numbers))


def _split(tensors: Mapping[str, Digest]) -> tuple[dict[int, Layer], dict[str, Digest]]:
    layers: dict[int, list[tuple[str, Digest]]] = {}
    for name, digest in sorted(tensors.items()):
        number = number_of(name)
        if number is not None:
            layers.setdefault(number, []).append((within(name), digest))
    outside = {name: digest for name, digest in tensors.items() if number_of(name) is None}
    return {number: tuple(layer) for number, layer in layers.items()}, outside
