"""Going on with a replay that was stopped: what it left is read again and held against what it was.

All or nothing: where the code, the environment or one output is not what it was, the replay starts over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.models import datasets
from mreg.registry.models.folder import look
from mreg.registry.models.intake import store_folder
from mreg.registry.models.manifest import Manifest
from mreg.registry.replay.kept import KeptReplay, KeptStep
from mreg.registry.replay.plan import ReplayPlan
from mreg.registry.replay.verdict import differences
from mreg.registry.transform import JobDataset

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

_OVER = "it starts over"


@dataclass(frozen=True)
class Asked:
    """How a replay is to be done, besides which steps. `behaviour` is the dataset to run on where bits differ."""

    tolerance: float
    threads: int | None = None
    jobs: int = 1
    behaviour: Digest | None = None


@dataclass(frozen=True)
class Remade:
    """What a step of the replay made: a model in `folder`, and by the digests of the recorded ones, datasets."""

    folder: Path
    manifest: Manifest
    data: Mapping[Digest, JobDataset | None] = field(default_factory=dict)


def read_again(
    registry: Registry, planned: ReplayPlan, asked: Asked, folder: Path, kept: KeptReplay
) -> dict[Digest, Remade]:
    """What the judged steps of a stopped replay left in `folder` for those to come.

    Raises Refused when any of it, the code that made it or what it ran under is not what it was.
    """
    for one in kept.steps:
        name = one.judged.transform
        if one.code and registry.engine.code(name) != one.code:
            raise Refused(f"the code of {name} has changed since", fix=_OVER)
    _check_environments(registry, planned, asked, kept)
    return {
        one.judged.version: _output(registry, planned.names[one.judged.version], folder / str(one.place), one)
        for one in kept.steps
        if one.output is not None
    }


def _check_environments(registry: Registry, planned: ReplayPlan, asked: Asked, kept: KeptReplay) -> None:
    by_version = {step.version: step for step in planned.steps}
    seen = {}
    for one in kept.steps:
        if not one.environment:
            continue
        step = by_version[one.judged.version]
        where = (asked.threads or step.threads or 1, step.portable, step.device or "auto")
        if where not in seen:
            threads, portable, device = where
            seen[where] = registry.engine.environment(threads=threads, portable=portable, device=device)
        before = {name: one.environment.get(name) for name in seen[where]}
        for name, (was, now) in differences(before, seen[where]).items():
            raise Refused(f"{name} was {was or 'none'} then and is {now or 'none'} now", fix=_OVER)


def _output(registry: Registry, name: str, folder: Path, one: KeptStep) -> Remade:
    trusted = {mark for version in registry.versions() for mark in version.marks}
    try:
        manifest = store_folder(look(folder / "output", trust=trusted), None)
    except MregError as error:
        raise Refused(f"what {name} gave is damaged ({error.message})", fix=_OVER) from error
    if manifest.version_digest != one.output:
        raise Refused(f"what {name} gave is not what it was", fix=_OVER)
    there = {}
    for path in sorted(folder.glob("made-*.jsonl")):
        digest, columns, rows = datasets.spell_out(path, path.with_suffix(".again"))
        there[digest] = JobDataset(name=path.stem, digest=digest, path=path, rows=rows, columns=columns)
    if lost := [again for again in one.data.values() if again is not None and again not in there]:
        raise Refused(f"the dataset {lost[0][:12]} that {name} made is not what it was", fix=_OVER)
    return Remade(
        folder / "output",
        manifest,
        {recorded: None if again is None else there[again] for recorded, again in one.data.items()},
    )
