"""`mreg heritage`: where a model of unknown origin came from."""

from __future__ import annotations

from pathlib import Path

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column

MEANINGS = {
    "identical": "is",
    "same-weights": "has the weights of",
    "same": "has the matrices of",
    "cast": "is a cast of",
    "prune": "is pruned from",
    "edit": "is an edit of",
    "fuse": "is a low-rank adapter fused into",
    "finetune": "could be a fine-tune of",
    "quantize": "is quantized from",
    "merge": "is a merge of",
    "adapter": "fits",
}


@click.command(
    cls=Command,
    short_help="Tell which of our versions a model folder came from.",
    example="mreg heritage ./found-on-a-disk",
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="The model to look at.")
@click.pass_obj
def heritage(call: Call, folder: Path) -> int:
    """Tell where a model of unknown origin came from: one of our versions, or what was made from one.

    Digests decide first, then the distance of the weights: a cast, a pruned or quantized copy, also as GGUF, an adapter
    that was fused, an edit, a fine-tune, a merge of two or a stack of layers. Nothing is stored. Exits with 1 when
    nothing of ours is near.
    """
    with call.open() as registry, progress.of_items("comparing") as report:
        found = registry.heritage(folder, report=report)
    if call.json:
        screen.emit(
            {
                "digest": found.digest,
                "weights": found.weights,
                "compared": found.measured,
                "of": found.versions,
                "origins": [
                    {
                        "versions": [version.name for version in origin.versions],
                        "digests": [version.digest for version in origin.versions],
                        "kind": origin.kind,
                        "distance": origin.distance,
                        "shared_tensors": origin.shared,
                        "evidence": origin.evidence,
                    }
                    for origin in found.origins
                ],
            }
        )
        return 0 if found.origins else 1
    if not found.origins:
        screen.line(f"{text.clean(folder.name)} comes from no version here")
        return 1
    best = found.origins[0]
    names = " and ".join(screen.ink(version.name, "yellow", bold=True) for version in best.versions)
    screen.line(f"{text.clean(folder.name)} {MEANINGS[best.kind]} {names}: {best.evidence}")
    if len(found.origins) > 1:
        screen.line()
        columns = [Column("version"), Column("kind"), Column("distance", right=True), Column("shared", right=True)]
        screen.table(
            [*columns, Column("evidence", flexible=True)],
            [
                [
                    screen.ink(" ".join(version.name for version in origin.versions), "yellow"),
                    origin.kind,
                    text.number(origin.distance),
                    text.percent(origin.shared),
                    origin.evidence,
                ]
                for origin in found.origins
            ],
        )
    return 0
