"""The curves of a run as a picture. Matplotlib draws it, an extra that reading commands do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mreg.registry.errors import MregError, Refused

Points = Sequence[tuple[float, float]]


class NoPlotting(MregError):
    """Matplotlib is not installed."""

    exit_code = 12


def draw(path: Path, title: str, curves: Mapping[str, Points]) -> None:
    """Write a picture with one panel a curve, in the format that the file's suffix says.

    Raises NoPlotting, and Refused where there is nothing to draw or no such format.
    """
    if not curves:
        raise Refused(f"{title} has no curve", fix="training steps record one; `mreg show` shows what was measured")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPlotting("drawing a plot needs matplotlib", fix="pip install 'mreg[plot]'") from error
    figure = Figure(figsize=(8, 3 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, points) in zip(panels, curves.items(), strict=True):
        panel.plot([x for x, _ in points], [y for _, y in points])
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    # The name of a version comes from strangers: a dollar would begin a formula.
    panels[0].set_title(title.replace("$", r"\$"))
    try:
        figure.savefig(path)
    except ValueError as error:
        raise Refused(f"{path} is of no format that can be drawn", fix="give a name in .png, .svg or .pdf") from error


def scatter(path: Path, x: str, y: str, points: Sequence[tuple[float, float, str, bool]]) -> None:
    """Write a picture of points `(x, y, label, marked)`, the marked ones joined by a line.

    Raises NoPlotting, and Refused where there is no such format.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPlotting("drawing a plot needs matplotlib", fix="pip install 'mreg[plot]'") from error
    figure = Figure(figsize=(7, 5), layout="constrained")
    panel = figure.subplots()
    marked = sorted((a, b) for a, b, _, on in points if on)
    panel.plot([a for a, _ in marked], [b for _, b in marked], linestyle="--", color="tab:orange", label="Pareto front")
    for a, b, label, on in points:
        panel.scatter([a], [b], color="tab:orange" if on else "tab:blue")
        panel.annotate(label.replace("$", r"\$"), (a, b), xytext=(5, 5), textcoords="offset points")
    panel.set_xlabel(x.replace("$", r"\$"))
    panel.set_ylabel(y.replace("$", r"\$"))
    panel.grid(alpha=0.3)
    if marked:
        panel.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise Refused(f"{path} is of no format that can be drawn", fix="give a name in .png, .svg or .pdf") from error
