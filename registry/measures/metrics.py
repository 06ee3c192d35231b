"""What can be measured of a version: the names of metrics, what each needs, and which way is better. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mreg.registry.errors import MregError
from mreg.registry.revs import suggest

TASK = "task"
"""What guards call a task of the evaluation harness: `task(arc_easy) >= 0.95 * source`."""

CLASSIFIERS = ("classifier", "token classifier")
"""Kinds of model that choose a label: of a text, and of each word of it."""

_TEXT = ("max_length", "max_rows", "dtype")


@dataclass(frozen=True, slots=True)
class Metric:
    """One measurement. `settings` names the options that its value depends on; `version` is raised when it changes.

    `data` says that it is taken over the rows of a dataset, `against` that it compares with another version, `machine`
    that it says as much of this machine as of the model. `of` are the kinds of model that it is defined for.
    """

    summary: str
    unit: str
    better: Literal["lower", "higher"]
    settings: tuple[str, ...] = _TEXT
    data: bool = True
    against: bool = False
    machine: bool = False
    of: tuple[str, ...] = ("causal", "classifier", "token classifier")
    version: int = 1


METRICS: Mapping[str, Metric] = {
    "perplexity": Metric("exp of the mean NLL of a token", "", "lower", of=("causal",)),
    "nll": Metric("mean negative log-likelihood, of a token or of a label, in nats", "nats", "lower"),
    "accuracy": Metric("share of labels, or of next tokens, that are the most probable", "", "higher"),
    "f1": Metric("F1 of the labels, averaged over classes", "", "higher", of=CLASSIFIERS),
    "ece": Metric("expected calibration error of the most probable label or token", "", "lower", (*_TEXT, "bins")),
    "brier": Metric("Brier score of the label probabilities", "", "lower", of=CLASSIFIERS),
    "kl": Metric("KL divergence from the other version, of a token or of a label, in nats", "nats", "lower",
                 against=True),
    "agreement": Metric("share of labels or tokens on which both versions decide alike", "", "higher", against=True),
    "latency": Metric("median time for one new token, or for one row", "s", "lower", ("dtype", "repeats"), data=False,
                      machine=True),
    "throughput": Metric("tokens read in a second, in batches", "tokens/s", "higher",
                         ("dtype", "repeats", "batch_size"), data=False, machine=True),
    "size": Metric("bytes of all files, with the base of an adapter", "bytes", "lower", (), data=False),
    "parameters": Metric("how many weights, with the base of an adapter", "", "lower", (), data=False),
}  # fmt: skip

KNOWN = frozenset({"size", "parameters"})
"""What the log tells without running anything."""

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "causal": ("perplexity",),
    **dict.fromkeys(CLASSIFIERS, ("accuracy", "f1", "nll", "ece", "brier")),
}
"""What is measured on rows when no metric is asked for."""


class UnknownMetric(MregError):
    """No metric has this name."""

    exit_code = 4


def metric(name: str) -> Metric:
    """The metric called so; one of a task is `task/name`. Raises UnknownMetric with the nearest."""
    if "/" in name:
        return Metric("what the task says", "", "lower" if _is_loss(name) else "higher", data=False)
    if name not in METRICS:
        listed = f"there are {', '.join(METRICS)}"
        raise UnknownMetric(f"no metric is called {name!r}", fix=suggest(name, [*METRICS, TASK], listed))
    return METRICS[name]


_ENDS = {
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "token classifier",
}


def kind_of(architecture: str) -> str:
    """What kind of model a class of transformers is: `causal`, `classifier`, `token classifier` or `other`."""
    return next((kind for end, kind in _ENDS.items() if architecture.endswith(end)), "other")


def _is_loss(name: str) -> bool:
    return any(part in name.rpartition("/")[2] for part in ("perplexity", "loss", "bits_per", "brier", "error"))
