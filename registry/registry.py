"""The registry: what mreg can do, joined from the log, the store and whatever runs the work. Light to import."""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import config
from mreg.registry.chains.graph import Lineage
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log import queries
from mreg.registry.log.log import Log
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.chains.bisecting import Bisected, Judge, Tested, ToTest
    from mreg.registry.chains.opinions import Opinion
    from mreg.registry.chains.rebasing import Rebased, RebasePlan
    from mreg.registry.chains.recalling import Impact
    from mreg.registry.chains.recalls import Recall
    from mreg.registry.chains.recipe import Step
    from mreg.registry.chains.reverting import Reverted, RevertPlan, Way
    from mreg.registry.chains.rewriting import Changes
    from mreg.registry.log.queries import TrainedOn
    from mreg.registry.log.reading import Reader
    from mreg.registry.measures.evaluating import Evaluated
    from mreg.registry.measures.scores import Score
    from mreg.registry.models.comparing import Difference
    from mreg.registry.models.datasets import Dataset
    from mreg.registry.models.folder import Mark
    from mreg.registry.models.importing import Imported
    from mreg.registry.models.manifest import Manifest
    from mreg.registry.models.stored_weights import StoredArrays
    from mreg.registry.proof.heritage import Heritage
    from mreg.registry.proof.verifying import Verified
    from mreg.registry.references import Moved
    from mreg.registry.replay.evicting import Eviction
    from mreg.registry.replay.replaying import Heard, Replay, ReplayPlan
    from mreg.registry.replay.restoring import Restored
    from mreg.registry.runs.applying import Applied, Planned
    from mreg.registry.runs.work import Work
    from mreg.registry.store.checking import Findings
    from mreg.registry.store.collecting import Collected
    from mreg.registry.store.costs import Costs
    from mreg.registry.store.objects import ObjectStore
    from mreg.registry.store.repacking import Repacked
    from mreg.registry.transform import Engine, Progress, Report
    from peft import PeftModel
    from transformers import PreTrainedModel


