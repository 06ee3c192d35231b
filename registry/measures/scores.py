"""What was measured of versions, and what guards said of it: questions to the projections, as values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mreg.registry import digests
from mreg.registry.digests import Digest
from mreg.registry.log.reading import Reader
from mreg.registry.measures import metrics
from mreg.registry.versions import Version


@dataclass(frozen=True, slots=True)
class Score:
    """One measurement of a version, with names for what it was taken on. `low` to `high` is its 95 % interval.

    `value` is None where it was no number. `task` metrics are called `task/name`.
    """

    version: str
    digest: Digest
    key: Digest
    metric: str
    value: float | None
    unit: str
    n: int
    unit_of_n: str
    low: float | None
    high: float | None
    interval: str
    settings: dict[str, Any]
    data: str | None
    dataset: Digest | None
    against: str | None
    machine: bool
    details: dict[str, Any]
    evaluation: str
    wall_s: float
    event: int
    at: str

    @property
    def name(self) -> str:
        """`perplexity(general)`, or with the other version: `kl(general) from v1`."""
        measured = f"{self.metric}({self.data})" if self.data else self.metric
        return f"{measured} from {self.against}" if self.against else measured

    @property
    def question(self) -> tuple[Any, ...]:
        """What was asked, whatever the version: scores of one question can be held against each other."""
        settings = tuple(sorted((name, repr(value)) for name, value in self.settings.items()))
        return (self.metric, self.dataset, self.against if metrics.metric(self.metric).against else None, settings)

    def document(self) -> dict[str, Any]:
        """The score for `--json`."""
        return {
            "metric": self.metric,
            "value": self.value,
            "unit": self.unit,
            "n": self.n,
            "unit_of_n": self.unit_of_n,
            "low": self.low,
            "high": self.high,
            "interval": self.interval,
            "data": self.data,
            "dataset": self.dataset,
            "against": self.against,
            "settings": self.settings,
            "machine_dependent": self.machine,
            "details": self.details,
            "evaluation": self.evaluation,
            "wall_s": self.wall_s,
            "event": self.event,
            "at": self.at,
        }


_SCORES = """SELECT s.*, 'v' || v.number AS name, e.recorded_at, e.wall_s,
    (SELECT min(n.name) FROM dataset_name n WHERE n.digest = s.dataset) AS data,
    (SELECT 'v' || a.number FROM version a WHERE a.digest = s.against) AS other
    FROM score s JOIN evaluation e ON e.id = s.evaluation JOIN version v ON v.digest = s.version"""

_JUDGEMENTS = """SELECT j.*, 'v' || v.number AS name,
    (SELECT 'v' || a.number FROM version a WHERE a.digest = j.source) AS source_name,
    (SELECT 'v' || b.number FROM version b WHERE b.digest = j.other) AS other_name
    FROM judgement j JOIN version v ON v.digest = j.version"""


def of_versions(reader: Reader, versions: Collection[Digest]) -> list[Score]:
    """The newest score of each question that was put to these versions, in the order of the questions."""
    return _newest(reader, f"{_SCORES} WHERE s.version IN (SELECT unnest(?))", [list(versions)])


def known(reader: Reader, keys: Collection[Digest]) -> dict[Digest, Score]:
    """The newest answer to each of these questions that has one."""
    found = _newest(reader, f"{_SCORES} WHERE s.key IN (SELECT unnest(?))", [list(keys)])
    return {score.key: score for score in found}


def recorded(reader: Reader, evaluation: str) -> list[Score]:
    """The scores of one evaluation."""
    return _newest(reader, f"{_SCORES} WHERE s.evaluation = ?", [evaluation])


def made(reader: Reader, evaluation: str) -> list[Digest]:
    """The datasets that came out of one evaluation."""
    row = reader.one("SELECT made FROM evaluation WHERE id = ?", [evaluation])
    return list(row["made"]) if row else []


def _newest(reader: Reader, sql: str, parameters: Sequence[Any]) -> list[Score]:
    rows = reader.rows(f"{sql} ORDER BY s.seq, s.position", parameters)
    newest = {row["key"]: row for row in rows}
    first = {row["key"]: place for place, row in reversed(list(enumerate(rows)))}
    return [_score(newest[key]) for key in sorted(newest, key=lambda key: first[key])]


def _score(row: dict[str, Any]) -> Score:
    return Score(
        version=row["name"],
        digest=row["version"],
        key=row["key"],
        metric=row["metric"],
        value=row["value"],
        unit=row["unit"],
        n=row["n"],
        unit_of_n=row["unit_of_n"],
        low=row["low"],
        high=row["high"],
        interval=row["interval"],
        settings=row["settings"] or {},
        data=row["data"] or (row["dataset"][:12] if row["dataset"] else None),
        dataset=row["dataset"],
        against=row["other"],
        machine=row["machine"],
        details=row["details"] or {},
        evaluation=row["evaluation"],
        wall_s=row["wall_s"],
        event=row["seq"],
        at=row["recorded_at"],
    )


def key_of(
    name: str,
    version: Version,
    against: Version | None = None,
    dataset: Digest | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Digest:
    """What a question is asked twice by: the metric and its version, what it is about, and the settings."""
    metric = metrics.metric(name)
    return digests.of_json(
        digests.SCORE,
        {
            "metric": name,
            "metric_version": metric.version,
            "version": version.digest,
            "against": against.digest if against is not None and metric.against else None,
            "dataset": dataset if metric.data else None,
            "settings": dict(settings or {}),
        },
    )


def base_of(reader: Reader, version: Version) -> Version | None:
    """The version that an adapter fits."""
    row = reader.one("SELECT * FROM version WHERE digest = ?", [version.base]) if version.base else None
    return None if row is None else Version.from_row(row)


def counted(reader: Reader, version: Version, name: str) -> Score:
    """The size or the number of parameters: the log knows both without an evaluation."""
    wholes = [one for one in (version, base_of(reader, version)) if one is not None]
    return Score(
        version=version.name,
        digest=version.digest,
        key=key_of(name, version),
        metric=name,
        value=float(sum(one.bytes if name == "size" else one.parameters for one in wholes)),
        unit=metrics.METRICS[name].unit,
        n=1,
        unit_of_n="version",
        low=None,
        high=None,
        interval="",
        settings={},
        data=None,
        dataset=None,
        against=None,
        machine=False,
        details={},
        evaluation="",
        wall_s=0.0,
        event=version.seq,
        at=version.recorded_at,
    )


def judgements(reader: Reader, version: Digest) -> list[dict[str, Any]]:
    """What guards say of a version: the last judgement of each guard, source and ref, in order of appearance."""
    rows = reader.rows(f"{_JUDGEMENTS} WHERE j.version = ? ORDER BY j.seq", [version])
    return list({(row["guard"], row["source"], row["ref"]): row for row in rows}.values())


def broken(reader: Reader, version: Digest, ref: str | None = None) -> list[dict[str, Any]]:
    """The guards that a version fails: those of the version itself, and with `ref` those that this name asked."""
    return [row for row in judgements(reader, version) if not row["holds"] and row["ref"] in (None, ref)]


def failing(reader: Reader) -> dict[Digest, list[str]]:
    """In words, the guards that each version itself fails, by version; what a name asked of it is not counted."""
    rows = reader.rows(
        """SELECT j.version, j.words FROM judgement j WHERE j.ref IS NULL AND NOT j.holds AND j.seq = (
               SELECT max(k.seq) FROM judgement k WHERE k.version = j.version AND k.guard = j.guard
               AND k.source IS NOT DISTINCT FROM j.source AND k.ref IS NULL)
           ORDER BY j.seq"""
    )
    found: dict[Digest, list[str]] = {}
    for row in rows:
        found.setdefault(row["version"], []).append(row["words"])
    return found


def policies(reader: Reader) -> dict[str, tuple[str, ...]]:
    """The guards that each name demands, by name."""
    rows = reader.rows("SELECT ref, guards FROM policy ORDER BY ref")
    return {row["ref"]: tuple(row["guards"]) for row in rows}


def is_free(reader: Reader, ref: str, version: Digest, *, demands: bool) -> bool:
    """Whether a name may move to a version with no further question; `demands` counts its policy."""
    return not (demands and ref in policies(reader)) and not broken(reader, version, ref)
