"""Refs: names that move, every move an event, none of them lost to a race."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.chains import recalls
from mreg.registry.errors import Refused
from mreg.registry.log import queries
from mreg.registry.measures import scores
from mreg.registry.revs import check_ref_name
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.chains.recalls import Recall
    from mreg.registry.digests import Digest
    from mreg.registry.log.events import RefMoved
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry
    from mreg.registry.transform import Report

Reason = Literal["set", "import", "apply", "record", "rollback", "delete"]


@dataclass(frozen=True, slots=True)
class Moved:
    """A ref's move. `event` is None when it already was where it should go."""

    ref: str
    old: Version | None
    new: Version | None
    event: int | None
    forced: tuple[str, ...] = ()


def _unheard(said: object) -> None:
    """Tell nobody how far the measuring is."""


def set_ref(
    registry: Registry, name: str, version: Version, *, message: str, force: bool = False, report: Report = _unheard
) -> Moved:
    """Point a name at a version, if that holds the guards of the name's policy, or with `force`. Raises GuardFailed."""
    return move_ref(registry, name, version, reason="set", message=message, force=force, report=report)


def delete_ref(registry: Registry, name: str, *, message: str) -> Moved:
    """Take a name away. Raises UnknownRev when there is none."""

    def nowhere(reader: Reader) -> None:
        if name not in queries.refs(reader):
            raise queries.unknown_ref(reader, name)

    return _move(registry, name, nowhere, reason="delete", message=message)


def rollback(registry: Registry, name: str, *, to: Version | None, message: str, force: bool = False) -> Moved:
    """Point a name where it was before its last move; asked again, it goes further back. A deleted one comes back.

    With `to`, at that version, which it must have named once. Going back must be quick, so nothing is measured: only a
    version that is known to fail a guard is refused. Raises Refused when there is nothing to go back to, GuardFailed.
    """

    def before(reader: Reader) -> Version:
        moves = [(move["reason"], move["new"]) for move in reversed(queries.ref_log(reader, name))]
        if to is None:
            return queries.version(reader, earlier(name, moves))
        if to.digest not in {new for _, new in moves}:
            raise Refused(
                f"{name} never was at {to}", fix=f"`mreg ref log {name}` shows where, `mreg ref set` goes anywhere"
            )
        return to

    return _move(registry, name, before, reason="rollback", message=message, force=force)


def earlier(name: str, moves: Sequence[tuple[str, Digest | None]]) -> Digest:
    """Where a rollback of a ref that made these moves, each `(reason, new)`, goes. Raises Refused.

    The moves are an undo stack: one forward pushes, a rollback pops. Being deleted is a place that is not gone back to.
    """
    stack: list[Digest | None] = []
    for reason, new in moves:
        if reason == "rollback" and new in stack:
            del stack[len(stack) - stack[::-1].index(new) :]
        elif not stack or stack[-1] != new:
            stack.append(new)
    found = next((place for place in reversed(stack[:-1]) if place is not None), None)
    if found is None:
        raise Refused(f"{name} has nowhere to go back to", fix=f"`mreg ref log {name}` shows its moves")
    return found


def move_ref(
    registry: Registry,
    name: str,
    version: Version,
    *,
    reason: Reason,
    message: str,
    force: bool = False,
    report: Report = _unheard,
) -> Moved:
    """Record that a name moves from where it is to `version`; nothing is recorded when it is there already.

    The version may fail no guard of its own, and no guard of the name's policy against where the name was before;
    what those need and nobody measured yet is measured now. Raises GuardFailed, unless `force` overrules them.
    """
    return _move(registry, name, lambda _: version, reason=reason, message=message, force=force, report=report)


class _Asks(Exception):
    """The move is not free: guards have to be asked, which is not done while everybody waits."""


def _move(
    registry: Registry,
    name: str,
    target: Callable[[Reader], Version | None],
    *,
    reason: Reason,
    message: str,
    force: bool = False,
    report: Report = _unheard,
) -> Moved:
    check_ref_name(name)
    old: Version | None = None
    new: Version | None = None
    demands = reason != "rollback"
    recalled: tuple[Recall, ...] = ()
    cleared: tuple[Any, ...] | None = None
    forced: tuple[str, ...] = ()

    def decision(reader: Reader) -> RefMoved | None:
        from mreg.registry.log.events import RefMoved

        nonlocal old, new, recalled
        old, new = queries.refs(reader).get(name), target(reader)
        before, after = (version.digest if version else None for version in (old, new))
        if before == after:
            return None
        if new is not None:
            recalled = recalls.of(reader, new.digest)
            is_free = not recalled and scores.is_free(reader, name, new.digest, demands=demands)
            # Somebody may have moved it, changed what it demands or recalled it while the guards were asked.
            if not is_free and cleared != (old, new, scores.policies(reader).get(name, ()), recalled):
                raise _Asks
        return RefMoved(ref=name, old=before, new=after, reason=reason, forced=forced, message=message)

    while True:
        try:
            recorded = registry.log.decide(decision)
        except _Asks:
            from mreg.registry.measures.judging import clear

            assert new is not None
            policy = registry.log.ask(scores.policies).get(name, ())
            forced = clear(registry, name, old, new, recalled=recalled, demands=demands, force=force, report=report)
            cleared = (old, new, policy, recalled)
            continue
        return Moved(name, old, new, recorded.seq if recorded else None, forced)
