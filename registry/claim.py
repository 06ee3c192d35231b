"""A claim about a step, and the step as its record and its weights tell it. Pure but for reading tensors.

`proved`: no other account of these weights is left, within rounding. `consistent`: they are as the step would leave
them, which others might have done too. `contradicted`: the step cannot have left these weights. `not-checkable`: only
doing it again can tell. Each claim comes with the number that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mreg.registry import evidence
from mreg.registry.weight_sources import TensorSource

Verdict = Literal["proved", "consistent", "contradicted", "not-checkable"]


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it; `evidence` is for people and names the tensor and the number that decide."""

    what: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Made:
    """A step as its record tells it, and the weights before and after it.

    `inputs` maps a role to its models; `configs` has their parsed adapter_config.json where they are adapters;
    `config` is that of the output.
    """

    transform: str
    params: Mapping[str, Any]
    facts: Mapping[str, Any]
    inputs: Mapping[str, tuple[TensorSource, ...]]
    configs: Mapping[str, Mapping[str, Any]]
    output: TensorSource
    config: Mapping[str, Any]
    is_adapter: bool

    @property
    def source(self) -> TensorSource:
        """The model that was worked on; where that was an adapter, its base."""
        return self.inputs["base" if "source" in self.configs and "base" in self.inputs else "source"][0]


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
