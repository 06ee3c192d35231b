"""What `mreg diff` says of scores and of behaviour: two versions side by side on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mreg.cli import scored, screen, text
from mreg.cli.screen import Column

if TYPE_CHECKING:
    from mreg.registry.measures.scores import Score
    from mreg.registry.registry import Registry
    from mreg.registry.versions import Version


def scores(registry: Registry, a: Version, b: Version) -> list[dict[str, Any]]:
    """Every question that was put to either: both answers, None where one is missing, and the difference."""
    from mreg.registry.measures import tradeoff

    found = [*registry.counted(a, b), *registry.scores(a, b)]
    rows = []
    for column in tradeoff.columns(found):
        before, after = (_value(column.answers.get(one.name)) for one in (a, b))
        known = None if before is None or after is None else (before, after)
        rows.append(
            {
                "metric": column.metric,
                "name": column.title,
                "data": column.data,
                "settings": next(iter(column.answers.values())).settings,
                "a": before,
                "b": after,
                "difference": known[1] - known[0] if known else None,
                "ratio": known[1] / known[0] if known and known[0] else None,
                "asked": {"a": a.name in column.answers, "b": b.name in column.answers},
            }
        )
    return rows


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def tell_scores(rows: Sequence[Mapping[str, Any]], a: str, b: str) -> None:
    """Print them."""
    columns = [Column("score"), Column(a, right=True), Column(b, right=True), Column("change", right=True)]
    screen.table(columns, [_score_row(row) for row in rows])
    if all(row["metric"] in ("size", "parameters") for row in rows):
        screen.hint(f"nothing was measured of either: mreg eval {a} {b} --data ROWS")


def _score_row(row: Mapping[str, Any]) -> list[str]:
    cells = [
        scored.value(row["metric"], row[side]) if row["asked"][side] else screen.ink("missing", "magenta")
        for side in "ab"
    ]
    if row["difference"] is None:
        return [text.clean(row["name"]), *cells, ""]
    change = "same" if row["difference"] == 0 else f"{row['difference']:+.4g}"
    if row["ratio"] is not None and row["difference"] and math.isfinite(row["ratio"]):
        change += f" ({row['ratio'] - 1:+.1%})".replace("%", " %")
    return [
        text.clean(row["name"]),
        *cells,
        screen.ink(change, scored.better(row["metric"], row["a"], row["b"]) or None),
    ]


def behaviour(registry: Registry, a: Version, b: Version, data: str, rows: int, report: Any) -> dict[str, Any]:
    """KL(A‖B) a token, agreement, and the rows where the two differ most. Measured once, then answered from the log."""
    from mreg.registry.models import datasets

    found = registry.evaluate(b, data=data, metrics=("kl", "agreement"), against=a, differences=rows, report=report)
    by_name = {score.metric: score for score in found.scores}
    worst = [row for made in found.made for row in datasets.rows(registry, made.digest) if "expected" in row]
    return {
        "data": by_name["kl"].data,
        "dataset": by_name["kl"].dataset,
        "kl": by_name["kl"].document(),
        "agreement": by_name["agreement"].document(),
        "rows": worst,
    }


def tell_behaviour(told: Mapping[str, Any], a: str, b: str) -> None:
    """Print it, the two answers to each row below each other."""
    kl, agreement = told["kl"], told["agreement"]
    unit = text.clean(kl["unit_of_n"]).removesuffix("s")
    screen.pairs(
        [
            (f"KL({a}‖{b})", f"{scored.about(kl)}, nats a {unit}"),
            ("agreement", f"{scored.about(agreement)}, the same most probable {unit if unit == 'token' else 'label'}"),
        ],
        indent="  ",
    )
    for row in told["rows"]:
        agreed = text.percent(row["agreement"])
        screen.line(f"\n  row {row['row']}, KL {text.number(row['kl'])}, {agreed} agreed")
        screen.line(f"    {screen.ink(_tail(row['text']), dim=True)}")
        shown = [("expected", text.clean(row["expected"]))]
        for name, side in ((a, row["a"]), (b, row["b"])):
            likely = ", ".join(
                f"{_quoted(one['token'])} {text.percent(one['probability'])}" for one in side["next"][:3]
            )
            shown.append((name, f"{screen.ink(text.clean(side['continuation']), bold=True)}  [{likely}]"))
        screen.pairs(shown, indent="    ")


def _tail(words: str, most: int = 160) -> str:
    shown = text.clean(words)
    return shown if len(shown) <= most else f"…{shown[-most:]}"


def _quoted(token: str) -> str:
    return f"“{text.clean(token)}”"
