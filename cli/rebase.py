"""`mreg rebase`: a new chain from an old one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry import Registry
    from mreg.registry.chains.rebasing import PlannedStep, RebasePlan
    from mreg.registry.chains.rewriting import Changes, Key
    from mreg.registry.versions import Version

COLOURS = {"keep": "bright_black", "reuse": "green", "run": "yellow", "insert": "yellow", "drop": "red"}

MEANINGS = {
    "keep": "as it is",
    "reuse": "the log knows the answer",
    "run": "to be run",
    "insert": "to be run, new",
    "drop": "taken out",
}


@click.command(
    cls=Command,
    short_help="Make a new chain: drop, change or insert a step, or start from another base.",
    example="mreg rebase prod --drop v4 --dry-run\nmreg rebase prod --set v3:sparsity=0.3 --as prod-30\n"
    "mreg rebase prod --onto v9\nmreg rebase prod --insert 'v2:cast dtype=bfloat16'",
)
@click.argument("rev", help="The end of the old chain.")
@click.option("--drop", metavar="REV", multiple=True, help="Take this step out; repeat it for more.")
@click.option(
    "--set",
    "set_",
    metavar="REV:KEY=VALUE",
    multiple=True,
    help="Change an option of this step; null leaves it to its default.",
)
@click.option("--onto", metavar="[OLD=]REV", multiple=True, help="Start from this version, not from the imported OLD.")
@click.option(
    "--insert", metavar="'REV:TRANSFORM KEY=VALUE …'", multiple=True, help="Do another step after this version."
)
@click.option("--as", "as_", metavar="REF", help="A name to give to the new version; no other name moves.")
@click.option("--dry-run", is_flag=True, help="Show the plan and its conflicts, run nothing.")
@message
@click.pass_obj
def rebase(
    call: Call,
    rev: str,
    drop: Sequence[str],
    set_: Sequence[str],
    onto: Sequence[str],
    insert: Sequence[str],
    as_: str | None,
    dry_run: bool,
    message: str,
) -> None:
    """Make a new chain from an old one, which stays as it is.

    Steps that a change does not touch are kept, those that the log has an answer to are reused, the rest is run again.
    What cannot work is found before anything is run.
    """
    with call.open() as registry:
        changes = _changes(registry, rev, drop, set_, onto, insert)
        if dry_run:
            plan = registry.rebase_plan(rev, changes)
            _tell_plan(call, plan)
            return
        with progress.of_run("rebase") as show:
            done = registry.rebase(
                rev,
                changes,
                ref=as_,
                message=message,
                report=lambda transform, said: show(replace(said, note=f"{transform} {said.note}")),
            )
    made = {key: applied.version for key, applied in done.made.items()}
    if call.json:
        screen.emit(
            {
                "version": done.version.name,
                "digest": done.version.digest,
                "weights": done.version.weights,
                "from": done.plan.target.name,
                "ref": as_,
                "steps": [document(line, made) for line in done.plan.lines],
            }
        )
        return
    table(done.plan, made)
    named = f" ({as_})" if as_ else ""
    screen.line(f"\n{screen.ink(done.version.name, 'yellow', bold=True)}{named} is {done.plan.target} rebased")
    screen.hint(f"mreg diff {done.plan.target} {done.version} --recipe")


def _changes(
    registry: Registry,
    rev: str,
    drop: Sequence[str],
    set_: Sequence[str],
    onto: Sequence[str],
    insert: Sequence[str],
) -> Changes:
    """What was typed, resolved. Raises what is wrong with it."""
    from mreg.cli import params
    from mreg.registry.chains.rewriting import Changes, Insert

    settings: dict[Any, dict[str, Any]] = {}
    for typed in set_:
        name, setting = _split(typed, ":", "--set", "REV:KEY=VALUE")
        settings.setdefault(registry.version(name).digest, {}).update(params.settings([setting]))
    inserts: dict[Any, tuple[Insert, ...]] = {}
    for typed in insert:
        name, step = _split(typed, ":", "--insert", "'REV:TRANSFORM KEY=VALUE …'")
        transform, *pairs = shlex.split(step) or [""]
        after = registry.version(name).digest
        inserts[after] = (*inserts.get(after, ()), Insert(transform, params.settings(pairs)))
    changes = Changes(
        drop=frozenset(registry.version(name).digest for name in drop),
        settings=settings,
        onto=dict(_onto(registry, rev, typed) for typed in onto),
        inserts=inserts,
    )
    if not changes.mentioned:
        raise click.UsageError("nothing to change: give --drop, --set, --onto or --insert")
    return changes


def _onto(registry: Registry, rev: str, typed: str) -> tuple[Any, Any]:
    """The imported version that is replaced, and the one that replaces it."""
    old, _, new = typed.rpartition("=")
    to = registry.version(new).digest
    if old:
        return registry.version(old).digest, to
    bases = [step.version for step in registry.recipe(rev) if not step.inputs]
    if len(bases) > 1:
        names = ", ".join(version.name for version in registry.versions() if version.digest in bases)
        raise click.UsageError(
            f"{rev} comes from {names}: say which to replace, as in --onto {names.split(',')[0]}={new}"
        )
    return bases[0], to


def _split(typed: str, by: str, option: str, form: str) -> tuple[str, str]:
    name, found, rest = typed.partition(by)
    if not found or not name or not rest:
        raise click.UsageError(f"{option} takes {form}, it was {typed!r}")
    return name, rest


def _tell_plan(call: Call, plan: RebasePlan) -> None:
    if call.json:
        screen.emit(
            {
                "version": plan.target.name,
                "estimated_s": round(plan.estimated_s, 3),
                "steps": [document(line, {}) for line in plan.lines],
            }
        )
        return
    table(plan, {})
    again = sum(line.action in ("run", "insert") for line in plan.lines)
    took = f", about {text.seconds(plan.estimated_s)} as recorded" if plan.estimated_s else ""
    screen.line(f"\nwould run {text.plural(again, 'step')}{took}; nothing was done")


def document(line: PlannedStep, made: Mapping[Key, Version]) -> dict[str, Any]:
    """One line of the plan for `--json`."""
    new = line.version or made.get(line.key)
    return {
        "action": line.action,
        "transform": line.transform,
        "old": line.old.name if line.old else None,
        "version": new.name if new else None,
        "params": dict(line.params),
        "inputs": list(line.inputs),
        "checked": line.checked,
        "wall_s": line.wall_s,
    }


def table(plan: RebasePlan, made: Mapping[Key, Version]) -> None:
    """The plan, with what was made where it was done."""
    columns = [Column("old"), Column("new"), Column("step", flexible=True), Column("", flexible=True)]
    rows = []
    for line in plan.lines:
        new = line.version or made.get(line.key)
        said = "run" if line.key in made and line.action != "reuse" else MEANINGS[line.action]
        rows.append(
            [
                screen.ink(line.old.name, "yellow") if line.old else "",
                screen.ink(new.name, "yellow") if new else "",
                " ".join([text.clean(line.transform), *line.inputs]),
                screen.ink(said if line.checked or made else f"{said}; checked when reached", COLOURS[line.action]),
            ]
        )
    screen.table(columns, rows)
