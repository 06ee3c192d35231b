"""How a tensor follows from others, element by element: what a stored tensor is a residual against.

The vocabulary is fixed and part of the format: an object that was written with a prediction is read with the same one
for ever, so what an operation gives must never change by a bit. A new way to predict is a new name.

Every command that reads an object imports this module, so numpy and the operations are imported when something is
predicted, not before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mreg.registry.digests import Digest

if TYPE_CHECKING:
    from mreg.registry.models.weights import Array


@dataclass(frozen=True, slots=True)
class Prediction:
    """An operation of the vocabulary on stored tensors. `params` are JSON; numbers survive it bit for bit."""

    operation: str
    inputs: tuple[Digest, ...]
    params: Mapping[str, Any] = field(default_factory=dict)


class Elements(Protocol):
    """A stored tensor that can be read in part. `dtype` as safetensors names it."""

    dtype: str
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array:
        """The elements from `start` to before `stop`, row by row, flat, in numpy's dtype of the same bits."""


class UnknownOperation(ValueError):
    """Nothing here knows this operation, or its params or inputs are not what it takes. Says why."""


def predict(
    operation: str,
    params: Mapping[str, Any],
    inputs: Sequence[Elements],
    dtype: str,
    shape: tuple[int, ...],
    start: int,
    stop: int,
) -> Array:
    """The predicted elements `start` to before `stop` of a tensor of this dtype and shape, flat.

    Any range gives the same bits as the whole. Raises UnknownOperation.
    """
    from mreg.registry.store.prediction_operations import OPERATIONS
    from mreg.registry.store.prediction_rounding import sound_arithmetic
    from mreg.registry.store.prediction_terms import Asked, Given

    if operation not in OPERATIONS:
        raise UnknownOperation(f"this version of mreg has no operation {operation!r}")
    given = Given(operation, params)
    if not 0 <= start <= stop <= math.prod(shape):
        raise given.refusal(f"a tensor of the shape {list(shape)} has no elements {start} to {stop}")
    with sound_arithmetic():
        return OPERATIONS[operation](Asked(operation, given, inputs, dtype, tuple(shape), start, stop))
