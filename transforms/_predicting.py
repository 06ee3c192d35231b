"""What a transform's prediction of its output is made of: tensors that its inputs share with it, and their digests.

Everything here and in the files that predict runs in the registry's own process: numpy, and no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.store.prediction import Prediction

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import TensorSource

FLOATS = ("F32", "F16", "BF16")
"""Dtypes in which predictions compute."""

NARROW = ("F16", "BF16")
"""Of these, those in which other tools compute where nobody tells them to take a wider one."""

IN_F32: Mapping[str, Any] = {"arithmetic": "F32"}


def prediction(operation: str, inputs: Iterable[tuple[TensorSource, str]], params: Mapping[str, Any]) -> Prediction:
    """An operation on tensors of models."""
    return Prediction(operation, tuple(digest_of(source, name) for source, name in inputs), params)


def digest_of(source: TensorSource, name: str) -> Digest:
    """The digest of a tensor; it is read where nobody knows it."""
    if (known := source.digest(name)) is not None:
        return known
    tensor = source.tensor(name)
    hasher = digests.tensor_hasher(tensor.dtype, tensor.shape)
    hasher.update(tensor.data)
    return Digest(hasher.hexdigest())


def shared(output: TensorSource, models: Sequence[TensorSource], known: Sequence[str] = FLOATS) -> Iterator[str]:
    """The tensors of an output that all models have too, in the same shape and in dtypes that are known."""
    held = [set(model.names()) for model in models]
    for name in output.names():
        if all(name in names for names in held):
            layouts = [source.layout(name) for source in (output, *models)]
            if len({shape for _, shape in layouts}) == 1 and all(dtype in known for dtype, _ in layouts):
                yield name
