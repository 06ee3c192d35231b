"""`mreg revert`: one step's effect taken out of a later version."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, rebase, screen, text
from mreg.cli.command import Call, Command, message

if TYPE_CHECKING:
    from mreg.registry.chains.reverting import Reverted, RevertPlan, Way
    from mreg.registry.chains.rewriting import Key
    from mreg.registry.versions import Version

SHOWN = 6
"""How many of the tensors are named for people; `--json` names them all."""


@click.command(
    cls=Command,
    short_help="Take one step's effect out of a later version.",
    example="mreg revert v3 --from prod --dry-run\nmreg revert v3 --from prod --as prod -m 'the edit was wrong'",
)
@click.argument("rev", help="The version whose step is taken out.")
@click.option("--from", "from_", metavar="REV", required=True, help="The version to take it out of.")
@click.option("--as", "as_", metavar="REF", help="A name to give to the new version.")
@click.option(
    "--way",
    type=click.Choice(["weights", "rebase"]),
    help="Only so: by weights, which runs nothing again, or by making the chain again without the step.",
)
@click.option("--force", is_flag=True, help="Give it the name even if it fails a guard; that is recorded.")
@click.option("--dry-run", is_flag=True, help="Say which way it would go and why; do nothing.")
@message
@click.pass_obj
def revert(
    call: Call, rev: str, from_: str, as_: str | None, way: Way | None, force: bool, dry_run: bool, message: str
) -> int:
    """Take one step's effect out of a version that came of it. Both versions stay.

    By weights where that is exact: what the step changed is still in the later version bit for bit, so it becomes what
    it was before the step, and nothing else changes. Where a later step changed it too, the chain is made again without
    the step, as mreg rebase --drop does. The exit code is 1 where a guard keeps the name from moving.
    """
    with call.open() as registry:
        if dry_run:
            _tell_plan(call, registry.revert_plan(rev, from_, way=way))
            return 0
        with progress.of_run("revert", at_once=False) as show:
            done = registry.revert(
                rev,
                from_,
                way=way,
                ref=as_,
                message=message,
                force=force,
                report=lambda transform, said: show(replace(said, note=f"{transform} {said.note}")),
            )
        (row,) = registry.nodes([done.version.digest])
    _tell(call, done, as_, recalled=row["recalled"])
    return int(done.refused is not None)


def _document(plan: RevertPlan, made: dict[Key, Version], version: Version | None) -> dict[str, Any]:
    chain = plan.chain
    if chain is not None:
        steps = [rebase.document(line, made) for line in chain.lines]
    else:
        steps = [
            {
                "action": "run" if plan.answer is None else "reuse",
                "transform": "revert",
                "old": plan.target.name,
                "version": version.name if version else None,
                "params": {"version": plan.step.digest},
                "inputs": [plan.target.name, plan.step.name],
                "checked": True,
                "wall_s": None,
            }
        ]
    return {
        "version": version.name if version else None,
        "digest": version.digest if version else None,
        "weights": version.weights if version else None,
        "reverted": plan.version.name,
        "from": plan.target.name,
        "way": plan.way,
        "reason": plan.reason,
        "tensors": list(plan.put_back.tensors) if plan.put_back else [],
        "files": list(plan.put_back.files) if plan.put_back else [],
        "steps": steps,
    }


def _tell_plan(call: Call, plan: RevertPlan) -> None:
    if call.json:
        screen.emit(_document(plan, {}, plan.answer))
        return
    _way(plan, {})
    screen.line("\nnothing was done")


def _tell(call: Call, done: Reverted, ref: str | None, *, recalled: list[dict[str, Any]]) -> None:
    plan, version = done.plan, done.version
    made = {key: one.version for key, one in done.rebased.made.items()} if done.rebased else {}
    if call.json:
        told = {
            "ref": ref if done.refused is None else None,
            "recalled": recalled,
            "refused": str(done.refused) if done.refused is not None else None,
            "cached": done.applied.cached if done.applied else not made,
            "event": done.applied.event if done.applied else None,
        }
        screen.emit({**_document(plan, made, version), **told})
        return
    _way(plan, made)
    named = f" ({screen.ink(text.clean(ref), 'green')})" if ref and done.refused is None else ""
    screen.line(
        f"\n{screen.ink(version.name, 'yellow', bold=True)}{named} is {plan.target} without {plan.version}"
        f"{', answered from the log' if done.applied and done.applied.cached else ''}"
    )
    if done.refused is not None:
        screen.note(f"mreg: {done.refused}")
    if recalled and plan.way == "weights":
        screen.note(f"{version} still came of what is recalled; with --way rebase it would not come of {plan.version}")
    screen.hint(f"mreg diff {plan.target} {version}")


def _way(plan: RevertPlan, made: dict[Key, Version]) -> None:
    if plan.chain is not None:
        screen.line(f"{screen.ink('by rebase', bold=True)}: {text.clean(plan.reason)}")
        rebase.table(plan.chain, made)
        return
    assert plan.put_back is not None
    screen.line(f"{screen.ink('by weights', bold=True)}: {text.clean(plan.reason)}")
    changed = [*plan.put_back.tensors, *plan.put_back.files]
    for name in changed[:SHOWN]:
        screen.line(f"  {text.clean(name)}")
    if len(changed) > SHOWN:
        screen.line(f"  and {text.amount(len(changed) - SHOWN)} more")
