"""A reliability diagram: how often a model was right where it was so sure (DeGroot and Fienberg 1983), as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mreg.cli.plot import NoPlotting
from mreg.registry.errors import Refused


def draw(path: Path, title: str, reliability: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write a picture with a panel for each set of bins; a bin has `n`, `confidence` and `accuracy`.

    On the diagonal a model is as sure as it is right, below it surer. Raises NoPlotting, and Refused where there is no
    such format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPlotting("drawing a plot needs matplotlib", fix="pip install 'mreg[plot]'") from error
    figure = Figure(figsize=(4.5 * len(reliability), 4.5), layout="constrained")
    panels = figure.subplots(1, len(reliability), sharey=True, squeeze=False)[0]
    # The log keeps facts in the order of their names.
    ordered = sorted(reliability.items(), key=lambda one: one[0] != "before")
    for panel, (name, bins) in zip(panels, ordered, strict=True):
        filled = [(place, one) for place, one in enumerate(bins) if one["n"]]
        total = sum(one["n"] for one in bins)
        gap = sum(one["n"] / total * abs(one["accuracy"] - one["confidence"]) for _, one in filled)
        middles = [(place + 0.5) / len(bins) for place, _ in filled]
        panel.bar(middles, [one["accuracy"] for _, one in filled], width=0.9 / len(bins), label="accuracy")
        panel.bar(middles, [one["n"] / total for _, one in filled], width=0.3 / len(bins), label="share of answers")
        panel.plot([0, 1], [0, 1], linestyle="--", color="gray")
        panel.plot([one["confidence"] for _, one in filled], [one["accuracy"] for _, one in filled], "o", color="black")
        panel.set_title(f"{name}: ECE {gap:.3f}".replace("$", r"\$"))
        panel.set_xlabel("confidence")
        panel.set_xlim(0, 1)
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    panels[0].legend(loc="upper left")
    figure.suptitle(title.replace("$", r"\$"))
    try:
        figure.savefig(path)
    except ValueError as error:
        raise Refused(f"{path} is of no format that can be drawn", fix="give a name in .png, .svg or .pdf") from error
