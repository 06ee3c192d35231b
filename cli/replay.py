"""`mreg replay`: the work done again, and judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, replayed, screen, text
from mreg.cli.command import Call, Command, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.chains.recipe import Step
    from mreg.registry.log.events import StepJudged
    from mreg.registry.registry import Registry
    from mreg.registry.replay.replaying import ReplayPlan

REPORTS = (".html", ".md")


@click.command(
    cls=Command,
    short_help="Do the work again, and judge what comes out.",
    example="mreg replay prod\n"
    "mreg replay prod --from-base --jobs 2 --report replay.html\n"
    "mreg replay prod --from-base --resume",
)
@click.argument("rev", help="The version to make again.")
@click.option("--from-base", is_flag=True, help="Every step from the imported models on, not only the last.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, on what, and what is missing for it.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-3,
    show_default=True,
    metavar="X",
    help="The largest relative L2 distance of a tensor that still is close.",
)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Other than recorded; the bits may depend on it.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="So many steps at once, where they do not rest on each other.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a replay of this version that was stopped.")
@click.option("--behaviour", metavar="FILE|NAME", help="Where bits differ, run both on these rows.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Write it up for people: .html or .md.")
@message
@click.pass_obj
def replay(
    call: Call,
    rev: str,
    from_base: bool,
    dry_run: bool,
    tolerance: float,
    threads: int | None,
    jobs: int,
    resume: bool,
    behaviour: str | None,
    report: Path | None,
    message: str,
) -> int:
    """Do the steps that led to a version again and compare what comes out.

    The verdict is that of the weakest step: bytes, tensors, close, different, failed or not-attempted. It is recorded;
    what comes out is thrown away. Exits with 0 for bytes, tensors and close, with 1 otherwise.

    The numbers of a step that differs: the largest distance of an element, absolute, relative to the larger of the two,
    and in representable numbers between them (ulps); the first tensor that differs, as the files have them; and the one
    that is farthest off. A replay that was stopped keeps what it judged for --resume, until another one has ended.
    """
    if report is not None:
        _check_report(report, dry_run)
    with call.open() as registry:
        if dry_run:
            _tell_plan(call, registry, registry.replay_plan(rev, from_base=from_base), jobs)
            return 0
        with progress.of_run("replay") as show:
            done = registry.replay(
                rev,
                from_base=from_base,
                tolerance=tolerance,
                threads=threads,
                jobs=jobs,
                resume=resume,
                behaviour=behaviour,
                message=message,
                report=_showing(show),
            )
        if report is not None:
            from mreg.cli import replay_report

            replay_report.write(report, registry, done, threads=threads)
    replayed.tell(done, report, as_json=call.json)
    return 0 if done.verdict in replayed.COLOURS else 1


def _check_report(path: Path, dry_run: bool) -> None:
    """What can be known to go wrong with a report is told before the work. Raises UsageError."""
    if dry_run:
        raise click.UsageError("--report tells of work that was done; leave --dry-run out")
    if path.suffix not in REPORTS:
        raise click.UsageError(f"--report {path} must end in {' or '.join(REPORTS)}")
    if not path.parent.is_dir():
        raise click.UsageError(f"--report {path}: there is no folder {path.parent}")


def _showing(show: Any) -> Any:
    """What shows the progress of every step, and how many are done."""
    from mreg.registry.transform import Progress

    judged = 0

    def heard(step: Step, said: Progress | StepJudged) -> None:
        nonlocal judged
        if isinstance(said, Progress):
            show(replace(said, note=f"{judged + 1}: {step.transform} {said.note}"))
        else:
            judged += 1

    return heard


def _tell_plan(call: Call, registry: Registry, plan: ReplayPlan, jobs: int) -> None:
    from mreg.registry.replay import kept as replay_kept

    kept = [len(one.steps) for _, one in replay_kept.kept(registry.root, plan.target.digest)]
    if call.json:
        screen.emit(_plan_document(plan, jobs, kept))
        return
    names, blocked = plan.names, plan.blocked
    columns = [Column("version"), Column("step", flexible=True), Column("took", right=True), Column("", flexible=True)]
    rows = [
        [
            screen.ink(names[step.version], "yellow"),
            " ".join([text.clean(step.transform), *(names[digest] for _, digest in step.inputs), *_data(plan, step)]),
            "-" if step.wall_s is None else text.seconds(step.wall_s),
            screen.ink(text.clean(blocked.get(step.version) or _uncomparable(plan, step)), "magenta"),
        ]
        for step in plan.steps
    ]
    screen.table(columns, rows)
    screen.line()
    screen.pairs(_needs(plan))
    if kept:
        screen.line(f"a stopped replay has {text.plural(kept[0], 'step')} judged: --resume goes on from there")
    can = len(plan.steps) - len(blocked)
    given = ", ".join(version.name for version in plan.given)
    together = f", {text.seconds(plan.estimate(jobs))} with {jobs} jobs" if jobs > 1 else ""
    least = "" if can == len(plan.steps) else f"; {can} of {len(plan.steps)} steps can be done"
    screen.line(
        f"would start from {given} and take about {text.seconds(plan.estimated_s)}{together}{least}; nothing was done"
    )


def _needs(plan: ReplayPlan) -> Iterator[tuple[str, str]]:
    """What is taken as it is, and whether it is there."""
    for version in plan.given:
        lacks = plan.absent.get(version.digest)
        there = "there" if lacks is None else screen.ink(text.clean(lacks), "magenta")
        yield version.name, f"{text.size(version.bytes)}, {there}"
    for digest, dataset in plan.data.items():
        there = f"made again by {plan.names[plan.makers[digest]]}" if digest in plan.makers else "there"
        lacks = plan.absent.get(digest)
        shown = there if lacks is None else screen.ink("not in the store", "magenta")
        yield text.clean(dataset.name), f"{text.plural(dataset.rows, 'row')}, {shown}"


def _data(plan: ReplayPlan, step: Step) -> list[str]:
    return [f"data={text.clean(plan.data[digest].name)}" for digest in step.datasets if digest in plan.data]


def _uncomparable(plan: ReplayPlan, step: Step) -> str:
    return "the recorded weights are not in the store: only digests can be compared" * (step.version in plan.absent)


def _plan_document(plan: ReplayPlan, jobs: int, kept: Sequence[int]) -> dict[str, Any]:
    names = plan.names
    return {
        "version": plan.target.name,
        "from_base": plan.from_base,
        "given": [version.name for version in plan.given],
        "inputs": [
            {"version": one.name, "bytes": one.bytes, "missing": plan.absent.get(one.digest)} for one in plan.given
        ],
        "datasets": [
            {
                "dataset": dataset.name,
                "digest": digest,
                "rows": dataset.rows,
                "made_by": names[plan.makers[digest]] if digest in plan.makers else None,
                "missing": plan.absent.get(digest),
            }
            for digest, dataset in plan.data.items()
        ],
        "steps": [
            {
                "version": names[step.version],
                "transform": step.transform,
                "inputs": [names[digest] for _, digest in step.inputs],
                "datasets": [plan.data[digest].name for digest in step.datasets if digest in plan.data],
                "wall_s": step.wall_s,
                "determinism": step.determinism,
                "missing": plan.missing.get(step.version),
                "blocked": plan.blocked.get(step.version),
                "comparable": step.version not in plan.absent,
            }
            for step in plan.steps
        ],
        "jobs": jobs,
        "estimated_s": plan.estimate(jobs),
        "kept": kept[0] if kept else 0,
    }
