"""Replay: the work is done again, in fresh child processes, and every step is judged against what was recorded.

Each step works on what the replay itself made of its inputs, so that a replay from the base proves the whole chain.
What a replay makes is judged and thrown away: it never becomes a version.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log.events import ReplayFinished, ReplayStarted, StepJudged
from mreg.registry.models import datasets
from mreg.registry.replay import kept as replay_kept
from mreg.registry.replay.kept import KeptReplay
from mreg.registry.replay.plan import ReplayPlan, plan
from mreg.registry.replay.resuming import Asked, Remade, read_again
from mreg.registry.replay.verdict import weakest
from mreg.registry.replay.work import Heard, Work
from mreg.registry.runs.applying import Interrupted, reap
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

__all__ = ["Heard", "Replay", "ReplayPlan", "plan", "replay"]


@dataclass(frozen=True)
class Replay:
    """How a replay came out. `resumed` counts the steps that had been judged before it was stopped."""

    plan: ReplayPlan
    verdict: str
    steps: tuple[StepJudged, ...]
    event: int
    tolerance: float = 0.0
    environment: dict[str, Any] | None = None
    host: str = ""
    jobs: int = 1
    resumed: int = 0
    at: str = ""


@dataclass(frozen=True)
class _Start:
    """Where a replay begins: anew, or with what one that was stopped had done."""

    progress: KeptReplay
    remade: dict[Digest, Remade]


def replay(
    registry: Registry,
    target: Version,
    *,
    from_base: bool,
    tolerance: float,
    threads: int | None,
    message: str,
    report: Heard,
    jobs: int = 1,
    resume: bool = False,
    behaviour: str | Path | None = None,
) -> Replay:
    """Do the chain to `target` again, judge every step, and record it. Raises Refused, and Interrupted on Ctrl-C.

    With `resume` it goes on with one that was stopped, if that was asked for the same and all of it still holds.
    """
    reap(registry)
    rows = None if behaviour is None else datasets.find(registry, behaviour).digest
    planned = plan(registry, target, from_base=from_base)
    asked = Asked(tolerance, threads, jobs, rows)
    start = _start(registry, planned, asked, resume)
    identity, resumed = start.progress.replay, len(start.progress.steps)
    with replay_kept.working(registry.root, identity) as folder:
        if not resumed:
            registry.log.append(
                ReplayStarted(
                    replay=identity,
                    version=target.digest,
                    from_base=from_base,
                    tolerance=tolerance,
                    steps=tuple(step.version for step in planned.steps),
                    message=message,
                )
            )
        work = Work(registry, planned, asked, start.progress, folder=folder, remade=start.remade, heard=report)
        try:
            work.do()
        except KeyboardInterrupt as error:
            raise Interrupted("the replay was stopped", fix=_how_on(work)) from error
        verdict = weakest(step.verdict for step in work.judged)
        host = os.uname().nodename
        recorded = registry.log.append(
            ReplayFinished(
                replay=identity,
                version=target.digest,
                verdict=verdict,
                steps=work.judged,
                environment=work.environment,
                host=host,
                jobs=jobs,
                resumed=resumed,
                message=message if resumed else "",
            )
        )
    replay_kept.forget(registry.root, target.digest)
    return Replay(
        planned, verdict, work.judged, recorded.seq, tolerance, work.environment, host, jobs, resumed, recorded.at
    )


def _how_on(work: Work) -> str:
    done, of = len(work.judged), len(work.planned.steps)
    if not done:
        return "no verdict was recorded; run it again"
    return f"{done} of {of} steps are judged and kept, the same again with --resume goes on from there"


def _start(registry: Registry, planned: ReplayPlan, asked: Asked, resume: bool) -> _Start:
    """With what a replay begins, telling people of what was kept and is not used."""
    about = {
        "version": planned.target.digest,
        "from_base": planned.from_base,
        "tolerance": asked.tolerance,
        "threads": asked.threads,
        "behaviour": asked.behaviour,
        "steps": [[step.version, step.run] for step in planned.steps],
    }
    anew = _Start(KeptReplay(registry.log.new_id(), about), {})
    whys = []
    for folder, kept in replay_kept.kept(registry.root, planned.target.digest):
        done = f"{len(kept.steps)} of {len(kept.asked['steps'])} steps judged"
        if not resume:
            registry.log.notify(
                f"this starts over, though a stopped replay of {planned.target} has {done}: "
                "with --resume it would go on from there"
            )
            return anew
        why = replay_kept.asked_otherwise(kept, about)
        if why is None and _is_open(registry, kept.replay):
            try:
                return _Start(kept, read_again(registry, planned, asked, folder, kept))
            except MregError as error:
                why = error.message
        whys.append(f"one is kept that has {done}, but {why or 'it has ended'}")
    if resume:
        said = whys[0] if whys else f"no stopped replay of {planned.target} is kept"
        registry.log.notify(f"this starts over: {said}")
    return anew


def _is_open(registry: Registry, replay: str) -> bool:
    """Whether the log has seen it start and not end."""
    sql = "SELECT 1 FROM replay WHERE id = ? AND verdict IS NULL"
    return registry.log.ask(lambda reader: reader.one(sql, [replay])) is not None
