"""`mreg diff`: what changed between two versions, in the recipe, the files, the weights and the scores."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.chains.recipe import StepChange
    from mreg.registry.models.comparing import Difference
    from mreg.registry.models.weight_sources import WeightsChange
    from mreg.registry.models.weights import TensorChange

MOST = 20
"""How many tensors are listed unless all are asked for."""

Rows = Mapping[str, Mapping[str, Any]]


@click.command(
    cls=Command,
    example="mreg diff v3 v5\nmreg diff prod@{1} prod --recipe\nmreg diff v3 v5 --scores --behaviour general",
)
@click.argument("a", help="The version before.")
@click.argument("b", help="The version after.")
@click.option("--recipe", is_flag=True, help="Only how they were made; reads no weights.")
@click.option("--weights", is_flag=True, help="Only the tensors.")
@click.option("--scores", is_flag=True, help="Only the scores.")
@click.option("--behaviour", metavar="FILE|NAME", help="Only what they say: run both on these rows.")
@click.option("--rows", type=click.IntRange(1), default=5, show_default=True, metavar="N",
              help="So many rows on which they differ most, for --behaviour.")  # fmt: skip
@click.option("--all", "every", is_flag=True, help=f"List every tensor, not only the {MOST} that changed most.")
@click.pass_obj
def diff(
    call: Call,
    a: str,
    b: str,
    recipe: bool,
    weights: bool,
    scores: bool,
    behaviour: str | None,
    rows: int,
    every: bool,
) -> int:
    """Compare two versions. Exits with 1 when they differ in what was asked for, with 0 when not.

    Without options, the recipe, the files and the weights are compared.
    """
    from mreg.cli import behaving

    whole = not (recipe or weights or scores or behaviour)
    # For numpy, when it is loaded: on many small matrices several threads of BLAS mostly wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    found: Difference | None = None
    made: Rows = {}
    with call.open() as registry:
        first, second = registry.version(a), registry.version(b)
        if whole or recipe or weights:
            with progress.of_items("comparing tensors") as report:
                found = registry.diff(first, second, weights=weights or whole, report=report)
            steps = [digest for change in found.recipe for digest in (change.a, change.b) if digest]
            made = {row["digest"]: row for row in registry.nodes(steps)}
        scored = behaving.scores(registry, first, second) if scores or (whole and call.json) else []
        behaved = None
        if behaviour is not None:
            with progress.of_run(f"running {first} and {second}") as told:
                behaved = behaving.behaviour(registry, first, second, behaviour, rows, told)
    differs = (
        (whole and first.digest != second.digest)
        or (recipe and found is not None and any(change.kind != "same" for change in found.recipe))
        or (weights and first.weights != second.weights)
        or (scores and any(row["difference"] != 0 for row in scored))
        or (behaved is not None and behaved["kl"]["value"] != 0)
    )
    if call.json:
        document: dict[str, Any] = {"a": first.name, "b": second.name, "same": first.digest == second.digest}
        document |= {} if found is None else _document(found, made, recipe=recipe or whole, files=whole)
        document |= {"scores": scored} if scores or whole else {}
        screen.emit(document | ({} if behaved is None else {"behaviour": behaved}))
        return int(differs)
    screen.line(f"from {_name(first)} to {_name(second)}")
    if found is not None and (recipe or whole):
        screen.lines(["", screen.ink("recipe", bold=True), *_recipe(found.recipe, made)])
    if found is not None and whole:
        screen.lines(["", screen.ink("files", bold=True), *_files(found)])
    if found is not None and found.tensors is not None:
        screen.lines(["", screen.ink("weights", bold=True), *_weights(found, found.tensors, every)])
        _tensors(found.tensors.changed, every)
    if scores:
        screen.lines(["", screen.ink("scores", bold=True)])
        behaving.tell_scores(scored, first.name, second.name)
    if behaved is not None:
        screen.lines(["", screen.ink(f"behaviour on {text.clean(behaved['data'])}", bold=True)])
        behaving.tell_behaviour(behaved, first.name, second.name)
    return int(differs)


def _document(found: Difference, rows: Rows, *, recipe: bool, files: bool) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if recipe:
        document["recipe"] = [
            {
                "kind": change.kind,
                "transform": change.transform,
                "a": _version(change.a, rows),
                "b": _version(change.b, rows),
                "params": {name: {"a": pair[0], "b": pair[1]} for name, pair in change.params.items()},
            }
            for change in found.recipe
        ]
    if found.tensors is not None:
        tensors = found.tensors
        document["tensors"] = {
            "added": tensors.added,
            "removed": tensors.removed,
            "changed": [asdict(change) for change in _by_size(tensors.changed)],
            "identical": tensors.identical,
        }
    if files:
        document["files"] = asdict(found.files)
    return document


def _name(version: Any) -> str:
    return f"{screen.ink(version.name, 'yellow', bold=True)} {screen.ink(version.digest[:12], dim=True)}"


def _version(digest: str | None, rows: Rows) -> str | None:
    return None if digest is None else f"v{rows[digest]['number']}"


def _recipe(changes: Sequence[StepChange], rows: Rows) -> list[str]:
    """One line a step, marked as in a diff; under a changed one, its params."""
    lines = []
    for change in changes:
        names = [name for digest in (change.a, change.b) if (name := _version(digest, rows))]
        where = " → ".join(dict.fromkeys(names))
        step = f"{text.clean(change.transform)} {where}"
        made = rows[change.b or change.a or ""]
        if change.kind == "same":
            lines.append(screen.ink(f"    {step}", dim=True))
        elif change.kind == "changed":
            lines.append(screen.ink(f"  ~ {step}", "yellow"))
            lines += [
                f"      {text.clean(name)}: {screen.ink(_param(before), 'red')} → {screen.ink(_param(after), 'green')}"
                for name, (before, after) in change.params.items()
            ]
        else:
            sign, colour = ("+", "green") if change.kind == "added" else ("-", "red")
            lines.append(screen.ink(f"  {sign} {step}  {text.params(made['params'])}".rstrip(), colour))
    return lines


def _param(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_param, value)) or "none"
    shown = text.value(value)
    # What is a digest says no more in 64 digits than in 12.
    return shown[:12] if len(shown) == 64 and all(c in "0123456789abcdef" for c in shown) else shown


def _files(found: Difference) -> list[str]:
    files = found.files
    marked = [("+", "green", files.added), ("-", "red", files.removed), ("~", "yellow", files.changed)]
    lines = [screen.ink(f"  {sign} {text.clean(path)}", colour) for sign, colour, paths in marked for path in paths]
    identical = "none" if not files.identical else text.plural(files.identical, "file")
    return [*lines, f"    {identical} identical, beside the weights"]


def _weights(found: Difference, tensors: WeightsChange, every: bool) -> list[str]:
    """How many of the tensors changed, and which came or went."""
    if found.a.weights == found.b.weights:
        same = "  the same tensors, every bit"
        return [
            same
            if found.is_same or _files_differ(found)
            else f"{same}; only their order, names of files or metadata differ"
        ]
    common = tensors.identical + len(tensors.changed)
    lines = [
        f"  {len(tensors.changed)} of {text.plural(common, 'tensor')} changed, {tensors.identical} identical"
        + (f", {len(tensors.added)} added, {len(tensors.removed)} removed" if tensors.added or tensors.removed else "")
    ]
    for sign, colour, names in (("+", "green", tensors.added), ("-", "red", tensors.removed)):
        lines += [
            screen.ink(f"  {sign} {name}", colour) for name in (map(text.clean, names) if every else _alike(names))
        ]
    return lines


def _alike(names: Sequence[str]) -> list[str]:
    """Names that differ in numbers only as one: `model.layers.*.mlp.up_proj.weight  (30 tensors)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"[0-9]+", "*", name), []).append(name)
    return [
        f"{text.clean(pattern)}  ({len(alike)} tensors)" if len(alike) > 1 else text.clean(alike[0])
        for pattern, alike in groups.items()
    ]


def _files_differ(found: Difference) -> bool:
    return bool(found.files.added or found.files.removed or found.files.changed)


def _by_size(changes: Sequence[TensorChange]) -> list[TensorChange]:
    """The most changed first; what could not be measured before all."""
    return sorted(
        changes, key=lambda change: (-(float("inf") if change.rel_l2 is None else change.rel_l2), change.name)
    )


def _tensors(changes: Sequence[TensorChange], every: bool) -> None:
    if not changes:
        return
    shown = _by_size(changes)
    shown = shown if every else shown[:MOST]
    columns = [
        Column("tensor", flexible=True),
        Column("rel L2", right=True),
        Column("max abs", right=True),
        Column("changed", right=True),
        Column("rank", right=True),
        Column("dtype and shape"),
    ]
    rows = [
        [
            text.clean(change.name),
            text.number(change.rel_l2),
            text.number(change.max_abs),
            text.percent(change.changed_fraction),
            "-" if change.rank is None else str(change.rank),
            _form(change),
        ]
        for change in shown
    ]
    screen.line()
    screen.table(columns, rows)
    if len(shown) < len(changes):
        screen.line(f"… and {len(changes) - len(shown)} that changed less; --all lists them")


def _form(change: TensorChange) -> str:
    before, after = (
        f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in zip(change.dtype, change.shape, strict=True)
    )
    odd = f", {change.non_finite} not finite" if change.non_finite else ""
    return (before if before == after else f"{before} → {after}") + odd
