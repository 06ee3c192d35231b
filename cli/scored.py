"""How scores and verdicts of guards read, in every command that shows some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mreg.cli import screen, text

if TYPE_CHECKING:
    from mreg.registry.measures.scores import Score


def value(metric: str, given: float | None) -> str:
    """A value in the unit of its metric."""
    if given is None:
        return "not a number"
    if metric == "size":
        return text.size(round(given))
    if metric == "parameters":
        return text.amount(given)
    if metric == "latency":
        return f"{given * 1000:.3g} ms"
    if metric == "throughput":
        return f"{text.amount(given)} tokens/s"
    return text.number(given)


def interval(metric: str, low: float | None, high: float | None) -> str:
    """`20.1 to 22.3`, or nothing."""
    return "" if low is None or high is None else f"{value(metric, low)} to {value(metric, high)}"


def about(score: Mapping[str, Any]) -> str:
    """A score of `mreg show --json` on one line: value, interval, n, and where it is tied to a machine, that."""
    between = interval(score["metric"], score["low"], score["high"])
    parts = [
        value(score["metric"], score["value"]) + (f" ({between})" if between else ""),
        text.plural(score["n"], text.clean(score["unit_of_n"]).removesuffix("s")),
        on(score["settings"]) if score["machine_dependent"] else "",
    ]
    return ", ".join(part for part in parts if part)


def on(settings: Mapping[str, Any]) -> str:
    """The machine that a measurement of speed was taken on."""
    return f"on {text.clean(str(settings.get('host')))} with {text.plural(settings.get('threads') or 0, 'thread')}"


def name(score: Mapping[str, Any]) -> str:
    """`perplexity(general)`, or `kl(general) from v1`, of a score of `mreg show --json`."""
    data, against = score["data"], score["against"]
    measured = text.clean(score["metric"]) + (f"({text.clean(data)})" if data else "")
    return f"{measured} from {against}" if against else measured


def verdict(holds: bool, words: str) -> str:
    """What a guard said, coloured."""
    return screen.ink(text.clean(words), None if holds else "red")


def better(metric: str, before: float, after: float) -> str:
    """`green` or `red` for a change for the better or the worse, nothing for none."""
    from mreg.registry.measures import metrics

    if before == after:
        return ""
    return "green" if (after < before) == (metrics.metric(metric).better == "lower") else "red"


def document(score: Score, *, cached: bool) -> dict[str, Any]:
    """A score that was just asked for, for `--json`."""
    return {**score.document(), "cached": cached}
