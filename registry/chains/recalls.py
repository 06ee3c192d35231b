"""Recalls: what is not to be used any more, and all that came of it; worked out from the graph whenever it is asked.

A recall reaches what was made from a version in any role, and from a dataset: versions by the run that first made them,
adapters that fit one, datasets that a run or an evaluation wrote. A content that was there before by another way did
not come of it, even if a later run made the same bits from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mreg.registry.digests import Digest
from mreg.registry.log.reading import Reader

Kind = Literal["version", "dataset"]


@dataclass(frozen=True, slots=True)
class Recall:
    """A version or a dataset that was recalled: by whom, when and why."""

    kind: Kind
    digest: Digest
    name: str
    message: str
    actor: str
    event: int
    at: str

    def document(self) -> dict[str, Any]:
        """The recall for `--json`."""
        return {
            self.kind: self.name,
            "digest": self.digest,
            "message": self.message,
            "actor": self.actor,
            "event": self.event,
            "at": self.at,
        }


@dataclass(frozen=True, slots=True)
class Way:
    """How something came of something else: it was made `of` it in this role."""

    of: Digest
    role: str


def spread(roots: Iterable[Digest], ways: Iterable[tuple[Digest, Digest, str]]) -> dict[Digest, Way | None]:
    """All that came of the roots by `ways`, each `(of, made, role)`, nearest first; None for the roots themselves."""
    made: dict[Digest, list[tuple[Digest, str]]] = {}
    for of, one, role in ways:
        made.setdefault(of, []).append((one, role))
    found: dict[Digest, Way | None] = dict.fromkeys(roots)
    waiting = deque(found)
    while waiting:
        of = waiting.popleft()
        for one, role in made.get(of, ()):
            if one not in found:
                found[one] = Way(of, role)
                waiting.append(one)
    return found


def standing(reader: Reader) -> list[Recall]:
    """Every recall that was not lifted, the oldest first."""
    rows = reader.rows(
        """SELECT r.*, coalesce('v' || v.number, (SELECT min(n.name) FROM dataset_name n WHERE n.digest = r.digest),
           r.digest[:12]) AS name FROM recall r LEFT JOIN version v ON v.digest = r.digest ORDER BY r.seq"""
    )
    return [
        Recall(row["kind"], row["digest"], row["name"], row["message"], row["actor"], row["seq"], row["recorded_at"])
        for row in rows
    ]


def reached(reader: Reader) -> dict[Digest, tuple[Recall, ...]]:
    """By which recalls each version and dataset is reached; only those that are."""
    recalls = standing(reader)
    if not recalls:
        return {}
    ways = all_ways(reader)
    found: dict[Digest, tuple[Recall, ...]] = {}
    for recall in recalls:
        for one in spread([recall.digest], ways):
            found[one] = (*found.get(one, ()), recall)
    return found


def of(reader: Reader, digest: Digest) -> tuple[Recall, ...]:
    """The recalls that reach a version or a dataset."""
    return reached(reader).get(digest, ())


def all_ways(reader: Reader) -> list[tuple[Digest, Digest, str]]:
    """Everything that was made of something: `(of, made, role)`."""
    ways = [
        (row["of"], row["made"], row["role"])
        for row in reader.rows(
            """SELECT e.parent AS of, v.digest AS made, e.role FROM version v JOIN edge e ON e.run = v.run
               UNION ALL SELECT base, digest, 'base' FROM version WHERE base IS NOT NULL
               UNION ALL SELECT d.dataset, v.digest, 'data' FROM version v JOIN run_dataset d ON d.run = v.run"""
        )
    ]
    return ways + _written(reader)


def _written(reader: Reader) -> list[tuple[Digest, Digest, str]]:
    """The datasets that a run or an evaluation wrote, and what it wrote them from."""
    source = {row["digest"]: row["source"] for row in reader.rows("SELECT digest, source FROM dataset")}
    rows = reader.rows(
        """SELECT id, made, inputs, datasets FROM run WHERE json_array_length(made) > 0
           UNION ALL SELECT id, made, inputs, to_json(CASE WHEN dataset IS NULL THEN [] ELSE [dataset] END)
           FROM evaluation WHERE json_array_length(made) > 0"""
    )
    return [
        (given, written, "made")
        for row in rows
        for written in row["made"]
        # Rows that were there before are not of this run, even if it wrote the same.
        if row["id"] in source.get(written, "")
        for given in (*(used["digest"] for used in row["inputs"]), *row["datasets"])
    ]


def told(name: str, digest: Digest, recalls: Collection[Recall]) -> str:
    """That the version or dataset called so is recalled, and why, for people."""
    parts = []
    for recall in recalls:
        what = f"came of {'the dataset ' * (recall.kind == 'dataset')}{recall.name}, which is "
        parts.append(f"{'is ' if recall.digest == digest else what}recalled ({recall.message})")
    return f"{name} {' and '.join(parts)}"


def documents(recalls: Mapping[Digest, Collection[Recall]], digest: Digest) -> list[dict[str, Any]]:
    """The recalls that reach a version, for `--json`."""
    return [recall.document() for recall in recalls.get(digest, ())]
