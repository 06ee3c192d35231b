"""How a replay reads: its verdicts, its numbers and what was otherwise, in a terminal, as JSON, or for a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.cli import screen, text
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.log.events import StepJudged
    from mreg.registry.replay.replaying import Replay

COLOURS = {"bytes": "green", "tensors": "green", "close": "yellow"}

SAME = ("bytes", "tensors")
"""The verdicts that say bit for bit."""

MEANINGS = {
    "bytes": "every file came out again, byte for byte",
    "tensors": "the same weights came out again, bit for bit; other files differ",
    "close": "the weights came out again within the tolerance",
    "different": "other weights came out",
    "failed": "a step failed",
    "not-attempted": "a step could not be done again, so nothing is proved",
}


def tell(done: Replay, report: Path | None = None, *, as_json: bool = False) -> None:
    """Print how a replay came out, and where it was written up."""
    names = done.plan.names
    if as_json:
        screen.emit(document(done) | ({} if report is None else {"report": str(report)}))
        return
    columns = [
        Column("version"),
        Column("step"),
        Column("verdict"),
        Column("max abs", right=True),
        Column("took", right=True),
        Column("environment and reasons", flexible=True),
    ]
    everywhere = common(done.steps)
    rows = [
        [
            screen.ink(names[step.version], "yellow"),
            text.clean(step.transform),
            verdict(step.verdict),
            text.number(_distance(step)),
            "-" if step.wall_s is None else text.seconds(step.wall_s),
            "; ".join(part for part in (environment(_own(step, everywhere)), *remarks(step, names)) if part) or "same",
        ]
        for step in done.steps
    ]
    screen.table(columns, rows)
    if everywhere:
        screen.line(f"\nevery step ran otherwise than recorded: {environment(everywhere)}")
    first = first_to_differ(done.steps)
    if first is not None:
        screen.line(f"\n{names[first.version]} {text.clean(first.transform)} is the first to differ")
        screen.pairs(numbers(first), indent="  ")
    if done.resumed:
        screen.line(f"\n{text.plural(done.resumed, 'step')} had been judged before the replay was stopped")
    if report is not None:
        screen.line(f"\nwritten up in {text.clean(str(report))}")
    screen.line(f"\n{done.plan.target.name}: {verdict(done.verdict)}, {MEANINGS[done.verdict]}")


def document(done: Replay) -> dict[str, Any]:
    """A replay for `--json`."""
    names = done.plan.names
    return {
        "version": done.plan.target.name,
        "digest": done.plan.target.digest,
        "verdict": done.verdict,
        "tolerance": done.tolerance,
        "from_base": done.plan.from_base,
        "jobs": done.jobs,
        "resumed": done.resumed,
        "host": done.host,
        "environment": done.environment,
        "steps": [
            {
                **step.model_dump(),
                "version": names[step.version],
                "digest": step.version,
                "inherited": [names[digest] for digest in step.inherited],
            }
            for step in done.steps
        ],
        "event": done.event,
    }


def verdict(word: str) -> str:
    """A verdict in its colour."""
    return screen.ink(word, COLOURS.get(word, "red"), bold=True)


def environment(changes: Any) -> str:
    """What was otherwise than recorded: `threads 2 → 1`."""
    return ", ".join(
        f"{text.clean(name)} {short(before)} → {short(after)}" for name, (before, after) in changes.items()
    )


def short(value: Any) -> str:
    """One side of a difference."""
    shown = "none" if value is None or value == "" else text.value(value)
    return shown[:12] if len(shown) == 64 else shown


def common(steps: Sequence[StepJudged]) -> dict[str, Any]:
    """What was otherwise in every step alike, where several were done."""
    done = [step.environment for step in steps if step.wall_s is not None]
    if len(done) < 2:
        return {}
    return {name: change for name, change in done[0].items() if all(one.get(name) == change for one in done)}


def _own(step: StepJudged, everywhere: Mapping[str, Any]) -> dict[str, Any]:
    return {name: change for name, change in step.environment.items() if name not in everywhere}


def first_to_differ(steps: Sequence[StepJudged]) -> StepJudged | None:
    """The first step that gave other bits, and had not been given other ones."""
    return next((step for step in steps if step.verdict in ("close", "different") and not step.inherited), None)


def numbers(step: StepJudged) -> Iterator[tuple[str, str]]:
    """How far a step is off, by what it is called."""
    if step.first_tensor is not None:
        yield "first tensor", text.clean(step.first_tensor)
    if step.worst_tensor is not None:
        yield "worst tensor", f"{text.clean(step.worst_tensor)}, rel L2 {text.number(step.rel_l2)}"
    if step.max_abs is not None:
        ulps = "-" if step.max_ulps is None else f"{step.max_ulps:,}"
        yield "at most", f"{text.number(step.max_abs)} absolute, {text.number(step.max_rel)} relative, {ulps} ulps"


def behaviour(told: Mapping[str, Any]) -> str:
    """How far what came out behaves from what was recorded, or why that is not known."""
    if "refused" in told:
        return f"not compared: {text.clean(told['refused'])}"
    kl, agreement = told["kl"], told["agreement"]
    unit = text.clean(kl["unit_of_n"]).removesuffix("s")
    return f"KL {text.number(kl['value'])} nats a {unit}, {text.percent(agreement['value'])} agreement"


def remarks(step: StepJudged, names: Mapping[Any, str]) -> list[str]:
    """What there is to say of a step besides its verdict."""
    said = [text.clean(_reason(step)), text.clean(step.note)]
    if step.inherited:
        said.append(f"worked on {', '.join(names[digest] for digest in step.inherited)}, which came out otherwise")
    if any(again != recorded for recorded, again in step.made.items()):
        said.append("a dataset that it made came out with other rows")
    if step.behaviour is not None:
        said.append(behaviour(step.behaviour))
    return [one for one in said if one]


def _distance(step: StepJudged) -> float | None:
    return 0.0 if step.verdict in SAME else step.max_abs


def _reason(step: StepJudged) -> str:
    if step.reason or step.worst_tensor is None:
        return step.reason
    differ = f"{text.plural(step.changed_tensors or 0, 'tensor')} differ"
    return f"{differ}{'s' * (step.changed_tensors == 1)}, most {step.worst_tensor} (rel L2 {text.number(step.rel_l2)})"
