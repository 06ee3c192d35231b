"""`mreg replay`: the work done again, and judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.events import StepJudged
    from mreg.registry.recipe import Step
    from mreg.registry.replaying import Replay, ReplayPlan

COLOURS = {"bytes": "green", "tensors": "green", "close": "yellow"}

MEANINGS = {
    "bytes": "every file came out again, byte for byte",
    "tensors": "the same weights came out again, bit for bit; other files differ",
    "close": "the weights came out again within the tolerance",
    "different": "other weights came out",
    "failed": "a step failed",
    "not-attempted": "a step could not be done again, so nothing is proved",
}


@click.command(
    cls=Command,
    short_help="Do the work again, and judge what comes out.",
    example="mreg replay prod\nmreg replay prod --from-base --tolerance 1e-4",
)
@click.argument("rev", help="The version to make again.")
@click.option("--from-base", is_flag=True, help="Every step from the imported models on, not only the last.")
@click.option("--dry-run", is_flag=True, help="Show what would be done.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    metavar="X",
    help="The largest relative L2 distance of a tensor that still is close.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Other than recorded; the bits may depend on it.")
@message
@click.pass_obj
def replay(
    call: Call, rev: str, from_base: bool, dry_run: bool, tolerance: float, threads: int | None, message: str
) -> int:
    """Do the steps that led to a version again and compare what comes out.

    The verdict is that of the weakest step: bytes, tensors, close, different, failed or not-attempted. It is recorded;
    what comes out is thrown away. Exits with 0 for bytes, tensors and close, with 1 otherwise.
    """
    from mreg.registry.transform import Progress

    with call.open() as registry:
        if dry_run:
            _tell_plan(call, registry.replay_plan(rev, from_base=from_base))
            return 0
        with progress.of_run("replay") as show:

            def heard(step: Step, said: Progress | StepJudged) -> None:
                if isinstance(said, Progress):
                    show(replace(said, note=f"{step.transform} {said.note}"))

            done = registry.replay(
                rev, from_base=from_base, tolerance=tolerance, threads=threads, message=message, report=heard
            )
    _tell(call, done, tolerance)
    return 0 if done.verdict in COLOURS else 1


def _tell_plan(call: Call, plan: ReplayPlan) -> None:
    names = plan.names
    if call.json:
        screen.emit(
            {
                "version": plan.target.name,
                "from_base": plan.from_base,
                "given": [version.name for version in plan.given],
                "steps": [
                    {
                        "version": names[step.version],
                        "transform": step.transform,
                        "inputs": [names[digest] for _, digest in step.inputs],
                        "wall_s": step.wall_s,
                        "missing": plan.missing.get(step.version),
                    }
                    for step in plan.steps
                ],
            }
        )
        return
    columns = [Column("version"), Column("step", flexible=True), Column("took", right=True), Column("", flexible=True)]
    rows = [
        [
            screen.ink(names[step.version], "yellow"),
            " ".join([text.clean(step.transform), *(names[digest] for _, digest in step.inputs)]),
            "-" if step.wall_s is None else text.seconds(step.wall_s),
            screen.ink(text.clean(plan.missing.get(step.version, "")), "magenta"),
        ]
        for step in plan.steps
    ]
    screen.table(columns, rows)
    given = ", ".join(version.name for version in plan.given)
    screen.line(f"\nwould start from {given} and take about {text.seconds(plan.estimated_s)}; nothing was done")


def _tell(call: Call, done: Replay, tolerance: float) -> None:
    names = done.plan.names
    if call.json:
        screen.emit(
            {
                "version": done.plan.target.name,
                "digest": done.plan.target.digest,
                "verdict": done.verdict,
                "tolerance": tolerance,
                "from_base": done.plan.from_base,
                "steps": [
                    {**step.model_dump(), "version": names[step.version], "digest": step.version} for step in done.steps
                ],
                "event": done.event,
            }
        )
        return
    columns = [
        Column("version"),
        Column("step"),
        Column("verdict"),
        Column("max abs", right=True),
        Column("took", right=True),
        Column("environment and reasons", flexible=True),
    ]
    rows = [
        [
            screen.ink(names[step.version], "yellow"),
            text.clean(step.transform),
            verdict(step.verdict),
            text.number(_distance(step)),
            "-" if step.wall_s is None else text.seconds(step.wall_s),
            "; ".join(part for part in (environment(step.environment), text.clean(_reason(step))) if part) or "same",
        ]
        for step in done.steps
    ]
    screen.table(columns, rows)
    screen.line(f"\n{done.plan.target.name}: {verdict(done.verdict)}, {MEANINGS[done.verdict]}")


def verdict(word: str) -> str:
    """A verdict in its colour."""
    return screen.ink(word, COLOURS.get(word, "red"), bold=True)


def environment(changes: Any) -> str:
    """What was otherwise than recorded: `threads 2 → 1`."""
    return ", ".join(
        f"{text.clean(name)} {_short(before)} → {_short(after)}" for name, (before, after) in changes.items()
    )


def _short(value: Any) -> str:
    shown = "none" if value is None or value == "" else text.value(value)
    return shown[:12] if len(shown) == 64 else shown


def _distance(step: StepJudged) -> float | None:
    return 0.0 if step.verdict in ("bytes", "tensors") else step.max_abs


def _reason(step: StepJudged) -> str:
    if step.reason or step.worst_tensor is None:
        return step.reason
    return f"{step.changed_tensors} tensors differ, most {step.worst_tensor} (rel L2 {text.number(step.rel_l2)})"
