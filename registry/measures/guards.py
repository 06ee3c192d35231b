"""Guards: what a version has to be no worse than, as a line of text: `perplexity(general) <= 1.05 * source`. Pure.

    METRIC[(DATASET[, option=value …])]  <= < >= >  [NUMBER *] source|parent|REV  or  NUMBER

`source` is the version that it was made from, or where a ref was before it moves; `parent` is its first parent.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from mreg.registry.errors import MregError
from mreg.registry.measures import metrics

Operator = Literal["<=", "<", ">=", ">"]

EXAMPLE = "write it as in 'perplexity(general) <= 1.05 * source' or 'accuracy(test) >= 0.9'"

_GUARD = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w-]*)\s*(?:\((?P<inside>[^()]*)\))?\s*(?P<operator><=|>=|<|>)(?P<right>[^<>=]+)",
    re.ASCII,
)
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TIMES = re.compile(rf"(?:(?P<number>{_NUMBER})\s*\*\s*)?(?P<other>[^\s*]+)", re.ASCII)
_WORDS = {
    "<=": "at most {} is allowed",
    "<": "less than {} is allowed",
    ">=": "at least {} is needed",
    ">": "more than {} is needed",
}
_ALIKE = {
    "<=": "no more is allowed",
    "<": "less is demanded",
    ">=": "no less is allowed",
    ">": "more is demanded",
}


class MalformedGuard(MregError):
    """A guard cannot be read."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Guard:
    """`metric` over `data`, held by `operator` against `factor` times that of `other`, or against `factor` alone.

    `data` is the name of a dataset, or of a task where the metric is `task`.
    """

    metric: str
    data: str | None
    options: tuple[tuple[str, Any], ...]
    operator: Operator
    factor: float
    other: str | None

    @property
    def measured(self) -> str:
        """What it measures: `perplexity(general)`."""
        inside = [*([self.data] if self.data else []), *(f"{name}={_spelled(value)}" for name, value in self.options)]
        return f"{self.metric}({', '.join(inside)})" if inside else self.metric

    def __str__(self) -> str:
        if self.other is None:
            bound = number(self.factor)
        else:
            bound = self.other if self.factor == 1 else f"{number(self.factor)} * {self.other}"
        return f"{self.measured} {self.operator} {bound}"

    def holds(self, value: float | None, reference: float | None = None) -> bool:
        """Whether a value is good enough; what is no number never is. `reference` is the value of `other`."""
        if value is None or math.isnan(value) or (self.other is not None and reference is None):
            return False
        bound = self.factor if reference is None or self.other is None else self.factor * reference
        compared: dict[str, bool] = {
            "<=": value <= bound,
            "<": value < bound,
            ">=": value >= bound,
            ">": value > bound,
        }
        return compared[self.operator]

    def words(self, value: float | None, reference: float | None = None, named: str = "") -> str:
        """By how much it is kept or broken; `named` is the version whose value `reference` is."""
        if value is None:
            return f"{self.measured} is not a number"
        told = f"{self.measured} is {number(value, 3)}"
        if self.other is None:
            return f"{told}; {_WORDS[self.operator].format(number(self.factor))}"
        times_allowed = f"{number(self.factor)} ×"  # noqa: RUF001  as people write it
        allowed = _ALIKE[self.operator] if self.factor == 1 else _WORDS[self.operator].format(times_allowed)
        if reference is None:
            return f"{told}, that of {named} is not a number; {allowed}"
        ratio = number(value / reference, 3) if reference else ""
        times = f"{ratio} × that of {named} ({number(reference, 3)})" if reference else ""  # noqa: RUF001
        return f"{told}, {times or f'that of {named} is 0'}; {allowed}"


def parse(text: str) -> Guard:
    """The guard that a text means. Raises MalformedGuard, and UnknownMetric with the nearest name."""
    found = _GUARD.fullmatch(text)
    if found is None:
        raise MalformedGuard(f"{text!r} is no guard", fix=EXAMPLE)
    name = found["metric"]
    measure = None if name == metrics.TASK else metrics.metric(name)
    data, options = _inside(found["inside"] or "", text)
    if data is None and (measure is None or measure.data):
        what = "a task" if measure is None else "a dataset"
        raise MalformedGuard(f"{name} in {text!r} is measured on {what}", fix=f"name it: {name}(NAME)")
    if data is not None and measure is not None and not measure.data:
        raise MalformedGuard(f"{name} in {text!r} needs no dataset", fix=f"write {name} alone")
    factor, other = _right(found["right"].strip(), text)
    if other is not None and measure is not None and measure.against:
        raise MalformedGuard(
            f"{name} compares with the source itself", fix=f"hold it against a number: {name}(…) <= 0.1"
        )
    operator: Any = found["operator"]
    return Guard(name, data, options, operator, factor, other)


def number(value: float, digits: int = 6) -> str:
    """A number as people read it: so many digits, the whole part never cut."""
    if not math.isfinite(value):
        return str(value)
    whole = len(str(int(abs(value))))
    return f"{value:.{max(digits, whole)}g}"


def _inside(inside: str, text: str) -> tuple[str | None, tuple[tuple[str, Any], ...]]:
    data: str | None = None
    options: dict[str, Any] = {}
    for place, part in enumerate(filter(None, map(str.strip, inside.split(",")))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if equals and name and value and name not in options:
            options[name.replace("-", "_")] = _value(value)
        elif not equals and place == 0:
            data = part
        else:
            raise MalformedGuard(f"{part!r} in {text!r} is no option", fix="write NAME=VALUE after the dataset")
    return data, tuple(sorted(options.items()))


def _right(right: str, text: str) -> tuple[float, str | None]:
    if re.fullmatch(rf"-?{_NUMBER}", right, re.ASCII):
        return float(right), None
    turned = re.fullmatch(rf"([^\s*]+)\s*\*\s*({_NUMBER})", right, re.ASCII)
    found = _TIMES.fullmatch(f"{turned[2]} * {turned[1]}" if turned else right)
    if found is None or re.match(r"[-+.\d]", found["other"]):
        raise MalformedGuard(f"{right!r} in {text!r} is nothing to hold against", fix=EXAMPLE)
    return float(found["number"] or 1), found["other"]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _spelled(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
