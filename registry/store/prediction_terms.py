"""What a prediction is asked for, its params read strictly: none missing, none besides, none of another type.

Params come from a file, perhaps a damaged one or one of a later version, so all that is wrong is an UnknownOperation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mreg.registry.models.weights import Array
from mreg.registry.store.prediction import Elements, UnknownOperation

LARGEST = 2**53
"""Whole numbers up to here are the same in every JSON."""


class Given:
    """The params of an operation, each to be taken once."""

    def __init__(self, operation: str, params: Mapping[str, Any]) -> None:
        self._operation = operation
        self._left = dict(params)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._as_number(key, self._take(key))

    def numbers(self, key: str, count: int) -> list[float]:
        """So many finite numbers."""
        return [self._as_number(key, one) for one in self.items(key, count)]

    def whole(self, key: str, *, least: int = 0) -> int:
        """A whole number from `least` on."""
        return self._as_whole(key, self._take(key), least)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self.refusal(f"{key} is neither true nor false")
        return value

    def text(self, key: str) -> str:
        """Any text that UTF-8 can hold."""
        value = self._take(key)
        if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.refusal(f"{key} is no text")
        return value

    def choice(self, key: str, *options: str) -> str:
        """One of these words."""
        value = self._take(key)
        if value not in options:
            raise self.refusal(f"{key} is none of {', '.join(options)}")
        return str(value)

    def items(self, key: str, count: int | None = None) -> list[Any]:
        """A list, of so many items if said."""
        value = self._take(key)
        if not isinstance(value, (list, tuple)) or (count is not None and len(value) != count):
            raise self.refusal(f"{key} is no list{'' if count is None else f' of {count}'}")
        return list(value)

    def within(self, key: str, value: Any) -> Given:
        """An item of a list that is an object itself."""
        if not isinstance(value, Mapping):
            raise self.refusal(f"{key} holds something that is no object")
        return Given(self._operation, value)

    def end(self) -> None:
        """No more is known of."""
        if self._left:
            raise self.refusal(f"{min(self._left)} is no param of it")

    def refusal(self, why: str) -> UnknownOperation:
        """What to raise."""
        return UnknownOperation(f"the operation {self._operation!r} is not one that this version of mreg knows: {why}")

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise self.refusal(f"{key} is missing")
        return self._left.pop(key)

    def _as_number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e308:
            raise self.refusal(f"{key} is no finite number")
        if math.isnan(number := float(value)):
            raise self.refusal(f"{key} is no finite number")
        return number

    def _as_whole(self, key: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise self.refusal(f"{key} is no whole number from {least} on")
        return value


@dataclass(frozen=True, slots=True)
class Asked:
    """The elements `start` to before `stop` of a tensor of this dtype and shape, by an operation on inputs."""

    operation: str
    params: Given
    inputs: Sequence[Elements]
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def expect(self, count: int) -> None:
        """Refuse another number of inputs."""
        if len(self.inputs) != count:
            raise self.params.refusal(f"it takes {count} inputs, not {len(self.inputs)}")

    def expect_dtype(self, dtype: str, known: Sequence[str]) -> None:
        """Refuse a dtype other than these."""
        if dtype not in known:
            raise self.params.refusal(f"it does not compute in {dtype}")

    def expect_shape(self, place: int, shape: tuple[int, ...]) -> None:
        """Refuse an input of another shape."""
        if tuple(self.inputs[place].shape) != shape:
            raise self.params.refusal(f"input {place} has the shape {list(self.inputs[place].shape)}")

    def alike(self, known: Sequence[str]) -> list[Array]:
        """The range out of each input, which all have this shape and one of these dtypes."""
        for place, one in enumerate(self.inputs):
            self.expect_shape(place, self.shape)
            self.expect_dtype(one.dtype, known)
        return [one.read(self.start, self.stop) for one in self.inputs]

    def matrix(self) -> tuple[int, int]:
        """Rows and columns. Refuses what has others."""
        if len(self.shape) != 2:
            raise self.params.refusal(f"it takes matrices, not the shape {list(self.shape)}")
        return self.shape[0], self.shape[1]
