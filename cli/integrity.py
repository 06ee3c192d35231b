"""`mreg fsck` and `mreg rebuild`: whether everything is as it was written."""

from __future__ import annotations

import click
from mreg.cli import progress, screen, text
from mreg.cli.command import Call, Command


@click.command(cls=Command, example="mreg fsck\nmreg fsck --repair")
@click.option("--repair", is_flag=True, help="Mend what can be proved: journal, HEAD and database.")
@click.pass_obj
def fsck(call: Call, repair: bool) -> int:
    """Check the log, the tables and every object. Exits with 1 when something is wrong."""
    with call.open() as registry, progress.of_items("checking objects") as report:
        findings = registry.fsck(repair=repair, report=report)
    if call.json:
        screen.emit(
            {
                "ok": findings.ok,
                "problems": [{"where": one.where, "what": one.what} for one in findings.problems],
                "notes": findings.notes,
                "repaired": findings.repaired,
                "events": findings.events,
                "objects": findings.objects,
            }
        )
        return 0 if findings.ok else 1
    for words in (*findings.repaired, *findings.notes):
        screen.line(text.clean(words))
    for problem in findings.problems:
        screen.line(f"{screen.ink(text.clean(problem.where), 'red')}: {text.clean(problem.what)}")
    checked = f"{text.plural(findings.events, 'event')} and {text.plural(findings.objects, 'object')} checked"
    found = "everything is as it was written" if findings.ok else text.plural(len(findings.problems), "problem")
    screen.line(f"{checked}, {screen.ink(found, 'green' if findings.ok else 'red', bold=True)}")
    return 0 if findings.ok else 1


@click.command(cls=Command, example="mreg rebuild")
@click.pass_obj
def rebuild(call: Call) -> None:
    """Make the database anew from the journal. It is a cache: nothing is lost, nothing is recorded."""
    with call.open() as registry:
        events = registry.rebuild()
    if call.json:
        screen.emit({"ok": True, "problems": [], "events": events})
    else:
        screen.line(f"registry.duckdb was made anew from {text.plural(events, 'event')}")
