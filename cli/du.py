"""`mreg du`: what versions take in the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.store.costs import Amount, Cost, Costs

_MET = 4
"""Other versions that are named in one line at most."""


@click.command(cls=Command, short_help="What versions take on disk.", example="mreg du\nmreg du prod v5")
@click.argument("revs", metavar="[REV]...", nargs=-1, help="The versions; all without one.")
@click.pass_obj
def du(call: Call, revs: tuple[str, ...]) -> None:
    """Show what versions take in the store, how their objects are stored and with whom they share them.

    An object counts for the first version that has it. It is stored raw, solo (packed by itself), as a delta against
    another tensor, or by a recipe: as what a prediction from other tensors gets wrong.
    """
    with call.open() as registry:
        found = registry.costs(*revs)
    if call.json:
        screen.emit(_document(found))
        return
    columns = [
        Column("version"),
        Column("size", right=True),
        Column("own", right=True),
        Column("shared", right=True),
        Column("stored as", flexible=True),
        Column("shares tensors with", flexible=True),
    ]
    if found.versions:
        screen.table(columns, [_cells(cost) for cost in found.versions])
        screen.line()
    store = found.store
    line = f"{text.plural(store.objects, 'object')}, {text.size(store.bytes)} on disk"
    if found.ratio is not None:
        line += f", {text.percent(found.ratio)} of the {text.size(found.logical)} of all versions"
    screen.line(line)
    if found.quarantined.objects:
        count = text.plural(found.quarantined.objects, "object")
        screen.line(f"{count} more, {text.size(found.quarantined.bytes)}, in quarantine")


def stored_as(encodings: Mapping[str, Amount]) -> str:
    """`272 delta (1.2 MB), 4 raw (3 kB)`, the largest first."""
    by_size = sorted(encodings.items(), key=lambda entry: -entry[1].bytes)
    return ", ".join(f"{amount.objects} {name} ({text.size(amount.bytes)})" for name, amount in by_size)


def _cells(cost: Cost) -> list[str]:
    met = [f"{name} ({count})" for name, count in sorted(cost.shared_with, key=lambda entry: -entry[1])]
    more = [f"{len(met) - _MET} more"] if len(met) > _MET else []
    return [
        screen.ink(cost.version.name, "yellow"),
        text.size(cost.logical),
        text.size(cost.own.bytes),
        text.size(cost.shared.bytes),
        f"{'evicted, ' if cost.evicted else ''}{stored_as(cost.encodings)}",
        ", ".join([*met[:_MET], *more]) or "-",
    ]


def amounts(encodings: Mapping[str, Amount]) -> dict[str, dict[str, int]]:
    """How objects are stored, for `--json`."""
    return {name: _amount(amount) for name, amount in encodings.items()}


def _document(found: Costs) -> dict[str, Any]:
    return {
        "versions": [
            {
                "version": cost.version.name,
                "digest": cost.version.digest,
                "bytes": cost.logical,
                "own": _amount(cost.own),
                "shared": _amount(cost.shared),
                "shared_with": dict(cost.shared_with),
                "encodings": amounts(cost.encodings),
                "evicted": cost.evicted,
            }
            for cost in found.versions
        ],
        "objects": found.store.objects,
        "bytes": found.store.bytes,
        "logical": found.logical,
        "ratio": found.ratio,
        "quarantined": _amount(found.quarantined),
    }


def _amount(amount: Amount) -> dict[str, int]:
    return {"objects": amount.objects, "bytes": amount.bytes}
