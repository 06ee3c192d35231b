"""A claim about a step, and the step as its record and its weights tell it. Pure but for reading tensors.

`proved`: no other account of these weights is left, within rounding. `consistent`: they are as the step would leave
them, which others might have done too. `contradicted`: the step cannot have left these weights. `not-checkable`: only
doing it again can tell. Each claim comes with the number that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mreg.registry.errors import MregError
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence

Verdict = Literal["proved", "consistent", "contradicted", "not-checkable"]


class BadRecord(MregError):
    """What a step is said to have been told cannot be read, so nothing can be held against it."""

    exit_code = 5


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it; `evidence` is for people and names the tensor and the number that decide."""

    what: str
    verdict: Verdict
    evidence: str


def _unread(path: str) -> bytes:
    raise BadRecord(f"{path} cannot be read", fix="import the version again")


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights of a model: its parsed config.json, the digests of its other files by path, and how
    to read one of them."""

    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[str], bytes] = _unread


@dataclass(frozen=True)
class Made:
    """A step as its record tells it, and the weights before and after it.

    `inputs` maps a role to its models; `configs` has their parsed adapter_config.json where they are adapters;
    `config` is that of the output. `beside` has what lies beside the models of a role, in their order, as far as it is
    known, and beside the output under `output`. `gguf` is the output's file of that kind, where it has one.
    """

    transform: str
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    inputs: Mapping[str, tuple[TensorSource, ...]]
    configs: Mapping[str, Mapping[str, Any]]
    output: TensorSource
    config: Mapping[str, Any]
    is_adapter: bool
    seed: int | None = None
    beside: Mapping[str, tuple[Beside, ...]] = field(default_factory=dict)
    gguf: Path | None = None

    def config_of(self, role: str, place: int = 0) -> Mapping[str, Any]:
        """The config.json of an input; empty where it is not known."""
        held = self.beside.get(role, ())
        return held[place].config if place < len(held) else {}

    def number(self, name: str, default: float) -> float:
        """A number among the params. Raises BadRecord."""
        return _number(name, default if self.params.get(name) is None else self.params[name])

    def numbers(self, name: str, default: Sequence[float]) -> list[float]:
        """A list of numbers among the params; one alone counts as a list. Raises BadRecord."""
        given = self.params.get(name)
        if given is None or given in ("", [], ()):
            return [float(one) for one in default]
        return [_number(name, one) for one in (given if isinstance(given, (list, tuple)) else [given])]

    @property
    def source(self) -> TensorSource:
        """The model that was worked on; where that was an adapter, its base."""
        return self.inputs["base" if "source" in self.configs and "base" in self.inputs else "source"][0]


def _number(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise BadRecord(f"{name} is recorded as {given!r}", fix="record the step with a number there")
    return float(given)


def common(before: TensorSource, after: TensorSource) -> tuple[list[str], str]:
    """The tensors of a step that keeps them all, and what is amiss where it did not."""
    ours, theirs = set(before.names()), set(after.names())
    lost, come = sorted(ours - theirs), sorted(theirs - ours)
    amiss = f"{lost[0]} is gone" if lost else f"{come[0]} is new" if come else ""
    return sorted(ours & theirs), amiss


def is_same(made: Made, name: str) -> bool:
    """Whether the step left this tensor as it was."""
    known = made.source.digest(name)
    if known is not None and made.output.digest(name) is not None:
        return known == made.output.digest(name)
    return evidence.same_bits(made.source.tensor(name), made.output.tensor(name))
