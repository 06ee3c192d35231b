"""`mreg gc`: what nothing needs, taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from mreg.cli import screen, text
from mreg.cli.command import Call, Command

if TYPE_CHECKING:
    from mreg.registry.store.collecting import Collected, Tally

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Duration(click.ParamType[float]):
    """A time such as `90s`, `12h`, `1d` or `2w`, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds."""
        if isinstance(value, int | float):
            return float(value)
        number, unit = value[:-1], value[-1:]
        try:
            seconds = float(number) * _UNITS[unit]
        except (KeyError, ValueError):
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is no time; write 90s, 15m, 12h, 1d or 2w", param, ctx)
        return seconds


@click.command(
    cls=Command,
    short_help="Take away objects that nothing needs, and old caches.",
    example="mreg gc --dry-run\nmreg gc\nmreg gc --now\nmreg gc --undo",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, take nothing.")
@click.option(
    "--grace",
    type=Duration(),
    default="1d",
    show_default=True,
    metavar="TIME",
    help="Leave objects that were written so short ago.",
)
@click.option(
    "--keep",
    type=Duration(),
    default="7d",
    show_default=True,
    metavar="TIME",
    help="How long objects stay in quarantine before they are deleted.",
)
@click.option(
    "--caches",
    type=Duration(),
    default="30d",
    show_default=True,
    metavar="TIME",
    help="Remove caches, logs of failed runs, checkpoints and stopped replays that nobody touched for so long.",
)
@click.option("--now", is_flag=True, help="No grace and no quarantine: the room is free at once.")
@click.option("--undo", is_flag=True, help="Put everything that is in quarantine back.")
@click.pass_obj
def gc(call: Call, dry_run: bool, grace: float, keep: float, caches: float, now: bool, undo: bool) -> None:
    """Move objects that no event, version or other object needs into quarantine, and delete what was there for long.

    They are what failed imports and interrupted runs left, and the rest of versions that were evicted. Versions and
    datasets never go. Others may work meanwhile: what they have in hand is safe, whatever the times.
    """
    if undo and (dry_run or now):
        raise click.UsageError("--undo stands alone")
    with call.open() as registry:
        if undo:
            done = registry.gc_undo()
        else:
            done = registry.gc(grace=grace, kept=keep, stale=caches, now=now, dry_run=dry_run)
    if call.json:
        screen.emit({"dry_run": dry_run, **_document(done)})
    elif undo:
        screen.line(f"{text.plural(done.back, 'object')} put back into the store")
    else:
        _tell(done, dry_run=dry_run, now=now)


def _document(done: Collected) -> dict[str, Any]:
    return {
        "bytes": done.bytes,
        "objects": done.objects,
        "kinds": {name: _tally(tally) for name, tally in done.swept.items()},
        "deleted": _tally(done.deleted),
        "quarantined": _tally(done.quarantined),
        "young": _tally(done.young),
        "put_back": done.back,
        "caches": {name: _tally(tally) for name, tally in done.caches.items()},
        "temporary": done.temporary,
        "busy": done.busy,
    }


def _tally(tally: Tally) -> dict[str, int]:
    return {"objects": tally.objects, "bytes": tally.bytes}


def _tell(done: Collected, *, dry_run: bool, now: bool) -> None:
    would = "would be " * dry_run
    kinds = ", ".join(f"{text.plural(tally.objects, name)}" for name, tally in done.swept.items() if tally.objects)
    if done.objects:
        place = "deleted" if now else "moved into quarantine"
        screen.line(f"{kinds}, {text.size(done.bytes)}, needed by nothing: {would}{place}")
    else:
        screen.line("no object is needless" + " but those below" * bool(done.young.objects))
    if done.deleted.objects:
        screen.line(f"{_sum(done.deleted, 'object')} {would}deleted from quarantine")
    if done.young.objects:
        screen.line(f"{_sum(done.young, 'object')} needed by nothing, and too young: --grace 0s takes them")
    if done.quarantined.objects:
        screen.line(f"{_sum(done.quarantined, 'object')} in quarantine: --undo puts them back, --now deletes them")
    if done.back:
        screen.line(f"{text.plural(done.back, 'object')} {would}put back, since they are needed again")
    for name, tally in done.caches.items():
        if tally.objects:
            screen.line(f"{_sum(tally, 'old file')} in {name} {would}deleted")
    if done.temporary:
        screen.line(f"{text.plural(done.temporary, 'folder')} of dead processes removed")
    if done.busy:
        screen.line("something is running, so caches were left alone")


def _sum(tally: Tally, name: str) -> str:
    return f"{text.plural(tally.objects, name)}, {text.size(tally.bytes)},"
