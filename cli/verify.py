"""`mreg verify`: whether a version is whole, and whether its weights bear out what the log says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.proof.verifying import StepClaims, Verified

COLOURS = {"proved": "green", "consistent": "cyan", "contradicted": "red", "not-checkable": "magenta"}

MEANINGS = {
    "contradicted": "the step cannot have left these weights",
    "not-checkable": "only a replay can tell",
    "consistent": "the weights are as the step would leave them",
    "proved": "the weights leave no other account",
}
"""The weakest first."""


@click.command(cls=Command, example="mreg verify prod\nmreg verify prod --claims")
@click.argument("rev", help="The version to look at.")
@click.option("--claims", is_flag=True, help="Hold what each step says it did against the weights, running nothing.")
@click.pass_obj
def verify(call: Call, rev: str, claims: bool) -> int:
    """Check that a version is whole: every object hashes to its name.

    With --claims, every step on the way to it is checked in the weights without running it: a cast rounds, a pruned
    matrix has its zeros, a merge is the mean of its parents, a fused LoRA is its base and a delta. A claim is proved,
    consistent, contradicted or not-checkable, with the number that decides. Exits with 1 when an object is damaged or
    a claim is contradicted.
    """
    with call.open() as registry, progress.of_items("checking") as report:
        found = registry.verify(rev, claims=claims, report=report)
    if call.json:
        screen.emit(_document(found))
    else:
        _tell(found, claims)
    return 0 if found.ok else 1


def _document(found: Verified) -> dict[str, Any]:
    return {
        "ok": found.ok,
        "version": found.version.name,
        "digest": found.version.digest,
        "objects": found.objects,
        "problems": list(found.problems),
        "steps": [
            {
                "version": step.version.name,
                "transform": step.transform,
                "mode": step.mode,
                "inputs": [version.name for version in step.inputs],
                "verdict": step.verdict,
                "claims": [
                    {"claim": claim.what, "verdict": claim.verdict, "evidence": claim.evidence} for claim in step.claims
                ],
            }
            for step in found.steps
        ],
    }


def _tell(found: Verified, claims: bool) -> None:
    for problem in found.problems:
        screen.line(screen.ink(text.clean(problem), "red"))
    whole = "whole" if not found.problems else text.plural(len(found.problems), "problem")
    colour = "red" if found.problems else "green"
    screen.line(f"{text.plural(found.objects, 'object')} of {found.version}: {screen.ink(whole, colour, bold=True)}")
    if not claims:
        return
    if not found.steps:
        screen.line(f"{found.version} was imported: no step claims anything")
        return
    screen.line()
    columns = [
        Column("version"),
        Column("step"),
        Column("claim", flexible=True),
        Column("verdict"),
        Column("evidence", flexible=True),
    ]
    screen.table(columns, [row for step in found.steps for row in _rows(step)])
    verdict = next(word for word in MEANINGS if any(step.verdict == word for step in found.steps))
    screen.line(f"\nthe weakest step is {screen.ink(verdict, COLOURS[verdict], bold=True)}: {MEANINGS[verdict]}")


def _rows(step: StepClaims) -> list[list[str]]:
    made_elsewhere = " (recorded)" * (step.mode != "apply")
    return [
        [
            screen.ink(step.version.name, "yellow") * first,
            (text.clean(step.transform) + made_elsewhere) * first,
            text.clean(claim.what),
            screen.ink(claim.verdict, COLOURS[claim.verdict], bold=True),
            text.clean(claim.evidence),
        ]
        for first, claim in ((place == 0, claim) for place, claim in enumerate(step.claims))
    ]
