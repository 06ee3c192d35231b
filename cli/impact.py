"""What a dataset went into: for `mreg lineage --of-data`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mreg.cli import screen, steps, text
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.digests import Digest
    from mreg.registry.log.queries import TrainedOn
    from mreg.registry.models.datasets import Dataset

COLUMNS = (Column("version"), Column("refs", flexible=True), Column("trained on it"), Column("by", flexible=True))


def document(dataset: Dataset, found: TrainedOn) -> dict[str, Any]:
    """The versions for `--json`."""
    numbers = _names(found)
    return {
        "dataset": dataset.name,
        "digest": dataset.digest,
        "nodes": [
            {
                **steps.node(row),
                "direct": row["digest"] in found.direct,
                "through": [numbers[parent] for parent in found.through(row["digest"])],
            }
            for row in found.nodes
        ],
        "edges": [steps.edge(edge, numbers) for edge in found.edges],
    }


def tell(dataset: Dataset, found: TrainedOn) -> None:
    """The versions as a table, by number."""
    reached = len(found.nodes) - len(found.direct)
    screen.line(
        f"{screen.ink(text.clean(dataset.name), 'green', bold=True)}  {text.plural(dataset.rows, 'row')}, "
        f"{text.plural(len(found.direct), 'version')} trained on it, {text.amount(reached)} more came of those"
    )
    if found.nodes:
        screen.table(COLUMNS, _rows(found))


def _rows(found: TrainedOn) -> Iterator[list[str]]:
    names = _names(found)
    for row in found.nodes:
        through = ", ".join(names[parent] for parent in found.through(row["digest"]))
        direct = "directly" if row["digest"] in found.direct else ""
        how = " and ".join(part for part in (direct, f"through {through}" if through else "") if part)
        yield [
            names[row["digest"]] + steps.recalled(row),
            ",".join(map(text.clean, row["refs"])) or "-",
            how,
            steps.summary(row),
        ]


def _names(found: TrainedOn) -> dict[Digest, str]:
    return {row["digest"]: f"v{row['number']}" for row in found.nodes}
