"""What a step came to, whether it was run or only recorded: for `apply` and `record`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mreg.cli import screen, steps, text
from mreg.cli.command import Call

if TYPE_CHECKING:
    from mreg.registry.runs.applying import Applied


def role_and_rev(other: str) -> str | tuple[str, str]:
    """What was given with `--with`: a rev, or `role=rev` taken apart."""
    role, equals, rev = other.partition("=")
    return (role, rev) if equals else other


def tell(call: Call, done: Applied, *, ref: str | None) -> None:
    """Print the outcome."""
    if call.json:
        screen.emit(document(done, ref))
        return
    version = done.version
    parents = " ".join(parent.name for parent in done.parents)
    name = screen.ink(version.name, "yellow", bold=True)
    named = f" ({screen.ink(text.clean(ref), 'green')})" if ref and done.refused is None else ""
    screen.line(f"{name}{named}  {done.transform} {parents}  {text.params(steps.telling(done.params))}".rstrip())
    about = [
        screen.ink(version.digest[:12], dim=True),
        text.size(version.bytes),
        "" if done.wall_s is None or done.cached else text.seconds(done.wall_s),
        "" if done.cached else f"{text.size(done.bytes_added)} added",
    ]
    screen.line("  " + ", ".join(part for part in about if part))
    facts = [
        (text.clean(key), text.fact(key, value)) for key, value in done.facts.items() if not isinstance(value, dict)
    ]
    screen.pairs([(key, shown) for key, shown in facts if shown], indent="  ")
    for words in _remarks(done):
        screen.line("  " + screen.ink(words, "magenta"))
    for one in done.judged:
        mark = screen.ink("holds", "green") if one.holds else screen.ink("fails", "red", bold=True)
        screen.line(f"  {mark}  {text.clean(one.words)}")
    if done.refused is not None:
        screen.note(f"mreg: {done.refused}")
    if done.disproves is not None:
        screen.note(
            f"warning: the very same step gave {done.disproves.name} before, with other weights: "
            f"{done.transform} does not keep its promise to be repeatable"
        )


def document(done: Applied, ref: str | None) -> dict[str, Any]:
    """The outcome for `--json`."""
    return {
        "version": done.version.name,
        "digest": done.version.digest,
        "weights": done.version.weights,
        "parents": [parent.name for parent in done.parents],
        "transform": done.transform,
        "params": done.params,
        "facts": done.facts,
        "ref": ref if done.refused is None else None,
        "guards": [
            {
                "guard": one.guard,
                "holds": one.holds,
                "value": one.value,
                "reference": one.reference,
                "other": one.other.name if one.other else None,
                "words": one.words,
                "event": one.event,
            }
            for one in done.judged
        ],
        "refused": str(done.refused) if done.refused is not None else None,
        "is_new": done.is_new,
        "cached": done.cached,
        "unchanged": done.unchanged,
        "disproves": done.disproves.name if done.disproves else None,
        "bytes": done.version.bytes,
        "bytes_added": done.bytes_added,
        "fused": [{"adapter": one.parents[0].name, "version": one.version.name} for one in done.fused],
        "wall_s": done.wall_s,
        "event": done.event,
    }


def _remarks(done: Applied) -> list[str]:
    remarks = [
        f"{one.parents[0].name} is an adapter: it was fused into its base first, which is {one.version.name}"
        for one in done.fused
    ]
    if done.unchanged:
        is_same = done.version.digest == done.parents[0].digest
        what = "nothing changed" if is_same else "only files beside the weights changed"
        remarks.append(f"{what}: the weights are those of {done.parents[0].name}")
    if done.cached:
        remarks.append(f"answered from the log (event {done.event}), nothing was run; --fresh runs it")
    elif not done.is_new:
        remarks.append(f"no new version: exactly {done.version.name} came out")
    return remarks
