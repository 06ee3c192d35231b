"""A piece of a few matrices of every version: enough to tell which are near a model, and which few add up to it.

Reading whole versions would take as long as there are versions; of a piece one chunk is decoded, once for all versions
that have the tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
from mreg.registry.digests import Digest
from mreg.registry.models.layer_names import number_of
from mreg.registry.models.manifest import Manifest, TensorEntry
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence
from mreg.registry.proof.evidence import Floats
from mreg.registry.store.objects import ObjectStore

TENSORS = 4
"""Matrices of which a piece is read."""

LENGTH = 1 << 14
"""Elements of a piece."""

ALIKE = 0.01
"""Two versions nearer to each other than this part of their way to the model count as one."""

MOST_COMBINED = 10
"""Versions of which every two and three are added up."""


class Pieces:
    """Pieces of the model, and of each version that has the same matrices."""

    def __init__(self, model: TensorSource, manifests: Mapping[Digest, Manifest], store: ObjectStore) -> None:
        self._store = store
        self._read: dict[Digest, Floats] = {}
        names = sorted(
            name
            for name in model.names()
            if len(model.layout(name)[1]) == 2 and model.layout(name)[0] in evidence.DTYPES
        )
        inside = [name for name in names if number_of(name) is not None] or names
        places = np.linspace(0, len(inside) - 1, min(TENSORS, len(inside))).round().astype(int)
        self.names = [inside[place] for place in dict.fromkeys(places.tolist())]
        shapes = {name: model.layout(name)[1] for name in self.names}
        parts = [model.tensor(name).array().reshape(-1)[:LENGTH].astype(np.float64) for name in self.names]
        self.model: Floats = np.concatenate(parts) if parts else np.zeros(0)
        self.versions: dict[Digest, Floats] = {}
        for digest, manifest in manifests.items():
            held = {tensor.name: tensor for tensor in manifest.tensors()}
            found = [held.get(name) for name in self.names]
            if self.names and all(
                each is not None and each.shape == shapes[each.name] and each.dtype in evidence.DTYPES for each in found
            ):
                self.versions[digest] = np.concatenate([self._piece(each) for each in found if each is not None])

    def distance(self, digest: Digest) -> float:
        """How far a version is from the model, relatively; infinite for one of other shapes."""
        held = self.versions.get(digest)
        return float("inf") if held is None else _apart(held, self.model)

    def adding_up(self, digests: Sequence[Digest], count: int) -> list[tuple[Digest, ...]]:
        """So many of these versions, oldest first as given, that come near the model when they are weighed and added;
        the nearest first. Of versions that are nearly one, the oldest stands for all."""
        chosen: list[Digest] = []
        for digest in digests:
            if digest in self.versions and not any(
                _apart(self.versions[digest], self.versions[other]) < ALIKE * self.distance(digest) for other in chosen
            ):
                chosen.append(digest)
        chosen = sorted(chosen, key=self.distance)[:MOST_COMBINED]
        order = {digest: place for place, digest in enumerate(digests)}
        chosen.sort(key=order.__getitem__)
        rows = np.stack([*(self.versions[digest] for digest in chosen), self.model]) if chosen else np.zeros((0, 0))
        gram = rows @ rows.T
        found = []
        for some in itertools.combinations(range(len(chosen)), count):
            inner, towards = gram[np.ix_(some, some)], gram[list(some), -1]
            weights = np.linalg.lstsq(inner, towards, rcond=None)[0]
            left = float(gram[-1, -1] - 2 * weights @ towards + weights @ inner @ weights)
            found.append((left, tuple(chosen[place] for place in some)))
        return [some for _, some in sorted(found, key=lambda one: one[0])]

    def _piece(self, tensor: TensorEntry) -> Floats:
        if tensor.digest not in self._read:
            with closing(self._store.content(tensor.digest)) as content:
                chunk = bytes(content.chunk(0)) if tensor.size else b""
            width = np.dtype(evidence.DTYPES[tensor.dtype]).itemsize
            whole = Tensor(tensor.dtype, (len(chunk) // width,), memoryview(chunk)).array()
            self._read[tensor.digest] = whole[:LENGTH].astype(np.float64)
        return self._read[tensor.digest]


def _apart(a: Floats, b: Floats) -> float:
    size = evidence.length(a)
    return evidence.length(b - a) / size if size else float("inf")
