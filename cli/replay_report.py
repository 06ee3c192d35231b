"""A replay written up for people, as one HTML or Markdown file: what was done, how it came out, how to do it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.cli import chain_drawing, replayed, steps, text
from mreg.cli.chain_drawing import Arrow, Box
from mreg.cli.page import Block, Cell, Code, Drawing, Heading, Paragraph, Table, as_html, as_markdown
from mreg.registry.files import disk_errors

if TYPE_CHECKING:
    from mreg.registry.chains.recipe import Step
    from mreg.registry.digests import Digest
    from mreg.registry.log.events import StepJudged
    from mreg.registry.registry import Registry
    from mreg.registry.replay.replaying import Replay

TONES = {"bytes": "good", "tensors": "good", "close": "fair"}

Rows = Mapping["Digest", Mapping[str, Any]]


def write(path: Path, registry: Registry, done: Replay, *, threads: int | None) -> None:
    """Write the report to `path`, as its suffix says. Raises StorageFailed."""
    rows = {row["digest"]: row for row in registry.nodes([*done.plan.names])}
    target = done.plan.target
    refs = ", ".join(rows[target.digest]["refs"])
    title = f"Replay of {target.name}{f' ({refs})' * bool(refs)}"
    blocks = list(_blocks(done, rows, threads))
    footer = f"Written by mreg {version_of('mreg')}. The verdicts are event {done.event} of the registry's log."
    page = (as_html if path.suffix == ".html" else as_markdown)(title, blocks, footer=footer)
    with disk_errors(path):
        path.write_text(page, encoding="utf-8")


def _blocks(done: Replay, rows: Rows, threads: int | None) -> Iterator[Block]:
    names = done.plan.names
    yield Paragraph(f"{done.verdict}: {replayed.MEANINGS[done.verdict]}. {_counted(done.steps)}", _tone(done.verdict))
    first = replayed.first_to_differ(done.steps)
    if first is not None:
        yield Paragraph(f"{names[first.version]}, made by {first.transform}, is the first that differs.")
        yield Table((), [[name, said] for name, said in replayed.numbers(first)])
    yield Table((), list(_summary(done)))
    yield Heading("The chain")
    boxes, arrows = _picture(done, rows)
    title = f"The steps that lead to {done.plan.target.name}, with their verdicts"
    yield Drawing(chain_drawing.svg(boxes, arrows, title=title), chain_drawing.mermaid(boxes, arrows))
    yield Heading("Steps")
    yield _steps(done, rows)
    yield from _details(done)
    yield Heading("Otherwise than recorded")
    yield from _differences(done)
    yield Heading("What was taken as it is")
    yield _given(done, rows)
    yield Heading("To do it again")
    yield Paragraph(
        "In a copy of the registry, with the versions of the packages below. With other ones the verdicts may be "
        "weaker, and the difference is named."
    )
    yield Code(list(_commands(done, threads)))
    yield Heading("Ran under")
    yield Table((), [[name, replayed.short(value)] for name, value in (done.environment or {}).items()])
    yield Heading("What the verdicts mean")
    yield Table((), [[Cell(word, _tone(word)), f"{meaning}."] for word, meaning in replayed.MEANINGS.items()])


def _counted(judged: Sequence[StepJudged]) -> str:
    counts: Counter[str] = Counter(step.verdict for step in judged)
    told = ", ".join(f"{counts[word]} {word}" for word in replayed.MEANINGS if counts[word])
    return f"Of {text.plural(len(judged), 'step')}: {told}."


def _summary(done: Replay) -> Iterator[Sequence[str]]:
    target = done.plan.target
    yield "version", target.name
    yield "digest", target.digest
    yield "weights", target.weights
    yield "replayed", f"{text.moment(done.at)} UTC on {done.host}"
    yield "from", "the imported models on" if done.plan.from_base else "the nearest versions in the store on"
    yield (
        "tolerance",
        f"{done.tolerance:g}, the relative L2 distance up to which a tensor is close; fixed before the work",
    )
    yield "took", text.seconds(sum(step.wall_s or 0.0 for step in done.steps)) + _together(done)
    if done.resumed:
        yield "resumed", f"it was stopped and went on; {text.plural(done.resumed, 'step')} had been judged before"


def _together(done: Replay) -> str:
    recorded = sum(step.wall_s or 0.0 for step in done.plan.steps)
    at_once = f", up to {done.jobs} steps at once" if done.jobs > 1 else ""
    return f" of work{at_once}; the recorded runs took {text.seconds(recorded)}"


def _picture(done: Replay, rows: Rows) -> tuple[list[Box], list[Arrow]]:
    plan = done.plan
    boxes = [
        Box(version.name, f"{version.name}  {steps.transform(rows[version.digest])}", "taken as it is")
        for version in plan.given
    ]
    arrows = []
    for step, judged in zip(plan.steps, done.steps, strict=True):
        name = plan.names[step.version]
        boxes.append(Box(name, f"{name}  {step.transform}", judged.verdict, _tone(judged.verdict)))
        for role, digest in step.inputs:
            arrows.append(Arrow(plan.names[digest], name, "" if role in ("source", "others") else role))
        for digest in step.datasets:
            if digest in plan.makers:
                arrows.append(Arrow(plan.names[plan.makers[digest]], name, plan.data[digest].name, data=True))
    return boxes, list(dict.fromkeys(arrows))


def _steps(done: Replay, rows: Rows) -> Table:
    titles = ("version", "step", "verdict", "tensors", "max abs", "max rel", "max ulps", "rel L2", "took", "remarks")
    return Table(
        titles,
        [
            [
                done.plan.names[step.version],
                _made(done, step, rows),
                Cell(judged.verdict, _tone(judged.verdict)),
                _right(_changed(judged)),
                *(_right(_number(judged, value)) for value in (judged.max_abs, judged.max_rel)),
                _right(_number(judged, judged.max_ulps)),
                _right(_number(judged, judged.rel_l2)),
                _right("-" if judged.wall_s is None else text.seconds(judged.wall_s)),
                "; ".join(replayed.remarks(judged, done.plan.names)),
            ]
            for step, judged in zip(done.plan.steps, done.steps, strict=True)
        ],
    )


def _made(done: Replay, step: Step, rows: Rows) -> str:
    plan = done.plan
    data = [f"data={plan.data[digest].name}" for digest in step.datasets if digest in plan.data]
    inputs = [plan.names[digest] for _, digest in step.inputs]
    params = text.params(steps.telling(rows[step.version]["params"] or {}))
    return " ".join([step.transform, *inputs, *data, params]).strip()


def _changed(judged: StepJudged) -> str:
    if judged.verdict in replayed.SAME:
        return "0"
    return "-" if judged.changed_tensors is None else text.amount(judged.changed_tensors)


def _number(judged: StepJudged, value: float | None) -> str:
    if judged.verdict in replayed.SAME:
        return "0"
    return f"{value:,}" if isinstance(value, int) else text.number(value)


def _right(words: str) -> Cell:
    return Cell(words, right=True)


def _details(done: Replay) -> Iterator[Block]:
    """The tensors of every step that differs, and how it behaves."""
    apart = [step for step in done.steps if step.first_tensor is not None]
    if apart:
        yield Heading("Where it differs")
        yield Table(
            ("version", "first tensor, as the files have them", "farthest off"),
            [[done.plan.names[one.version], one.first_tensor or "", one.worst_tensor or ""] for one in apart],
        )
    asked = [step for step in done.steps if step.behaviour is not None]
    if asked:
        yield Heading("How what came out behaves, beside what was recorded")
        yield Table(
            ("version", "on"),
            [[done.plan.names[one.version], replayed.behaviour(one.behaviour or {})] for one in asked],
        )


def _differences(done: Replay) -> Iterator[Block]:
    names = done.plan.names
    found: dict[tuple[str, str, str], list[str]] = {}
    for step in done.steps:
        for name, (before, after) in step.environment.items():
            key = (name, replayed.short(before), replayed.short(after))
            found.setdefault(key, []).append(names[step.version])
    attempted = sum(step.wall_s is not None for step in done.steps)
    if not attempted:
        yield Paragraph("No step was done.")
    elif not found:
        yield Paragraph("Nothing: packages, torch build, processor, threads and code are those of the recorded runs.")
    else:
        yield Table(
            ("what", "recorded", "now", "steps"),
            [[*key, "all" if len(where) == attempted else ", ".join(where)] for key, where in found.items()],
        )


def _given(done: Replay, rows: Rows) -> Table:
    plan = done.plan
    taken = [[one.name, steps.summary(rows[one.digest]), one.digest] for one in plan.given]
    for digest, dataset in plan.data.items():
        if digest not in plan.makers:
            taken.append([dataset.name, f"dataset, {text.plural(dataset.rows, 'row')}", digest])
    return Table(("name", "what", "digest"), taken)


def _commands(done: Replay, threads: int | None) -> Iterator[str]:
    target = done.plan.target
    words = [
        "mreg",
        "replay",
        target.name,
        *["--from-base"] * done.plan.from_base,
        "--tolerance",
        f"{done.tolerance:g}",
    ]
    words += [] if threads is None else ["--threads", str(threads)]
    words += [] if done.jobs == 1 else ["--jobs", str(done.jobs)]
    told = next((step.behaviour for step in done.steps if step.behaviour is not None), None)
    words += [] if told is None else ["--behaviour", told["dataset"][:12]]
    yield f"# {target.name} is {target.digest[:12]}"
    yield shlex.join(words)


def _tone(verdict: str) -> str:
    return TONES.get(verdict, "bad")
