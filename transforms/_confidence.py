"""Fitting how sure a model may be: from logits and labels to an affine map of logits, or to a map of probabilities.

Temperature, vector, matrix and Platt scaling are affine maps `logits @ matrix.T + bias`, which a model's last layer can
take in. Isotonic regression and histogram binning are not: theirs is a document that says what to do afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from mreg.registry.errors import Refused

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

FORMAT = "mreg-calibration/1"
HOTTEST = 100.0
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Affine:
    """`logits @ matrix.T + bias`, with a matrix [labels, labels]."""

    matrix: Array
    bias: Array

    def __call__(self, logits: Array) -> Array:
        """The calibrated logits [rows, labels]."""
        mapped: Array = logits @ self.matrix.T + self.bias
        return mapped


def softmax(logits: Array) -> Array:
    """Probabilities [rows, labels]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def fit_affine(method: str, logits: Array, labels: Labels, l2: float) -> Affine:
    """The map of least NLL: Guo et al. (2017) for temperature, vector and matrix, Platt (1999) for two labels."""
    count = logits.shape[1]
    if method == "temperature":
        import torch

        hot = fit_temperature(torch.from_numpy(logits), torch.from_numpy(labels))
        return Affine(np.eye(count) / hot, np.zeros(count))
    if method == "platt":
        scale, shift = fit_platt(logits[:, 1] - logits[:, 0], labels)
        return Affine(np.eye(2) * scale, np.array([-shift / 2, shift / 2]))
    return _fit_scaling(method, logits, labels, l2)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T for which softmax(logits / T) has the least NLL; logits [n, classes], labels [n].

    Raises Refused where there is none: a model that is always right could be as sure as it likes.
    """
    import torch

    if bool((logits.argmax(dim=1) == labels).all()):
        raise Refused(
            "the model is right on every row that the temperature is fitted on, so any sureness would do",
            fix="give more rows, or harder ones",
        )

    def loss(parameter: torch.Tensor) -> torch.Tensor:
        inverse = math.exp(float(parameter.detach()))
        total, slope = 0.0, 0.0
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows, right = logits[start : start + ROWS_AT_ONCE], labels[start : start + ROWS_AT_ONCE, None]
            logs = torch.log_softmax(rows * inverse, dim=1)
            told = rows.gather(1, right)
            total -= float(logs.gather(1, right).double().sum())
            slope += float(((logs.exp() * rows).sum(dim=1, keepdim=True) - told).double().sum())
        # The derivative by the logarithm of 1 / T, given by hand: logits of a language model are many.
        parameter.grad = torch.full_like(parameter, slope / len(logits) * inverse)
        return torch.tensor(total / len(logits), dtype=torch.float64)

    hot = math.exp(-float(minimize(loss, np.zeros(1))[0]))
    if not 1 / HOTTEST <= hot <= HOTTEST:
        knows = "the model tells no more of these rows than chance" if hot > 1 else "the model is hardly ever wrong"
        raise Refused(f"{knows}: no temperature fits it", fix="give other rows, or see whether their labels are right")
    return hot


def fit_platt(margins: Array, labels: Labels) -> tuple[float, float]:
    """Scale a and shift b of sigmoid(a * margin + b), with the targets that Platt gives against overfitting."""
    import torch

    given = torch.from_numpy(margins)
    positive = int(labels.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2)
    wanted = torch.from_numpy(np.where(labels == 1, high, low))

    def loss(parameter: torch.Tensor) -> torch.Tensor:
        told = parameter[0] * given + parameter[1]
        return differentiated(parameter, torch.nn.functional.binary_cross_entropy_with_logits(told, wanted))

    scale, shift = minimize(loss, np.array([1.0, 0.0]))
    return float(scale), float(shift)


def _fit_scaling(method: str, logits: Array, labels: Labels, l2: float) -> Affine:
    """Vector and matrix scaling. `l2` holds the parameters near those that change nothing (Kull et al. 2019)."""
    import torch

    given, wanted = torch.from_numpy(logits), torch.from_numpy(labels)
    count = logits.shape[1]
    start = np.concatenate([np.ones(count) if method == "vector" else np.eye(count).ravel(), np.zeros(count)])
    rest = torch.from_numpy(start)

    def loss(parameter: torch.Tensor) -> torch.Tensor:
        scale, bias = parameter[:-count], parameter[-count:]
        told = given * scale if method == "vector" else given @ scale.reshape(count, count).T
        value = torch.nn.functional.cross_entropy(told + bias, wanted) + l2 * (parameter - rest).square().sum()
        return differentiated(parameter, value)

    found = minimize(loss, start)
    scale = found[:-count]
    return Affine(np.diag(scale) if method == "vector" else scale.reshape(count, count), found[-count:])


def differentiated(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, with its gradient put where the optimizer looks for it."""
    import torch

    (parameter.grad,) = torch.autograd.grad(value, parameter)
    return value.detach()


def minimize(loss: Callable[[torch.Tensor], torch.Tensor], start: Array) -> Array:
    """The least of `loss` by L-BFGS in float64 with strong Wolfe conditions; nothing is drawn at random."""
    import torch

    parameter = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=200, tolerance_grad=1e-8, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )
    optimizer.step(lambda: loss(parameter))  # type: ignore[no-untyped-call]
    found: Array = parameter.detach().numpy()
    return found


def fit_map(method: str, probabilities: Array, labels: Labels, names: list[str], bins: int) -> dict[str, Any]:
    """The document of isotonic regression (Zadrozny and Elkan 2002) or histogram binning (2001), label by label.

    Two labels have one map, of the second one's probability; more have a map each, and are made to sum to 1.
    """
    places = [1] if len(names) == 2 else range(len(names))
    fit = _isotonic if method == "isotonic" else _histogram
    maps = [fit(probabilities[:, place], labels == place, bins) for place in places]
    return {"format": FORMAT, "method": method, "labels": names, "maps": maps}


def _isotonic(given: Array, right: npt.NDArray[np.bool_], bins: int) -> dict[str, list[float]]:
    from sklearn.isotonic import IsotonicRegression

    del bins
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(given, right.astype(np.float64))
    return {"x": fitted.X_thresholds_.tolist(), "y": fitted.y_thresholds_.tolist()}


def _histogram(given: Array, right: npt.NDArray[np.bool_], bins: int) -> dict[str, list[float]]:
    place = np.clip((given * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    hits = np.bincount(place, right.astype(np.float64), minlength=bins)
    middles = (np.arange(bins) + 0.5) / bins
    return {"y": np.where(counts > 0, hits / np.maximum(counts, 1), middles).tolist()}


def apply_map(document: Mapping[str, Any], probabilities: Array) -> Array:
    """What a document of `fit_map` makes of probabilities [rows, labels]."""
    maps = document["maps"]
    columns = [probabilities[:, 1]] if len(maps) == 1 else list(probabilities.T)
    mapped = [
        np.interp(column, one["x"], one["y"]) if "x" in one else _stepped(column, np.asarray(one["y"]))
        for column, one in zip(columns, maps, strict=True)
    ]
    if len(mapped) == 1:
        return np.stack([1 - mapped[0], mapped[0]], axis=1)
    whole = np.stack(mapped, axis=1)
    sums = whole.sum(axis=1, keepdims=True)
    shares: Array = np.where(sums > 0, whole / np.where(sums > 0, sums, 1), 1 / whole.shape[1])
    return shares


def _stepped(given: Array, values: Array) -> Array:
    steps: Array = values[np.clip((given * len(values)).astype(int), 0, len(values) - 1)]
    return steps