class Registry:
    """One registry. Every method that takes a rev takes a Version as well; reads see all that was acknowledged."""

    def __init__(self, root: Path, log: Log, engine: Engine | None = None) -> None:
        self.root = root
        self.log = log
        self._engine = engine

    @classmethod
    def init(
        cls, directory: Path | str = ".", *, message: str = "", engine: Engine | None = None, **services: Any
    ) -> Registry:
        """Make `.mreg` inside `directory` (made if missing). Raises AlreadyThere. `services` are those of `open`."""
        from mreg.registry.log.events import RegistryCreated

        identity = str(uuid.uuid4())
        with config.created(Path(directory), registry_id=identity) as hidden:
            log = _log(hidden, **services)
            log.create()
            log.append(RegistryCreated(registry=identity, message=message))
        return cls.open(directory, engine=engine, **services)

    @classmethod
    def open(cls, place: Path | str | None = None, *, engine: Engine | None = None, **services: Any) -> Registry:
        """The registry in `place` (a folder that holds `.mreg`, or `.mreg` itself), by default found upwards from here.

        `services`: `clock` and `new_id` (functions giving an ISO 8601 UTC time and a UUID), `actor`, `wait` (seconds to
        wait for a busy registry, 30) and `notify` (told of waits and repairs, one line each). `engine` runs the
        transforms, by default on this machine. Raises NoRegistry.
        """
        root = config.find(place).absolute()
        config.read(root)
        return cls(root, _log(root, **services), engine)

    @cached_property
    def store(self) -> ObjectStore:
        """The objects."""
        from mreg.registry.store.objects import ObjectStore

        return ObjectStore(self.root / "objects", self._why_missing)

    def _why_missing(self, digest: Digest) -> MregError | None:
        from mreg.registry.store.absence import explain

        return explain(self, digest)

    @property
    def engine(self) -> Engine:
        """What runs transforms, through the entry point `mreg.engines: local`; started when first asked for."""
        if self._engine is None:
            from mreg.registry.engines import load_engine

            self._engine = load_engine("local", state=self.root)
        return self._engine

    def close(self) -> None:
        """End what was started for this registry. Nothing is lost without it."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def version(self, rev: str | Version) -> Version:
        """The version that a rev names. Raises UnknownRev and MalformedName."""
        if isinstance(rev, Version):
            return rev
        return self.log.ask(lambda reader: queries.resolve(reader, rev))

    def versions(self) -> list[Version]:
        """Every version, by number."""
        return self.log.ask(queries.versions)

    def show(self, rev: str | Version) -> dict[str, Any]:
        """One version whole: its fields, parents, run, refs, datasets, children and replays."""
        return self.log.ask(lambda reader: queries.show(reader, queries.resolve(reader, rev)))

    def listing(self) -> list[dict[str, Any]]:
        """Every version with its parents, transform, params and refs, by number."""
        return self.log.ask(queries.listing)

    def history(self, rev: str | Version | None = None, *, limit: int | None = None) -> list[dict[str, Any]]:
        """The steps that lead to a version, newest first; without one, those of every version."""

        def question(reader: Reader) -> list[dict[str, Any]]:
            return queries.history(reader, None if rev is None else queries.resolve(reader, rev), limit)

        return self.log.ask(question)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The raw log after an event's seq."""
        return self.log.ask(lambda reader: queries.events(reader, after))

    def lineage(self, rev: str | Version) -> Lineage:
        """The graph around a version: all its ancestors and descendants."""
        return self.log.ask(lambda reader: queries.lineage(reader, queries.resolve(reader, rev).digest))

    def family(self, rev: str | Version, *, up: bool = True, down: bool = True) -> tuple[Lineage, list[dict[str, Any]]]:
        """The graph of a version's ancestors, descendants or both, and what it says of each version, as `nodes`."""
        return self.log.ask(
            lambda reader: queries.family(reader, queries.resolve(reader, rev).digest, up=up, down=down)
        )

    def nodes(self, versions: Collection[Digest]) -> list[dict[str, Any]]:
        """What a graph says of each of these versions: number, refs, transform, params; by number."""
        return self.log.ask(lambda reader: queries.nodes(reader, versions))

    def recipe(self, rev: str | Version) -> Sequence[Step]:
        """The steps that lead to a version, each after its inputs."""
        version = self.version(rev)
        return self.log.ask(lambda reader: queries.recipe(reader, version.digest))

    def refs(self) -> dict[str, Version]:
        """Where each name points now, by name."""
        return self.log.ask(queries.refs)

    def ref_log(self, name: str) -> list[dict[str, Any]]:
        """Every move of a ref, newest first. Raises UnknownRef."""
        return self.log.ask(lambda reader: queries.ref_log(reader, name))

    def datasets(self) -> Sequence[Dataset]:
        """Every dataset that is known, in order of appearance."""
        from mreg.registry.models.datasets import known

        return self.log.ask(known)

    def trained_on(self, dataset: str) -> tuple[Dataset, TrainedOn]:
        """Every version that was made with a dataset, by its name or digest, and everything that came of those.

        Raises UnknownDataset.
        """
        from mreg.registry.models import datasets

        def question(reader: Reader) -> tuple[Dataset, TrainedOn]:
            found = datasets.known_as(reader, dataset)
            if found is None:
                raise datasets.unknown(reader, dataset)
            return found, queries.trained_on(reader, found.digest)

        return self.log.ask(question)

    def sql(self, statement: str) -> tuple[Sequence[str], Sequence[tuple[Any, ...]]]:
        """Column names and rows of a read-only SELECT over the projections, with no way out of the database."""
        from mreg.registry.log.sandbox import select

        self.log.ask(lambda reader: None)
        return select(self.log.path, statement, wait=self.log.wait)

    def manifest(self, rev: str | Version) -> Manifest:
        """The files and tensors of a version."""
        from mreg.registry.models.manifest import Manifest

        return Manifest.from_bytes(self.store.read_bytes(self.version(rev).manifest))

    # Writing

    def import_model(
        self,
        source: Path | str,
        *,
        ref: str | None = None,
        base: str | Version | None = None,
        exclude: Iterable[str] = (),
        trust: Iterable[Mark] = (),
        follow_symlinks: bool = False,
        message: str = "",
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Imported:
        """Bring a model folder, a weights file or `hf:org/name[@revision]` in as a version."""
        from mreg.registry.models.importing import import_model

        return import_model(
            self,
            source,
            ref=ref,
            base=base,
            exclude=tuple(exclude),
            trust=frozenset(trust),
            follow_symlinks=follow_symlinks,
            message=message,
            report=report,
        )

    def apply(
        self,
        transform: str,
        source: str | Version,
        *,
        others: Iterable[str | Version | tuple[str, str | Version]] = (),
        data: Iterable[str | Path] = (),
        ref: str | None = None,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        portable: bool = False,
        processes: int = 1,
        launcher: str | None = None,
        on: str | None = None,
        save_steps: int | None = None,
        resume: bool = False,
        guards: Sequence[str] = (),
        force: bool = False,
        fresh: bool = False,
        message: str = "",
        report: Report = lambda progress: None,
        **params: Any,
    ) -> Applied:
        """Run a transform on `source`. `others` fill its further roles in order, or by `(role, version)`.

        A training may be shared by several `processes`, which `torchrun` or `accelerate` starts, and work done `on` a
        cluster: `ray`, or `ray://host:port`. A training writes a checkpoint when it is stopped, and every
        `save_steps`; with `resume` the very same step goes on from there.

        `guards` such as `perplexity(general) <= 1.05 * source` are held against what comes of it. A version that fails
        one is recorded and marked, and `ref` does not move to it unless with `force`; `judged` and `refused` say so.
        """
        from mreg.registry.runs.applying import apply
        from mreg.registry.runs.steps import Request

        request = Request(
            transform,
            source,
            tuple(others),
            tuple(data),
            params,
            seed,
            threads,
            device,
            portable,
            processes,
            launcher,
            on,
            save_steps,
            resume,
        )
        return apply(self, request, ref=ref, fresh=fresh, message=message, report=report, guards=guards, force=force)

    def plan(
        self,
        transform: str,
        source: str | Version,
        *,
        others: Iterable[str | Version | tuple[str, str | Version]] = (),
        data: Iterable[str | Path] = (),
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        portable: bool = False,
        processes: int = 1,
        launcher: str | None = None,
        on: str | None = None,
        save_steps: int | None = None,
        resume: bool = False,
        **params: Any,
    ) -> Planned:
        """What `apply` would do with the same arguments, every check made and nothing run or recorded."""
        from mreg.registry.runs.applying import plan
        from mreg.registry.runs.steps import Request

        return plan(
            self,
            Request(
                transform,
                source,
                tuple(others),
                tuple(data),
                params,
                seed,
                threads,
                device,
                portable,
                processes,
                launcher,
                on,
                save_steps,
                resume,
            ),
        )

    def record_version(
        self,
        output: Path | str,
        *,
        transform: str,
        source: str | Version,
        others: Iterable[str | Version | tuple[str, str | Version]] = (),
        data: Iterable[str | Path] = (),
        params: dict[str, Any] | None = None,
        ref: str | None = None,
        exclude: Iterable[str] = (),
        trust: Iterable[Mark] = (),
        message: str = "",
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Applied:
        """Record a folder that was made elsewhere from `source` as the output of a step that mreg did not run."""
        from mreg.registry.runs.recording import record_version

        return record_version(
            self,
            Path(output),
            transform=transform,
            source=source,
            others=tuple(others),
            data=tuple(data),
            params=params or {},
            ref=ref,
            exclude=tuple(exclude),
            trust=frozenset(trust),
            message=message,
            report=report,
        )

    def record(
        self,
        transform: str,
        source: str | Version,
        *,
        others: Iterable[str | Version | tuple[str, str | Version]] = (),
        data: Iterable[str | Path] = (),
        params: dict[str, Any] | None = None,
        ref: str | None = None,
        exclude: Iterable[str] | None = None,
        trust: Iterable[Mark] = (),
        message: str = "",
    ) -> AbstractContextManager[Work]:
        """`with registry.record("my-sft", source=v) as run:` records what the block makes of `source` as a step.

        The block reads `run.input` and `run.data` and writes a model into `run.output`. `exclude` are globs of files
        in there to leave out, by default what trainers leave beside a model.
        """
        from mreg.registry.models.folder import TRAINERS_LEAVE
        from mreg.registry.runs.work import record

        return record(
            self,
            transform,
            source=source,
            others=tuple(others),
            data=tuple(data),
            params=params or {},
            ref=ref,
            exclude=TRAINERS_LEAVE if exclude is None else tuple(exclude),
            trust=frozenset(trust),
            message=message,
        )

    def add_dataset(self, path: Path | str, *, name: str = "", message: str = "") -> Dataset:
        """Add the rows of a JSONL, JSON, CSV, TSV, Parquet or text file, or of `hf:org/name[@revision][:split]`."""
        from mreg.registry.models.datasets import add

        return add(self, Path(path), name=name, message=message)

    def evaluate(
        self,
        rev: str | Version,
        *,
        data: str | Path | None = None,
        metrics: Iterable[str] = (),
        tasks: Iterable[str] = (),
        against: str | Version | None = None,
        seed: int = 0,
        threads: int | None = None,
        device: str = "auto",
        portable: bool = False,
        fresh: bool = False,
        message: str = "",
        report: Report = lambda progress: None,
        **options: Any,
    ) -> Evaluated:
        """Measure a version, by what suits it unless `metrics` or `tasks` say; scores that the log has are not redone.

        `options` are the settings: `max_length`, `max_rows`, `batch_size`, `dtype`, `bins`, `samples` and the others
        of `mreg eval`. `kl` and `agreement` compare with `against`, by default the first parent.
        """
        from mreg.registry.measures.evaluating import Question, evaluate

        question = Question(
            self.version(rev),
            data,
            tuple(metrics),
            tuple(tasks),
            None if against is None else self.version(against),
            options,
            seed,
            threads,
            device,
            portable,
        )
        return evaluate(self, question, fresh=fresh, message=message, report=report)

    def scores(self, *versions: str | Version) -> list[Score]:
        """The newest score of every question that was put to these versions."""
        from mreg.registry.measures.scores import of_versions

        found = [self.version(rev).digest for rev in versions]
        return self.log.ask(lambda reader: of_versions(reader, found))

    def counted(self, *versions: str | Version) -> list[Score]:
        """The size and the number of parameters of these versions, with the bases of adapters, as scores."""
        from mreg.registry.measures.scores import counted

        found = [self.version(rev) for rev in versions]
        return self.log.ask(
            lambda reader: [counted(reader, version, name) for version in found for name in ("size", "parameters")]
        )

    def check_guards(self, guards: Sequence[str], *, source: str | Version) -> None:
        """Check guards as `apply` does before it runs, for a step on `source`. Raises what is wrong with one."""
        from mreg.registry.measures.judging import parse_all

        parse_all(self, guards, source=self.version(source))

    def policies(self) -> dict[str, tuple[str, ...]]:
        """The guards that names demand of what they move to."""
        from mreg.registry.measures.scores import policies

        return self.log.ask(policies)

    def set_policy(self, ref: str, guards: Sequence[str], *, message: str = "") -> tuple[str, ...]:
        """Have a name demand these guards of all that it moves to; `source` in them is where it was before."""
        from mreg.registry.measures.judging import set_policy

        return set_policy(self, ref, guards, message=message)

    def delete_policy(self, ref: str, *, message: str = "") -> tuple[str, ...]:
        """Have a name demand nothing any more; what it demanded."""
        from mreg.registry.measures.judging import delete_policy

        return delete_policy(self, ref, message=message)

    def set_ref(
        self,
        name: str,
        rev: str | Version,
        *,
        message: str = "",
        force: bool = False,
        report: Report = lambda progress: None,
    ) -> Moved:
        """Point a name at a version; its policy is judged first, and what that needs measured. Raises GuardFailed."""
        from mreg.registry.references import set_ref

        return set_ref(self, name, self.version(rev), message=message, force=force, report=report)

    def delete_ref(self, name: str, *, message: str = "") -> Moved:
        """Take a name away; its moves stay in the log."""
        from mreg.registry.references import delete_ref

        return delete_ref(self, name, message=message)

    def rollback(self, name: str, *, to: str | Version | None = None, message: str = "", force: bool = False) -> Moved:
        """Point a name where it was before its last move forward, or at a version that it once named.

        Raises GuardFailed for a version that is known to fail a guard, unless with `force`.
        """
        from mreg.registry.references import rollback

        return rollback(self, name, to=None if to is None else self.version(to), message=message, force=force)

    def recall(self, what: str | Version, *, message: str, dry_run: bool = False) -> Impact:
        """Recall a version, or whatever a dataset went into, by its name, and what came of it. `message` says why.

        A name moves to none of these any more unless with `force`. With `dry_run`, only what it would reach.
        """
        from mreg.registry.chains.recalling import recall

        return recall(self, what, message=message, dry_run=dry_run)

    def lift_recall(self, what: str | Version, *, message: str, dry_run: bool = False) -> Impact:
        """Take a recall back. Raises Refused for what was not recalled itself."""
        from mreg.registry.chains.recalling import lift

        return lift(self, what, message=message, dry_run=dry_run)

    def recalls(self) -> list[tuple[Recall, Impact]]:
        """Every recall that stands, and what it reaches now."""
        from mreg.registry.chains.recalling import listed

        return self.log.ask(listed)

    def check_out(
        self, rev: str | Version, folder: Path | str, *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> Version:
        """Write a version's files into a new folder, byte for byte."""
        from mreg.registry.models.checkout import check_out

        version = self.version(rev)
        check_out(self.manifest(version), self.store, Path(folder), report)
        return version

    def diff(
        self,
        a: str | Version,
        b: str | Version,
        *,
        weights: bool = True,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Difference:
        """What changed from `a` to `b`: recipe, files and tensors; with `weights`, by how much."""
        from mreg.registry.models.comparing import diff

        return diff(self, self.version(a), self.version(b), weights=weights, report=report)

    def replay_plan(self, rev: str | Version, *, from_base: bool = False) -> ReplayPlan:
        """What `replay` would do, and whether everything that it needs is there."""
        from mreg.registry.replay.replaying import plan

        return plan(self, self.version(rev), from_base=from_base)

    def replay(
        self,
        rev: str | Version,
        *,
        from_base: bool = False,
        tolerance: float = 1e-3,
        threads: int | None = None,
        jobs: int = 1,
        resume: bool = False,
        behaviour: str | Path | None = None,
        message: str = "",
        report: Heard = lambda step, said: None,
    ) -> Replay:
        """Do the chain that led to a version again, judge every step, and record the verdicts.

        So many `jobs` are done at once where steps do not rest on each other. With `resume` it goes on with a replay
        that was stopped. `behaviour` is a dataset: where a step gives other bits, both are run on its rows.
        """
        from mreg.registry.replay.replaying import replay

        return replay(
            self,
            self.version(rev),
            from_base=from_base,
            tolerance=tolerance,
            threads=threads,
            jobs=jobs,
            resume=resume,
            behaviour=behaviour,
            message=message,
            report=report,
        )

    def rebase_plan(self, rev: str | Version, changes: Changes) -> RebasePlan:
        """What `rebase` would keep, reuse and run. Raises Refused for a conflict."""
        from mreg.registry.chains.rebasing import plan

        return plan(self, self.version(rev), changes)

    def rebase(
        self,
        rev: str | Version,
        changes: Changes,
        *,
        ref: str | None = None,
        message: str = "",
        report: Callable[[str, Progress], None] = lambda transform, progress: None,
    ) -> Rebased:
        """Make a new chain from the one that led to a version; the old one stays, and only `ref` moves."""
        from mreg.registry.chains.rebasing import rebase

        return rebase(self, self.version(rev), changes, ref=ref, message=message, report=report)

    def revert_plan(self, step: str | Version, rev: str | Version, *, way: Way | None = None) -> RevertPlan:
        """How `revert` would take a step out, and why that way. Raises Refused with the reasons where it cannot be."""
        from mreg.registry.chains.reverting import plan

        return plan(self, self.version(step), self.version(rev), way=way)

    def revert(
        self,
        step: str | Version,
        rev: str | Version,
        *,
        way: Way | None = None,
        ref: str | None = None,
        message: str = "",
        force: bool = False,
        report: Callable[[str, Progress], None] = lambda transform, progress: None,
    ) -> Reverted:
        """Take the step that made one version out of a later one: by weights where that is exact, or by a rebase."""
        from mreg.registry.chains.reverting import revert

        return revert(
            self, self.version(step), self.version(rev), way=way, ref=ref, message=message, force=force, report=report
        )

    def bisect(
        self,
        good: Iterable[str | Version],
        bad: str | Version,
        judge: Judge | Opinion,
        *,
        asked: str = "",
        error_rate: float = 0.0,
        confidence: float = 0.95,
        fresh: bool = False,
        report: Callable[[ToTest | Tested], None] = lambda said: None,
    ) -> Bisected:
        """Find the first bad version between `good` and `bad`; `judge(version, folder)` says good, bad or skip.

        In its place `by_metric` or `by_prompt` of `mreg.registry.chains.opinions` may stand, which need no checkout.
        A search that is interrupted goes on with the answers that it had for the same `asked`.
        """
        from mreg.registry.chains.bisecting import bisect

        return bisect(
            self,
            [self.version(rev) for rev in good],
            self.version(bad),
            judge,
            asked=asked,
            error_rate=error_rate,
            confidence=confidence,
            fresh=fresh,
            report=report,
        )

    def verify(
        self,
        rev: str | Version,
        *,
        claims: bool = False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> Verified:
        """Check every object of a version; with `claims`, also hold what each step says against the weights."""
        from mreg.registry.proof.verifying import verify

        return verify(self, self.version(rev), with_claims=claims, report=report)

    def heritage(
        self, folder: Path | str, *, report: Callable[[int, int], None] = lambda done, total: None
    ) -> Heritage:
        """Which versions a model folder of unknown origin came from, the likeliest first."""
        from mreg.registry.proof.heritage import heritage

        return heritage(self, Path(folder), report=report)

    def gc(
        self,
        *,
        grace: float | None = None,
        kept: float | None = None,
        stale: float | None = None,
        now: bool = False,
        dry_run: bool = False,
    ) -> Collected:
        """Take objects that nothing needs out of the store, into quarantine first, and remove old caches.

        Seconds: for `grace` (a day) after it was written nothing is taken, for `kept` (a week) it stays in quarantine,
        and for `stale` (30 days) a cache that is not touched stays. `now` takes and deletes at once.
        """
        from mreg.registry.store import collecting

        return collecting.collect(
            self,
            grace=collecting.GRACE if grace is None else grace,
            kept=collecting.KEPT if kept is None else kept,
            stale=collecting.STALE if stale is None else stale,
            now=now,
            dry_run=dry_run,
        )

    def gc_undo(self) -> Collected:
        """Put all objects that are in quarantine back into the store."""
        from mreg.registry.store.collecting import put_back

        return put_back(self)

    def evict_plan(self, rev: str | Version) -> Eviction:
        """What `evict` would take. Raises Refused for a version that no replay has proved to come out again."""
        from mreg.registry.replay.evicting import plan

        return plan(self, self.version(rev))

    def evict(self, rev: str | Version, *, message: str = "") -> Eviction:
        """Take the weights of a version that a replay has proved out of the store; `restore` makes them again."""
        from mreg.registry.replay.evicting import evict

        return evict(self, self.version(rev), message=message)

    def repack(
        self, *, dry_run: bool = False, report: Callable[[int, int], None] = lambda done, total: None
    ) -> Repacked:
        """Store what is read often so that it is quick to read, and everything else so that it is small."""
        from mreg.registry.store.repacking import repack

        return repack(self, dry_run=dry_run, report=report)

    def costs(self, *revs: str | Version) -> Costs:
        """What these versions take in the store, by default all, and what the whole store takes."""
        from mreg.registry.store.costs import costs

        return costs(self, [self.version(rev) for rev in revs])

    def restore_plan(self, rev: str | Version) -> ReplayPlan | None:
        """The steps that `restore` would do again; None when the version is there."""
        from mreg.registry.replay.restoring import plan

        return plan(self, self.version(rev))

    def restore(
        self, rev: str | Version, *, jobs: int = 1, message: str = "", report: Heard = lambda step, said: None
    ) -> Restored:
        """Make the missing weights of a version again, and store them if they are what they were."""
        from mreg.registry.replay.restoring import restore

        return restore(self, self.version(rev), jobs=jobs, message=message, report=report)

    def fsck(self, *, repair: bool = False, report: Callable[[int, int], None] = lambda done, total: None) -> Findings:
        """Check the chain, the fold and every object; with `repair`, mend what can be proved."""
        from mreg.registry.store.checking import fsck

        return fsck(self, repair=repair, report=report)

    def rebuild(self) -> int:
        """Drop the projections and fold them again from the journal; return how many events there are."""
        return self.log.rebuild()

    def load(self, rev: str | Version, **options: Any) -> PreTrainedModel | PeftModel:
        """The version as a transformers model, straight from the store; `options` go to `from_pretrained`."""
        from mreg.registry.models.loading import load

        return load(self, self.version(rev), **options)

    def tensors(self, rev: str | Version) -> StoredArrays:
        """The tensors of a version by name, as numpy arrays; each is read and checked when it is asked for."""
        from mreg.registry.models.stored_weights import StoredArrays

        return StoredArrays(self.manifest(rev), self.store)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A folder of our own under `.mreg/tmp`, held by a lock while in use and removed at the end."""
        from mreg.registry.runs.scratch import scratch

        with scratch(self.root, name) as folder:
            yield folder


def _log(
    root: Path,
    *,
    clock: Callable[[], str] | None = None,
    new_id: Callable[[], str] | None = None,
    actor: str | None = None,
    wait: float = 30.0,
    notify: Callable[[str], None] = lambda line: None,
) -> Log:
    return Log(
        root,
        clock=clock or (lambda: datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")),
        new_id=new_id or (lambda: str(uuid.uuid4())),
        actor=actor or f"{_user()}@{os.uname().nodename}",
        wait=wait,
        notify=notify,
    )


def _user() -> str:
    # A container may run under a number that no account has.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid{os.getuid()}"
