"""`mreg eval`: versions are measured, and what was measured is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mreg.cli import progress, scored, screen, text
from mreg.cli.command import Call, Command, message
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.measures.evaluating import Evaluated
    from mreg.registry.registry import Registry

_SETTINGS = (
    "max_length",
    "max_rows",
    "batch_size",
    "dtype",
    "bins",
    "repeats",
    "samples",
    "max_new_tokens",
    "num_fewshot",
    "include_path",
)


@click.command(
    "eval",
    cls=Command,
    short_help="Measure versions.",
    example="mreg eval v3 --data general\n"
    "mreg eval v1 v3 --data test.jsonl --metric accuracy --metric ece\n"
    "mreg eval v3 --metric latency --metric throughput\n"
    "mreg eval v3 --task capitals --include-path ./tasks",
)
@click.argument("revs", nargs=-1, required=True, metavar="REV...", help="The versions.")
@click.option(
    "--data", multiple=True, metavar="FILE|NAME", help="Rows to measure on: text, messages, prompt and completion, or "
    "text and label; repeat it for more.",
)  # fmt: skip
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="perplexity, nll, accuracy, f1, ece, brier, kl, agreement, latency, throughput, size or parameters; by "
    "default what suits the model and the data. Repeat it for more.",
)
@click.option("--against", metavar="REV", help="What kl and agreement compare with; by default the first parent.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="A task of lm-evaluation-harness; repeat it.")
@click.option("--include-path", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
              help="A folder with .yaml files of tasks; with it, nothing is downloaded.")  # fmt: skip
@click.option("--num-fewshot", type=click.IntRange(0), metavar="N", help="Examples before each question of a task.")
@click.option("--chat", is_flag=True, help="Ask the questions of a task in the chat template of the model.")
@click.option("--max-rows", type=click.IntRange(1), metavar="N", help="Only the first so many rows or examples.")
@click.option("--max-length", type=click.IntRange(2), metavar="N", help="Tokens at which a row is cut.  [default: 512]")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Rows computed at once.  [default: 4]")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              help="What is computed in; auto is as it is stored.  [default: auto]")  # fmt: skip
@click.option("--bins", type=click.IntRange(2), metavar="N", help="Bins of ece.  [default: 15]")
@click.option(
    "--repeats", type=click.IntRange(2), metavar="N", help="Timings of latency and throughput.  [default: 10]"
)
@click.option(
    "--samples", type=click.IntRange(1), metavar="N", help="Go on from the first N rows, and keep what it says."
)
@click.option("--max-new-tokens", type=click.IntRange(1), metavar="N", help="How far samples go.  [default: 32]")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="For bootstrap intervals and few shots.")
@click.option("--threads", type=click.IntRange(1), metavar="N", show_default="all cores", help="For the child process.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Such as cpu or cuda.")
@click.option("--portable", is_flag=True, help="The same bits for any number of threads; slower.")
@click.option("--fresh", is_flag=True, help="Measure again what the log knows.")
@message
@click.pass_obj
def eval_(call: Call, /, **typed: Any) -> None:
    """Measure versions and record the scores, each with its 95 % interval.

    A score belongs to a version, a dataset and the settings; asked for again, it is answered from the log. latency and
    throughput tell as much of this machine as of the model.
    """
    options = {name: typed[name] for name in _SETTINGS if typed[name] is not None}
    if "include_path" in options:
        options["include_path"] = str(options["include_path"])
    if typed["chat"]:
        options["apply_chat_template"] = True
    found: dict[str, list[Evaluated]] = {}
    with call.open() as registry:
        for rev in typed["revs"]:
            version = registry.version(rev)
            for data in typed["data"] or (None,):
                with progress.of_run(f"measuring {version}") as report:
                    answered = registry.evaluate(
                        version,
                        data=data,
                        metrics=typed["metrics"],
                        tasks=typed["tasks"],
                        against=typed["against"],
                        seed=typed["seed"],
                        threads=typed["threads"],
                        device=typed["device"],
                        portable=typed["portable"],
                        fresh=typed["fresh"],
                        message=typed["message"],
                        report=report,
                        **options,
                    )
                found.setdefault(version.name, []).append(answered)
        made = {name: [rows for one in several for rows in _made(registry, one)] for name, several in found.items()}
    if call.json:
        documents = [_document(name, several, made[name]) for name, several in found.items()]
        screen.emit(documents[0] if len(documents) == 1 else documents)
        return
    _table(found)
    for name, rows in made.items():
        for row in rows:
            screen.line(f"\n{screen.ink(name, 'yellow')} on row {row['row']}: {_tail(row['prompt'])}")
            screen.line(f"  says      {screen.ink(text.clean(row['generated']), bold=True)}")
            screen.line(f"  expected  {text.clean(row['expected'])}")


def _document(name: str, several: list[Evaluated], samples: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {
        (score.key, score.metric): scored.document(score, cached=score.key in one.cached)
        for one in several
        for score in one.scores
    }
    return {
        "version": name,
        "digest": several[0].version.digest,
        "scores": list(scores.values()),
        "made": [{"dataset": made.name, "digest": made.digest} for one in several for made in one.made],
        "samples": samples,
    }


def _table(found: dict[str, list[Evaluated]]) -> None:
    columns = [
        Column("version"),
        Column("metric"),
        Column("value", right=True),
        Column("95 % interval"),
        Column("n"),
        Column("", flexible=True),
    ]
    rows: list[list[str]] = []
    for name, several in found.items():
        for one in several:
            for score in one.scores:
                told = score.document()
                counted = score.metric in ("size", "parameters")
                remarks = [
                    f"interval: {score.interval}" if score.interval else "",
                    scored.on(score.settings) if score.machine else "",
                    "from the log" if score.key in one.cached and not counted else "",
                ]
                row = [
                    screen.ink(name, "yellow"),
                    scored.name(told),
                    screen.ink(scored.value(score.metric, score.value), bold=True),
                    scored.interval(score.metric, score.low, score.high),
                    "" if counted else text.plural(score.n, text.clean(score.unit_of_n).removesuffix("s")),
                    ", ".join(remark for remark in remarks if remark),
                ]
                if row not in rows:
                    rows.append(row)
    if rows:
        screen.table(columns, rows)


def _made(registry: Registry, answered: Evaluated) -> list[dict[str, Any]]:
    """The samples that came out besides."""
    from mreg.registry.models import datasets

    return [row for one in answered.made for row in datasets.rows(registry, one.digest) if "generated" in row]


def _tail(words: str, most: int = 120) -> str:
    shown = text.clean(words)
    return shown if len(shown) <= most else f"…{shown[-most:]}"
