"""The tables, as SQLModel: the events and every projection of them. The schema has one home, and this is it."""

from __future__ import annotations

from typing import Any

from duckdb_sqlalchemy import Dialect
from sqlalchemy import JSON, BigInteger, Column
from sqlalchemy.schema import CreateTable
from sqlmodel import Field, SQLModel


def _json() -> Any:
    return Field(sa_column=Column(JSON, nullable=True))


def _big(*, primary_key: bool = False) -> Any:
    return Field(sa_column=Column(BigInteger, primary_key=primary_key, autoincrement=False, nullable=True))


class EventRow(SQLModel, table=True):
    """One event, as the journal has it."""

    __tablename__ = "event"
    seq: int = _big(primary_key=True)
    id: str = Field(unique=True)
    kind: str
    recorded_at: str
    actor: str
    payload: dict[str, Any] = _json()
    prev: str
    hash: str


class VersionRow(SQLModel, table=True):
    """One model content; `number` is its place in order of first appearance."""

    __tablename__ = "version"
    digest: str = Field(primary_key=True)
    number: int = Field(unique=True)
    manifest: str
    weights: str
    files: int
    tensors: int
    parameters: int = _big()
    bytes: int = _big()
    adapter: bool
    architecture: str
    base: str | None
    marks: list[str] = _json()
    origin: str
    transform: str | None
    run: str | None
    source: str | None
    message: str
    seq: int = _big()
    recorded_at: str


class RunRow(SQLModel, table=True):
    """One attempt at a transform; `mode` is `apply`, `work` (of somebody's own code) or `recorded` (done elsewhere)."""

    __tablename__ = "run"
    id: str = Field(primary_key=True)
    mode: str
    status: str
    key: str | None
    transform: str
    transform_version: int | None
    code: str | None
    determinism: str | None
    params: dict[str, Any] = _json()
    inputs: list[dict[str, Any]] = _json()
    datasets: list[str] = _json()
    seed: int | None = _big()
    threads: int | None
    device: str | None
    portable: bool | None
    processes: int | None
    output: str | None
    error: str | None
    facts: dict[str, Any] = _json()
    environment: dict[str, Any] = _json()
    wall_s: float | None
    made: list[str] = _json()
    log: str | None
    actor: str
    message: str
    started_seq: int = _big()
    started_at: str
    ended_seq: int | None = _big()
    ended_at: str | None


class EdgeRow(SQLModel, table=True):
    """`child` was made from `parent`, by a run, in a role."""

    __tablename__ = "edge"
    run: str = Field(primary_key=True)
    role: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    parent: str
    child: str
    transform: str
    seq: int = _big()


class RefRow(SQLModel, table=True):
    """Where a name points now."""

    __tablename__ = "ref"
    name: str = Field(primary_key=True)
    digest: str
    seq: int = _big()
    recorded_at: str


class RefMoveRow(SQLModel, table=True):
    """Every move that a name ever made."""

    __tablename__ = "ref_move"
    seq: int = _big(primary_key=True)
    ref: str
    old: str | None
    new: str | None
    reason: str
    message: str
    forced: list[str] = _json()
    recorded_at: str
    actor: str


class DatasetRow(SQLModel, table=True):
    """Rows that a transform or an evaluation reads."""

    __tablename__ = "dataset"
    digest: str = Field(primary_key=True)
    rows: int = _big()
    bytes: int = _big()
    columns: list[str] = _json()
    format: str
    source: str
    seq: int = _big()
    recorded_at: str


class DatasetNameRow(SQLModel, table=True):
    """What a dataset's name means now."""

    __tablename__ = "dataset_name"
    name: str = Field(primary_key=True)
    digest: str
    seq: int = _big()


class RunDatasetRow(SQLModel, table=True):
    """`child` was made with `dataset`."""

    __tablename__ = "run_dataset"
    run: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    dataset: str
    child: str


