"""`mreg compare`: versions side by side in size, speed and quality, and which of them are worth having."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import scored, screen, text
from mreg.cli.command import Call, Command

if TYPE_CHECKING:
    from mreg.registry.measures.scores import Score
    from mreg.registry.measures.tradeoff import Column

MOST = 8
"""Commands that are shown for what is missing."""


@click.command(
    cls=Command,
    short_help="Hold versions side by side.",
    example="mreg compare v1 v2 v3\nmreg compare base chat/int8 chat/int4 --metric perplexity --plot tradeoff.png",
)
@click.argument("revs", nargs=-1, required=True, metavar="REV...", help="The versions.")
@click.option("--metric", "wanted", multiple=True, metavar="NAME", help="Only these; repeat it for more.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw size against the first quality into a .png."
)
@click.pass_obj
def compare(call: Call, revs: tuple[str, ...], wanted: tuple[str, ...], plot: Path | None) -> None:
    """Compare versions in size, speed and quality, by the scores that `mreg eval` recorded.

    A star marks the Pareto front: versions that no other is as good as in everything and better in something, over what
    all of them have. What is missing is listed with the command that measures it.
    """
    from mreg.registry.measures import metrics, tradeoff

    for name in wanted:
        metrics.metric(name)
    with call.open() as registry:
        versions = list({version.digest: version for version in map(registry.version, revs)}.values())
        found = registry.scores(*versions)
        counted = registry.counted(*versions)
        named = {version.digest: name for name, version in registry.refs().items()}
    names = [version.name for version in versions]
    columns = [*tradeoff.columns(counted), *tradeoff.columns(found, wanted)]
    over = tradeoff.objectives(names, columns)
    front = tradeoff.front(names, over) if len(over) > 1 and len(names) > 1 else frozenset()
    axes = _axes(columns)
    if plot is not None:
        _draw(plot, names, axes, front)
    refs = {version.name: named.get(version.digest, "") for version in versions}
    missing = _missing(names, columns)
    if call.json:
        screen.emit(_document(names, refs, columns, over, front, missing))
        return
    _table(names, refs, columns, front)
    if axes is not None:
        _sketch(names, axes, front)
    if front:
        screen.line(f"\n* on the front over {', '.join(text.clean(column.title) for column in over)}")
    if missing:
        screen.line(f"\n{screen.ink('missing', bold=True)}")
        commands = list(dict.fromkeys(f"  {one['command']}" for one in missing))
        screen.lines(commands[:MOST])
        if len(commands) > MOST:
            screen.line(f"  … and {len(commands) - MOST} more; --json has them all")
    if len(columns) == len(counted) / len(names):
        screen.hint(f"nothing was measured yet: mreg eval {' '.join(names)} --data ROWS")


def _axes(columns: Sequence[Column]) -> tuple[Column, Column] | None:
    """The size, and the first quality that was measured of two versions or more."""
    quality = [
        column
        for column in columns
        if column.metric not in ("size", "parameters", "latency", "throughput") and len(column.answers) > 1
    ]
    size = next(column for column in columns if column.metric == "size")
    return (size, quality[0]) if quality else None


def _missing(names: Sequence[str], columns: Sequence[Column]) -> list[dict[str, Any]]:
    """What was not measured; what is measured in one go has the same command."""
    gaps = [
        (name, column, next(iter(column.answers.values())))
        for column in columns
        for name in names
        if name not in column.answers
    ]
    gaps = [(name, column, like) for name, column, like in gaps if like.against != name]
    together: dict[str, dict[str, list[str]]] = {}
    for name, column, like in gaps:
        asked = together.setdefault(_options(column, like.settings, like.against), {"versions": [], "metrics": []})
        asked["versions"].append(name)
        asked["metrics"].append(_asked(column.metric))

    def command(column: Column, like: Score) -> str:
        options = _options(column, like.settings, like.against)
        asked = together[options]
        return " ".join(["mreg eval", *dict.fromkeys([*asked["versions"], *asked["metrics"]]), options]).strip()

    return [
        {"version": name, "metric": column.metric, "data": column.data, "command": command(column, like)}
        for name, column, like in gaps
    ]


_OPTIONS = ("max_length", "max_rows", "batch_size", "dtype", "bins", "repeats", "num_fewshot", "threads")
_USUAL = {"max_length": 512, "batch_size": 4, "dtype": "auto", "bins": 15, "repeats": 10}


def _asked(metric: str) -> str:
    task, slash, _ = metric.partition("/")
    return f"--task {text.clean(task)}" if slash else f"--metric {metric}"


def _options(column: Column, settings: dict[str, Any], against: str | None) -> str:
    """The options that measure a version as another was measured."""
    parts = [f"--data {text.clean(column.data)}"] if column.data else []
    parts += [f"--against {against}"] if against else []
    parts += [
        f"--{option.replace('_', '-')} {settings[option]}"
        for option in _OPTIONS
        if settings.get(option) is not None and settings[option] != _USUAL.get(option)
    ]
    parts += ["--include-path DIR"] if settings.get("task_files") else []
    parts += ["--chat"] if settings.get("apply_chat_template") else []
    return " ".join(parts)


def _table(names: Sequence[str], refs: dict[str, str], columns: Sequence[Column], front: frozenset[str]) -> None:
    heads = [screen.Column("version"), screen.Column("ref"), screen.Column("")]
    heads += [screen.Column(text.clean(column.title), right=True) for column in columns]
    rows = [
        [
            screen.ink(name, "yellow"),
            screen.ink(text.clean(refs[name]), "green"),
            screen.ink("*" if name in front else " ", bold=True),
            *(_cell(column, name) for column in columns),
        ]
        for name in names
    ]
    screen.table(heads, rows)


def _cell(column: Column, name: str) -> str:
    score = column.answers.get(name)
    if score is not None:
        return scored.value(column.metric, score.value)
    like = next(iter(column.answers.values()))
    return "-" if like.against == name else screen.ink("missing", "magenta")


def _placed(names: Sequence[str], axes: tuple[Column, Column]) -> dict[str, tuple[float, float]]:
    pairs = {name: (axes[0].value(name), axes[1].value(name)) for name in names}
    return {name: (x, y) for name, (x, y) in pairs.items() if x is not None and y is not None}


def _sketch(names: Sequence[str], axes: tuple[Column, Column], front: frozenset[str]) -> None:
    from mreg.cli import scatter

    placed = _placed(names, axes)
    if len(placed) < 2:
        return
    points = [scatter.Point(x, y, name, name in front) for name, (x, y) in placed.items()]
    ends = [
        (scored.value(axis.metric, min(values)), scored.value(axis.metric, max(values)))
        for axis, values in zip(axes, zip(*placed.values(), strict=True), strict=True)
    ]
    screen.line()
    screen.lines(scatter.draw(points, axes[0].title, text.clean(axes[1].title), *ends))


def _draw(path: Path, names: Sequence[str], axes: tuple[Column, Column] | None, front: frozenset[str]) -> None:
    from mreg.cli import plot
    from mreg.registry.errors import Refused

    placed = _placed(names, axes) if axes is not None else {}
    if axes is None or not placed:
        raise Refused("there is nothing to plot", fix=f"measure two of them: mreg eval {' '.join(names)} --data ROWS")
    points = [(x, y, name, name in front) for name, (x, y) in placed.items()]
    plot.scatter(path, f"{axes[0].title} (bytes)", axes[1].title, points)


def _document(
    names: Sequence[str],
    refs: dict[str, str],
    columns: Sequence[Column],
    over: Sequence[Column],
    front: frozenset[str],
    missing: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "versions": [
            {
                "version": name,
                "ref": refs[name] or None,
                "front": name in front if front else None,
                "scores": {
                    column.title: column.answers[name].document() for column in columns if name in column.answers
                },
            }
            for name in names
        ],
        "objectives": [column.title for column in over],
        "missing": list(missing),
    }
