"""fsck: proof that the chain holds, that the fold equals the tables, and that every object is what its name says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry import files
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log import folds
from mreg.registry.log.events import UnreadableEvent
from mreg.registry.log.journal import DamagedLog, Journal
from mreg.registry.log.mending import mend
from mreg.registry.log.recorded import Recorded
from mreg.registry.models.manifest import Manifest
from mreg.registry.runs import checkpoints
from mreg.registry.store.collecting import put_back
from mreg.registry.store.holding import shared
from mreg.registry.store.quarantine import Quarantine

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written: where, and what is wrong."""

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What fsck found. `notes` are harmless: what was tidied, what waits; `repaired` says what was mended."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    repaired: tuple[str, ...]
    events: int
    objects: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def fsck(registry: Registry, *, repair: bool, report: Callable[[int, int], None]) -> Findings:
    """Check everything; with `repair`, restore a journal from what proves itself, and rebuild a wrong database.

    Raises DamagedLog when a repair was asked for and nothing proves the whole history.
    """
    repaired: list[str] = []
    notes: list[str] = []
    if repair and (mended := mend(registry.log)) is not None:
        repaired.append(mended)
    history, problems = _journal(registry)
    try:
        tables = folds.fold(history)
        if not problems:
            notes += _tidy(registry)
            wrong = _projections(registry)
            if wrong and repair:
                registry.log.rebuild()
                repaired.append("registry.duckdb was rebuilt from the journal")
                wrong = _projections(registry)
            problems += wrong
    except (DamagedLog, UnreadableEvent) as error:
        tables = folds.Tables()
        problems.append(Problem("journal", error.message))
    with shared(registry):
        objects, damaged = _objects(registry, tables, report)
    if repair and damaged and (back := put_back(registry).back):
        repaired.append(f"{back} objects were taken out of quarantine, should they be among those that are missing")
        with shared(registry):
            objects, damaged = _objects(registry, tables, report)
    problems += damaged
    return Findings(tuple(problems), tuple(notes), tuple(repaired), len(history), objects)


def _journal(registry: Registry) -> tuple[list[Recorded], list[Problem]]:
    """The events that can be proved, and what is wrong after them."""
    journal = Journal(registry.root)
    with registry.log.locked(), files.disk_errors():
        try:
            journal.settle()
            return list(journal.read()), []
        except DamagedLog as error:
            history: list[Recorded] = []
            with contextlib.suppress(DamagedLog):
                history = journal.intact()
            return history, [
                Problem("journal", f"{error.message} (what comes before event {len(history) + 1} is sound)")
            ]


def _tidy(registry: Registry) -> list[str]:
    from mreg.registry.runs.applying import reap

    dead = reap(registry)
    ended = [f"run {run} had ended without a word and is now recorded as interrupted" for run in dead]
    return ended + [
        f"{one.path} is what a step left that did not finish: the same command with --resume goes on from it, "
        "or delete it"
        for one in checkpoints.kept(registry.root)
    ]


def _projections(registry: Registry) -> list[Problem]:
    """Where the tables are not what the events fold to. A database that is behind is not wrong."""
    where = "registry.duckdb"
    with registry.log.locked():
        history = list(Journal(registry.root).read())
        copy = registry.log.copy_of_everything()
    if copy is None:
        return [Problem(where, "it cannot be read; `mreg rebuild` makes it anew")]
    events, stored = copy
    if events != history[: len(events)]:
        wrong = next((a.seq for a, b in zip(history, events, strict=False) if a != b), len(history) + 1)
        return [Problem(where, f"event {wrong} is not as the journal has it; `mreg rebuild` makes it anew")]
    expected = folds.fold(history[: len(events)])
    return [
        Problem(where, f"{table} ({', '.join(map(str, key))}) is not what the events fold to; run `mreg rebuild`")
        for table, rows in expected.items()
        for key in sorted(rows.keys() | stored[table].keys(), key=str)
        if rows.get(key) != stored[table].get(key)
    ]


def _objects(registry: Registry, tables: folds.Tables, report: Callable[[int, int], None]) -> tuple[int, list[Problem]]:
    """How many objects there are, and what is wrong with them or missing."""
    store = registry.store
    names = list(store.names())
    problems = []
    for place, digest in enumerate(names):
        wrong = store.verify(digest)
        if wrong is not None:
            problems.append(Problem(f"object {digest}", wrong))
        report(place + 1, len(names))
    problems += [Problem(f"objects/{path.relative_to(store.root)}", "it is not an object") for path in store.strays()]
    present = set(names)
    bad = {problem.where.removeprefix("object ") for problem in problems}
    evicted = {row["version"] for row in tables["eviction"].values()}
    waiting = {one.digest for one in Quarantine(store).waiting()}
    for row in tables["version"].values():
        name = f"v{row['number']}"
        if row["manifest"] not in present:
            problems.append(Problem(name, f"its manifest {row['manifest']} is missing"))
        elif row["manifest"] not in bad:
            problems += _version(registry, name, row, present, evicted, waiting)
    for row in tables["dataset"].values():
        if row["digest"] not in present:
            problems.append(Problem(f"dataset {row['digest'][:12]}", "its rows are missing"))
    for row in tables["run"].values():
        if row["log"] is not None and row["log"] not in present:
            problems.append(Problem(f"run {row['id']}", "what it printed is missing"))
    return len(names), problems


def _version(
    registry: Registry,
    name: str,
    row: folds.Row,
    present: set[Digest],
    evicted: set[Digest],
    waiting: set[Digest],
) -> Iterator[Problem]:
    try:
        manifest = Manifest.from_bytes(registry.store.read_bytes(row["manifest"]))
    except MregError as error:
        yield Problem(name, error.message)
        return
    if manifest.version_digest != row["digest"] or manifest.weights_digest != row["weights"]:
        yield Problem(name, "its manifest is that of another version")
    gone = manifest.objects() - present
    if row["digest"] in evicted:
        gone &= {file.digest for file in manifest.files if file.header is None and not file.path.endswith(".gguf")}
    for digest in sorted(gone):
        where = ", `mreg fsck --repair` takes it out of quarantine" if digest in waiting else ""
        yield Problem(name, f"its object {digest} is missing{where}")
