"""`mreg show`: one version whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from mreg.cli import scored, screen, steps, text
from mreg.cli.command import Call, Command

_MODES = {"recorded": " (recorded, done elsewhere)", "work": " (recorded while it was done)"}
_ENVIRONMENT = ("python", "torch", "transformers", "peft", "trl", "cpu", "cpu_capability", "platform", "launcher", "on")


@click.command(cls=Command, short_help="Show one version whole.", example="mreg show prod")
@click.argument("rev", help="The version.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Draw the curves of its training, or its calibration, into a .png.",
)
@click.pass_obj
def show(call: Call, rev: str, plot: Path | None) -> None:
    """Show one version: what it is, how it was made, what was measured, what came of it."""
    with call.open() as registry:
        row = registry.show(rev)
    if plot is not None:
        _draw(plot, row)
    if call.json:
        screen.emit(_document(row))
        return
    title = f"{screen.ink(row['version'], 'yellow', bold=True)}{steps.recalled(row)} {steps.refs(row)}".rstrip()
    screen.line(f"{title}  {text.clean(row['architecture'])}")
    for name, pairs in (
        ("", _what(row)),
        ("made by", _how(row)),
        ("measured", _facts(row)),
        ("scores", _scores(row)),
        ("guards", _guards(row)),
        ("compute", _compute(row)),
        ("since", _since(row)),
    ):
        kept = [(key, shown) for key, shown in pairs if shown]
        if kept:
            if name:
                screen.line(f"\n{screen.ink(name, bold=True)}")
            screen.pairs(kept, indent="  ")


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    document = steps.document(row)
    more = (
        "files",
        "tensors",
        "manifest",
        "base",
        "inputs",
        "children",
        "data",
        "run",
        "also_made_by",
        "replays",
        "reproduced",
        "compute",
    )
    judged = [
        {
            "guard": one["guard"],
            "holds": one["holds"],
            "words": one["words"],
            "value": one["value"],
            "reference": one["reference"],
            "source": one["source_name"],
            "other": one["other_name"],
            "ref": one["ref"],
            "event": one["seq"],
        }
        for one in row["guards"]
    ]
    told = {"guards": judged, "facts": (row["run"] or {}).get("facts") or {}}
    return {**document, **{name: row[name] for name in more}, **told}


def _what(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for one in row["recalled"]:
        name = "" if one["digest"] == row["digest"] else f"{text.clean(one.get('version') or one['dataset'])}, "
        by = f"{name}by {text.clean(one['actor'])} on {text.moment(one['at'])} UTC"
        yield screen.ink("recalled", "red", bold=True), f"{by}: {text.clean(one['message'])}"
    yield "digest", row["digest"]
    yield "weights", row["weights"]
    counts = f"{text.amount(row['parameters'])} parameters in {text.plural(row['tensors'], 'tensor')}"
    yield "size", f"{text.size(row['bytes'])}, {text.plural(row['files'], 'file')}, {counts}"
    if row["evicted"]:
        yield "evicted", f"{text.moment(row['evicted'])} UTC; mreg restore {row['version']} makes the weights again"
    yield "fits", row.get("base_version") or ""
    yield "trusted", screen.ink(", ".join(row["marks"]), "magenta")
    yield "recorded", f"{text.moment(row['recorded_at'])} UTC, event {row['seq']}"
    yield "message", text.clean(row["message"])


def _how(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    run = row["run"]
    if run is None:
        yield "import", text.clean(row["source"] or "")
        return
    by = " ".join(f"{one['role']}={one['version']}" for one in row["inputs"])
    yield text.clean(run["transform"]), by + _MODES.get(run["mode"], "")
    for one in row["data"]:
        yield "data", f"{text.clean(one['name'] or one['digest'][:12])}, {text.plural(one['rows'], 'row')}"
    for name, value in (run["params"] or {}).items():
        yield text.clean(name), "" if value is None else text.brief(text.value(value))
    if run["mode"] == "apply":
        portable = ", portable" if run["portable"] else ""
        shared = f"{run['processes']} processes of " if run["processes"] > 1 else ""
        threads = f"{shared}{text.plural(run['threads'], 'thread')}{portable}"
        yield "seed", f"{run['seed']}, {threads}, device {text.clean(run['device'])}"
        yield "promise", f"{run['determinism']}, version {run['transform_version']}"
    yield "took", text.seconds(run["wall_s"]) if run["wall_s"] is not None else ""
    environment = run["environment"] or {}
    if code := environment.get("code"):
        changed = ", with changes that are not committed" if code.get("diff") else ""
        yield "code", text.clean(code["commit"][:12] or "in no git commit") + changed
    yield "with", ", ".join(f"{name} {text.value(environment[name])}" for name in _ENVIRONMENT if environment.get(name))
    yield "actor", text.clean(run["actor"])


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in ((row["run"] or {}).get("facts") or {}).items():
        shown = "bins that --plot draws" if _is_reliability(value) else text.brief(text.fact(name, value))
        yield text.clean(name), shown


def _scores(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for score in row["scores"]:
        yield scored.name(score), scored.about(score)


def _guards(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for one in row["guards"]:
        asked = f"for {text.clean(one['ref'])}: " if one["ref"] else ""
        mark = "holds" if one["holds"] else screen.ink("fails", "red", bold=True)
        yield mark, asked + scored.verdict(one["holds"], one["words"])


def _compute(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step, all_steps = row["compute"]["step"], row["compute"]["lineage"]
    if step["runs"]:
        yield "this step", _taken(step)
    if all_steps["runs"] > step["runs"]:
        yield "with all before", f"{_taken(all_steps)}, in {text.plural(all_steps['runs'], 'step')}"


def _taken(took: Mapping[str, Any]) -> str:
    parts = [
        f"{text.amount(took['tokens'])} tokens" if took["tokens"] else "",
        f"{took['flops']:.3g} FLOPs" if took["flops"] else "",
        text.seconds(took["wall_s"]) if took["wall_s"] is not None else "",
    ]
    return ", ".join(part for part in parts if part) or "untold"


def _draw(path: Path, row: Mapping[str, Any]) -> None:
    from mreg.cli import plot, reliability

    facts = (row["run"] or {}).get("facts") or {}
    title = f"{row['version']} {text.clean(row['transform'] or 'import')}"
    if _is_reliability(facts.get("reliability")):
        reliability.draw(path, title, facts["reliability"])
        return
    curves = {text.clean(name): points for name, value in facts.items() if (points := text.curve(value))}
    plot.draw(path, title, curves)


def _is_reliability(given: Any) -> bool:
    """Whether a fact holds the bins of a reliability diagram; transforms from outside may mean something else by it."""
    if not isinstance(given, Mapping) or not given:
        return False
    fields = {"n", "confidence", "accuracy"}
    listed = [bins if isinstance(bins, list) and bins else [None] for bins in given.values()]
    return all(isinstance(one, Mapping) and fields <= one.keys() for bins in listed for one in bins)


def _since(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "children", ", ".join(f"{one['version']} ({text.clean(one['transform'])})" for one in row["children"])
    for one in row["also_made_by"]:
        yield "made again", f"by {text.clean(one['transform'])} on {text.moment(one['ended_at'])}"
    yield "reproduced", _reproduced(row["reproduced"])
    if row["replays"]:
        last = row["replays"][-1]
        base = " from the base" if last["from_base"] else ""
        yield "last replay", f"{last['verdict']}{base}, {text.moment(last['ended_at'])} UTC"
    if step := row["reproduced"]["as_step"]:
        yield "as a step", f"{step['verdict']}, in a replay of {step['of']}, {text.moment(step['at'])} UTC"


def _reproduced(told: Mapping[str, Any]) -> str:
    """How often it came out again, bit for bit; nothing where nobody tried."""
    if not told["times"]:
        return screen.ink("never", "red") if told["attempted"] else ""
    times = {1: "once", 2: "twice"}.get(told["times"], f"{told['times']} times")
    machines = {1: "one machine", 2: "two machines"}.get(told["machines"], f"{told['machines']} machines")
    return f"{times}, last on {text.moment(told['last'])} UTC, on {machines}"