class ReplayRow(SQLModel, table=True):
    """One time that a chain was done again, and what it came to; `verdict` is null until it has ended."""

    __tablename__ = "replay"
    id: str = Field(primary_key=True)
    version: str
    from_base: bool
    tolerance: float
    verdict: str | None
    steps: list[dict[str, Any]] = _json()
    environment: dict[str, Any] = _json()
    host: str | None
    resumed: int | None
    actor: str
    started_seq: int = _big()
    started_at: str
    ended_seq: int | None = _big()
    ended_at: str | None


class EvaluationRow(SQLModel, table=True):
    """One time that a version was measured, and under what."""

    __tablename__ = "evaluation"
    id: str = Field(primary_key=True)
    version: str
    inputs: list[dict[str, Any]] = _json()
    dataset: str | None
    params: dict[str, Any] = _json()
    code: str
    seed: int = _big()
    threads: int
    device: str
    portable: bool
    environment: dict[str, Any] = _json()
    wall_s: float
    made: list[str] = _json()
    log: str | None
    message: str
    actor: str
    seq: int = _big()
    recorded_at: str


class ScoreRow(SQLModel, table=True):
    """One measurement of an evaluation; of several with one `key`, the last `seq` counts."""

    __tablename__ = "score"
    evaluation: str = Field(primary_key=True)
    position: int = Field(primary_key=True)
    version: str
    key: str
    metric: str
    value: float | None
    unit: str
    n: int = _big()
    unit_of_n: str
    low: float | None
    high: float | None
    interval: str
    settings: dict[str, Any] = _json()
    against: str | None
    dataset: str | None
    machine: bool
    details: dict[str, Any] = _json()
    seq: int = _big()


class JudgementRow(SQLModel, table=True):
    """One time that a guard was held against a version's scores; of the same guard, the last counts."""

    __tablename__ = "judgement"
    seq: int = _big(primary_key=True)
    guard: str
    version: str
    source: str | None
    other: str | None
    dataset: str | None
    value: float | None
    reference: float | None
    holds: bool
    words: str
    ref: str | None
    scores: list[str] = _json()
    actor: str
    recorded_at: str


class PolicyRow(SQLModel, table=True):
    """What a name demands of what it moves to."""

    __tablename__ = "policy"
    ref: str = Field(primary_key=True)
    guards: list[str] = _json()
    message: str
    actor: str
    seq: int = _big()
    recorded_at: str


class EvictionRow(SQLModel, table=True):
    """A version whose weights were taken out of the store and not made again yet."""

    __tablename__ = "eviction"
    version: str = Field(primary_key=True)
    replay: str
    verdict: str
    objects: int = _big()
    bytes: int = _big()
    message: str
    actor: str
    seq: int = _big()
    recorded_at: str


class RecallRow(SQLModel, table=True):
    """A version or a dataset that is recalled; what came of it is not listed here but follows from the edges."""

    __tablename__ = "recall"
    digest: str = Field(primary_key=True)
    kind: str
    message: str
    actor: str
    seq: int = _big()
    recorded_at: str


TABLES: dict[str, type[SQLModel]] = {
    str(row.__tablename__): row
    for row in (
        EventRow,
        VersionRow,
        RunRow,
        EdgeRow,
        RefRow,
        RefMoveRow,
        DatasetRow,
        DatasetNameRow,
        RunDatasetRow,
        ReplayRow,
        EvaluationRow,
        ScoreRow,
        JudgementRow,
        PolicyRow,
        RecallRow,
        EvictionRow,
    )
}


def definitions() -> list[str]:
    """The statements that make the tables, in DuckDB's SQL."""
    # In plain SQL a float is called FLOAT, which DuckDB keeps in 32 bits; its dialect knows.
    dialect = Dialect()
    return [str(CreateTable(SQLModel.metadata.tables[name]).compile(dialect=dialect)) for name in TABLES]
