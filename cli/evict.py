"""`mreg evict` and `mreg restore`: weights that can be made again, taken out of the store and made again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command, message

if TYPE_CHECKING:
    from mreg.registry.chains.recipe import Step
    from mreg.registry.log.events import StepJudged
    from mreg.registry.replay.evicting import Eviction
    from mreg.registry.replay.replaying import ReplayPlan
    from mreg.registry.replay.restoring import Restored


@click.command(
    cls=Command,
    short_help="Take the weights of a version out, which a replay has proved can be made again.",
    example="mreg replay v5\nmreg evict v5 --dry-run\nmreg evict v5\nmreg restore v5",
)
@click.argument("rev", help="The version.")
@click.option("--dry-run", is_flag=True, help="Say what would go, take nothing.")
@message
@click.pass_obj
def evict(call: Call, rev: str, dry_run: bool, message: str) -> None:
    """Take the tensors of a version that nothing else needs out of the store.

    Only a version whose last replay came to bytes or tensors can go; an import never can. Its config, tokenizer and
    everything that the log says of it stay, and `mreg restore` makes the weights again.
    """
    with call.open() as registry:
        done = registry.evict_plan(rev) if dry_run else registry.evict(rev, message=message)
    if call.json:
        screen.emit({"dry_run": dry_run, **_eviction(done)})
        return
    name = screen.ink(done.version.name, "yellow", bold=True)
    gone = f"{text.plural(len(done.going), 'object')}, {text.size(done.bytes)}"
    screen.line(f"{name}  {gone}, {'would be ' * dry_run}taken out of the store")
    proof = done.proof
    screen.line(f"a replay of {text.moment(proof.at)} UTC came to {proof.verdict}")
    if done.shared:
        screen.line(f"{text.plural(done.shared, 'object')} left, which other versions have too")
    if done.rested_on:
        screen.line(f"{text.plural(done.rested_on, 'object')} left, against which other versions are stored")
    screen.hint(f"mreg restore {done.version.name} makes them again")


def _eviction(done: Eviction) -> dict[str, Any]:
    return {
        "version": done.version.name,
        "digest": done.version.digest,
        "objects": len(done.going),
        "bytes": done.bytes,
        "shared": done.shared,
        "rested_on": done.rested_on,
        "was_evicted": done.is_done,
        "proof": {"replay": done.proof.replay, "verdict": done.proof.verdict, "at": done.proof.at},
        "event": done.event,
    }


@click.command(
    cls=Command,
    short_help="Make the weights of a version again that were taken out, or lost.",
    example="mreg restore v5 --dry-run\nmreg restore v5",
)
@click.argument("rev", help="The version.")
@click.option("--dry-run", is_flag=True, help="Show the steps that would be done again.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Steps done at once.")
@message
@click.pass_obj
def restore(call: Call, rev: str, dry_run: bool, jobs: int, message: str) -> None:
    """Do the steps again that lead to a version, from the nearest versions that are there, and store what comes out.

    It is stored if it is what it was, bit for bit; otherwise nothing is, and the exit code is 1.
    """
    from mreg.registry.transform import Progress

    with call.open() as registry:
        if dry_run:
            _tell_plan(call, registry.version(rev).name, registry.restore_plan(rev))
            return
        with progress.of_run("restore") as show:

            def heard(step: Step, said: Progress | StepJudged) -> None:
                if isinstance(said, Progress):
                    show(replace(said, note=f"{step.transform} {said.note}"))

            done = registry.restore(rev, jobs=jobs, message=message, report=heard)
    if call.json:
        screen.emit(_restoration(done))
        return
    name = screen.ink(done.version.name, "yellow", bold=True)
    if done.event is None:
        screen.line(f"{name}  is there, nothing was done")
        return
    steps = text.plural(len(done.steps), "step")
    screen.line(f"{name}  {text.plural(done.objects, 'object')}, {text.size(done.bytes)}, made again in {steps}")
    for step in done.steps:
        took = "" if step.wall_s is None else f", {text.seconds(step.wall_s)}"
        screen.line(f"  {done.names[step.version]}  {text.clean(step.transform)}: {step.verdict}{took}")


def _restoration(done: Restored) -> dict[str, Any]:
    return {
        "version": done.version.name,
        "digest": done.version.digest,
        "verdict": done.verdict,
        "objects": done.objects,
        "bytes": done.bytes,
        "steps": [
            {
                "version": done.names[step.version],
                "transform": step.transform,
                "verdict": step.verdict,
                "wall_s": step.wall_s,
            }
            for step in done.steps
        ],
        "event": done.event,
    }


def _tell_plan(call: Call, name: str, plan: ReplayPlan | None) -> None:
    steps = [] if plan is None else plan.steps
    if call.json:
        names = {} if plan is None else plan.names
        document = [{"version": names[s.version], "transform": s.transform, "wall_s": s.wall_s} for s in steps]
        screen.emit({"version": name, "dry_run": True, "steps": document})
        return
    if plan is None:
        screen.line(f"{screen.ink(name, 'yellow', bold=True)}  is there, there is nothing to do")
        return
    for step in steps:
        inputs = " ".join(plan.names[digest] for _, digest in step.inputs)
        screen.line(f"{screen.ink(plan.names[step.version], 'yellow')}  {text.clean(step.transform)} {inputs}")
    screen.line(f"would take about {text.seconds(plan.estimated_s)}; nothing was done")
