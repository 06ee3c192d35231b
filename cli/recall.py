"""`mreg recall`: what is not to be used any more, and all that came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, steps, text
from mreg.cli.command import Call, Command, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.chains.recalling import Impact
    from mreg.registry.chains.recalls import Recall


@click.command(
    cls=Command,
    short_help="Take a version, or all that a dataset went into, out of use.",
    example="mreg recall v3 --dry-run\nmreg recall v3 -m 'trained on the test set'\n"
    "mreg recall customer-mails -m 'consent was withdrawn'\nmreg recall --undo v3 -m 'it was another set'\nmreg recall",
)
@click.argument("what", required=False, metavar="[REV|DATASET]", help="A version, or a dataset by its name or digest.")
@click.option("--undo", is_flag=True, help="Take the recall back.")
@click.option("--dry-run", is_flag=True, help="Show what it would reach, record nothing.")
@message
@click.pass_obj
def recall(call: Call, what: str | None, undo: bool, dry_run: bool, message: str) -> None:
    """Recall a version, or every version that a dataset went into, and everything that came of it in any role.

    What came of it is found in the lineage whenever it is asked, so what is made from it later is recalled too. No name
    moves to a recalled version any more unless with --force; names that are at one already stay there and are listed.
    Nothing is deleted. Without a name, the recalls that stand are listed.
    """
    if what is None:
        if undo or dry_run or message:
            raise click.UsageError("name a version or a dataset")
        with call.open() as registry:
            listed = registry.recalls()
        _tell_all(call, listed)
        return
    with call.open() as registry:
        act = registry.lift_recall if undo else registry.recall
        done = act(what, message=message, dry_run=dry_run)
    if call.json:
        screen.emit(_document(done))
        return
    _tell(done, undo=undo, dry_run=dry_run)


def _document(done: Impact) -> dict[str, Any]:
    return {
        done.target.kind: done.target.name,
        "digest": done.target.digest,
        "recalled": [
            {**steps.node(one.row), "through": one.through, "role": one.role or None} for one in done.versions
        ],
        "refs": [{"ref": name, "version": version} for name, version in done.refs.items()],
        "event": done.event,
    }


def _tell(done: Impact, *, undo: bool, dry_run: bool) -> None:
    reached = len(done.versions) - (done.target.kind == "version")
    more = f", and with it {text.plural(reached, 'version')} that came of it" if reached else ""
    what = text.clean(str(done.target))
    if dry_run:
        screen.line(f"would {'lift the recall of' if undo else 'recall'} {what}{more}; nothing was recorded")
    elif undo:
        still = sum(bool(one.row["recalled"]) for one in done.versions)
        stay = f"; {text.plural(still, 'version')} of these {'is' if still == 1 else 'are'} recalled for another reason"
        screen.line(f"{what} is recalled no longer{more}{stay if still else ''}")
    elif done.event is None:
        screen.line(f"{what} is recalled already{more}; nothing was recorded")
    else:
        screen.line(f"{screen.ink('recalled', 'red', bold=True)} {what}{more}")
    rows = [
        [
            screen.ink(f"v{one.row['number']}", "yellow") + (steps.recalled(one.row) if undo else ""),
            ",".join(map(text.clean, one.row["refs"])) or "-",
            f"{text.clean(one.role)} {text.clean(one.through)}" if one.through else "recalled itself",
            steps.summary(one.row),
        ]
        for one in done.versions
    ]
    if rows:
        columns = (Column("version"), Column("refs", flexible=True), Column("through"), Column("by", flexible=True))
        screen.table(columns, rows)
    if not undo:
        _tell_refs(done)


def _tell_refs(done: Impact) -> None:
    for name, version in done.refs.items():
        screen.line(f"{screen.ink(text.clean(name), 'green', bold=True)} points at {version}")
    if done.refs:
        screen.hint(f"mreg rollback {next(iter(done.refs))}")


def _tell_all(call: Call, listed: list[tuple[Recall, Impact]]) -> None:
    if call.json:
        screen.emit([{**one.document(), **_document(found), "event": one.event} for one, found in listed])
        return
    if not listed:
        screen.hint("nothing is recalled: mreg recall REV|DATASET -m WHY")
        return
    columns = [
        Column("recalled"),
        Column("versions", right=True),
        Column("refs", flexible=True),
        Column("by"),
        Column("recorded (UTC)"),
        Column("why", flexible=True),
    ]
    rows = [
        [
            screen.ink(text.clean(str(found.target)), "red"),
            text.amount(len(found.versions)),
            ",".join(map(text.clean, found.refs)) or "-",
            text.clean(one.actor),
            text.moment(one.at),
            text.clean(one.message),
        ]
        for one, found in listed
    ]
    screen.table(columns, rows)
