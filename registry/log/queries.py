"""Every question that is put to the projections, in SQL: functions of a reader, giving values and plain rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mreg.registry import revs
from mreg.registry.chains import recalls
from mreg.registry.chains.graph import Edge, Lineage, reach
from mreg.registry.chains.recipe import Step, chain
from mreg.registry.digests import Digest
from mreg.registry.log.reading import Reader
from mreg.registry.measures import scores
from mreg.registry.replay.reproductions import reproduced
from mreg.registry.revs import UnknownRev, suggest
from mreg.registry.versions import Version


class Lookup:
    """What resolving a rev asks, answered from the projections."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def numbered(self, number: int) -> Digest | None:
        """The version with this number."""
        return _digest(self._reader.one("SELECT digest FROM version WHERE number = ?", [number]))

    def ref(self, name: str, back: int) -> Digest | None:
        """Where a ref pointed `back` moves ago."""
        if back == 0:
            return _digest(self._reader.one("SELECT digest FROM ref WHERE name = ?", [name]))
        moves = self._reader.rows("SELECT new AS digest FROM ref_move WHERE ref = ? ORDER BY seq DESC", [name])
        return _digest(moves[back]) if back < len(moves) else None

    def starting(self, prefix: str) -> Sequence[Digest]:
        """The versions whose digest starts so."""
        rows = self._reader.rows("SELECT digest FROM version WHERE starts_with(digest, ?) ORDER BY number", [prefix])
        return [row["digest"] for row in rows]

    def parents(self, digest: Digest) -> Sequence[Digest]:
        """The inputs of the run that first made a version."""
        return [parent for _, parent in _inputs(self._reader, digest)]

    def names(self) -> Sequence[str]:
        """Every `v…` and ref there is."""
        rows = self._reader.rows("SELECT name FROM ref UNION ALL SELECT 'v' || number FROM version")
        return [row["name"] for row in rows]


def version(reader: Reader, digest: Digest) -> Version:
    """The version with this digest, which must be there."""
    row = reader.one("SELECT * FROM version WHERE digest = ?", [digest])
    if row is None:
        raise UnknownRev(f"no version has the digest {digest}", fix="`mreg list` shows them all")
    return Version.from_row(row)


def versions(reader: Reader) -> list[Version]:
    """Every version, by number."""
    return [Version.from_row(row) for row in reader.rows("SELECT * FROM version ORDER BY number")]


def manifests_of_size(reader: Reader, size: int) -> dict[Digest, Digest]:
    """The manifests of the versions whose files take this many bytes, by their weights."""
    rows = reader.rows("SELECT weights, manifest FROM version WHERE bytes = ? ORDER BY number", [size])
    return {row["weights"]: row["manifest"] for row in rows}


def refs(reader: Reader) -> dict[str, Version]:
    """Where each name points now."""
    rows = reader.rows("SELECT r.name, v.* FROM ref r JOIN version v USING (digest) ORDER BY r.name")
    return {row["name"]: Version.from_row(row) for row in rows}


def evicted(reader: Reader) -> dict[Digest, str]:
    """The versions whose weights were taken out of the store, and when."""
    return {row["version"]: row["recorded_at"] for row in reader.rows("SELECT version, recorded_at FROM eviction")}


def ref_log(reader: Reader, name: str) -> list[dict[str, Any]]:
    """Every move of a ref, newest first, with the versions' names."""
    rows = reader.rows(
        """SELECT m.*, 'v' || a.number AS old_version, 'v' || b.number AS new_version
           FROM ref_move m LEFT JOIN version a ON a.digest = m.old LEFT JOIN version b ON b.digest = m.new
           WHERE m.ref = ? ORDER BY m.seq DESC""",
        [name],
    )
    if not rows:
        raise unknown_ref(reader, name)
    return rows


def unknown_ref(reader: Reader, name: str) -> UnknownRev:
    """The error for a ref that is not there, with the nearest that is."""
    names = [row["name"] for row in reader.rows("SELECT name FROM ref")]
    return UnknownRev(f"no ref is called {name!r}", fix=suggest(name, names, "`mreg ref list` shows them all"))


_VERSIONS = """SELECT v.number, v.digest, v.weights, v.adapter, v.architecture, v.parameters, v.bytes, v.origin,
    v.transform, v.run, v.source, coalesce(nullif(v.message, ''), r.message, '') AS message, v.seq, v.recorded_at,
    v.marks, r.params, r.seed, r.threads, r.actor, r.wall_s, x.recorded_at AS evicted
    FROM version v LEFT JOIN run r ON r.id = v.run LEFT JOIN eviction x ON x.version = v.digest"""

_NODES = """SELECT v.number, v.digest, v.adapter, v.architecture, v.origin, v.source, v.transform, r.params
    FROM version v LEFT JOIN run r ON r.id = v.run"""

_PARENTS = "SELECT e.run, p.number FROM edge e JOIN version p ON p.digest = e.parent"

_DATASETS = """SELECT d.run, coalesce(min(n.name), d.dataset[:12]) AS name
    FROM run_dataset d LEFT JOIN dataset_name n ON n.digest = d.dataset"""

_NUMBERS = "SELECT digest, number FROM version"

MANY = 1000
"""From so many on, all rows are read and the wanted ones picked, which is quicker than to name each in the question."""


def resolve(reader: Reader, rev: str | Version) -> Version:
    """The version that a rev names. Raises UnknownRev and MalformedName."""
    if isinstance(rev, Version):
        return rev
    return version(reader, revs.resolve(rev, Lookup(reader)))


def listing(reader: Reader) -> list[dict[str, Any]]:
    """Every version with parents, transform, params, refs, datasets and the guards that it fails, by number."""
    rows = reader.rows(f"{_VERSIONS} ORDER BY v.number")
    failing = scores.failing(reader)
    return [{**row, "fails": failing.get(row["digest"], [])} for row in _with_names(reader, rows)]


def history(reader: Reader, start: Version | None, limit: int | None = None) -> list[dict[str, Any]]:
    """The versions on the way to `start`, newest first; without one, every version. At most `limit` of them."""
    wanted = None
    if start is not None:
        made_from = _made_from(reader)
        wanted = {start.digest, *reach(start.digest, lambda digest: made_from.get(digest, ()))}
    where, named = _among("v.digest", wanted)
    last = "" if limit is None else f"LIMIT {int(limit)}"
    if wanted is not None and not named:
        last = ""
    rows = reader.rows(f"{_VERSIONS} {where} ORDER BY v.number DESC {last}", named)
    if wanted is not None:
        rows = [row for row in rows if row["digest"] in wanted][:limit]
    return _with_names(reader, rows)


def nodes(reader: Reader, digests: Collection[Digest]) -> list[dict[str, Any]]:
    """What a graph says of each of these versions, by number."""
    where, named = _among("v.digest", digests)
    rows = reader.rows(f"{_NODES} {where} ORDER BY v.number", named)
    wanted = set(digests)
    names, recalled = _ref_names(reader), recalls.reached(reader)
    return [
        {**row, "refs": names.get(row["digest"], []), "recalled": recalls.documents(recalled, row["digest"])}
        for row in rows
        if row["digest"] in wanted
    ]


def _with_names(reader: Reader, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the names of their parents, refs and datasets put in."""
    runs = [row["run"] for row in rows if row["run"]]
    where, named = _among("e.run", runs)
    parents: dict[str, list[str]] = {}
    for row in reader.rows(f"{_PARENTS} {where} ORDER BY e.run, e.position", named):
        parents.setdefault(row["run"], []).append(f"v{row['number']}")
    where, named = _among("d.run", runs)
    datasets: dict[str, list[str]] = {}
    for row in reader.rows(
        f"{_DATASETS} {where} GROUP BY d.run, d.position, d.dataset ORDER BY d.run, d.position", named
    ):
        datasets.setdefault(row["run"], []).append(row["name"])
    names, recalled = _ref_names(reader), recalls.reached(reader)
    for row in rows:
        row["recalled"] = recalls.documents(recalled, row["digest"])
        row["parents"] = parents.get(row["run"], [])
        row["refs"] = names.get(row["digest"], [])
        row["datasets"] = datasets.get(row["run"], [])
    return rows


def _ref_names(reader: Reader) -> dict[Digest, list[str]]:
    """The names of each version that has any, sorted."""
    names: dict[Digest, list[str]] = {}
    for row in reader.rows("SELECT name, digest FROM ref ORDER BY name"):
        names.setdefault(row["digest"], []).append(row["name"])
    return names


def _among(column: str, values: Collection[str] | None) -> tuple[str, list[Any]]:
    """A WHERE for the rows whose column has one of these values; none when there are too many to name."""
    if values is None or len(values) > MANY:
        return "", []
    return f"WHERE {column} IN (SELECT unnest(?))", [list(values)]


def show(reader: Reader, version: Version) -> dict[str, Any]:
    """One version whole."""
    found = reader.rows(f"{_VERSIONS} WHERE v.digest = ?", [version.digest])
    (row,) = _with_names(reader, found)
    run = reader.one("SELECT * FROM run WHERE id = ?", [version.run]) if version.run else None
    inputs = reader.rows(
        """SELECT e.role, 'v' || p.number AS version, e.parent AS digest
           FROM edge e JOIN version p ON p.digest = e.parent WHERE e.run = ? ORDER BY e.position""",
        [version.run],
    )
    children = reader.rows(
        """SELECT DISTINCT 'v' || c.number AS version, c.number, e.transform, e.role
           FROM edge e JOIN version c ON c.digest = e.child WHERE e.parent = ? ORDER BY c.number""",
        [version.digest],
    )
    datasets = reader.rows(
        """SELECT d.dataset AS digest, min(n.name) AS name, any_value(s.rows) AS rows FROM run_dataset d
           JOIN dataset s ON s.digest = d.dataset LEFT JOIN dataset_name n ON n.digest = d.dataset
           WHERE d.run = ? GROUP BY d.dataset, d.position ORDER BY d.position""",
        [version.run],
    )
    also = reader.rows(
        "SELECT id, transform, mode, ended_at, seed, threads FROM run WHERE output = ? AND id <> ? ORDER BY ended_seq",
        [version.digest, version.run or ""],
    )
    replays = reader.rows(
        """SELECT id, verdict, from_base, steps, ended_at, environment, host, resumed FROM replay
           WHERE version = ? AND verdict IS NOT NULL ORDER BY ended_seq""",
        [version.digest],
    )
    fields = {**row, "version": version.name, "files": version.files, "tensors": version.tensors, "base": version.base}
    if version.base is not None:
        base = reader.one("SELECT number FROM version WHERE digest = ?", [version.base])
        fields["base_version"] = f"v{base['number']}" if base else None
    return {
        **fields,
        "manifest": version.manifest,
        "marks": list(version.marks),
        "inputs": inputs,
        "children": children,
        "data": datasets,
        "run": run,
        "also_made_by": also,
        "replays": replays,
        "reproduced": reproduced(reader, version.digest),
        "scores": [score.document() for score in scores.of_versions(reader, [version.digest])],
        "guards": scores.judgements(reader, version.digest),
        "compute": compute(reader, version.digest),
    }


def events(reader: Reader, after: int) -> list[dict[str, Any]]:
    """The raw log after an event."""
    return reader.rows(
        "SELECT seq, id, kind, recorded_at AS 'at', actor, payload, prev, hash FROM event WHERE seq > ? ORDER BY seq",
        [after],
    )


def lineage(reader: Reader, centre: Digest, *, up: bool = True, down: bool = True) -> Lineage:
    """The graph around a version: its ancestors, its descendants or both, and the edges among them."""
    edges = _edges(reader, centre, up=up, down=down)
    digests = {centre, *(edge.parent for edge in edges), *(edge.child for edge in edges)}
    where, named = _among("digest", digests)
    found = reader.rows(f"{_NUMBERS} {where}", named)
    return Lineage(centre, edges, {row["digest"]: row["number"] for row in found if row["digest"] in digests})


def family(reader: Reader, centre: Digest, *, up: bool, down: bool) -> tuple[Lineage, list[dict[str, Any]]]:
    """The same graph, and what it says of each version in it, as `nodes`."""
    edges = _edges(reader, centre, up=up, down=down)
    found = nodes(reader, {centre, *(edge.parent for edge in edges), *(edge.child for edge in edges)})
    return Lineage(centre, edges, {row["digest"]: row["number"] for row in found}), found


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """What has seen a dataset: `direct` versions were made with it, the others came of those. `nodes` are by number."""

    direct: frozenset[Digest]
    nodes: list[dict[str, Any]]
    edges: list[Edge]

    def through(self, version: Digest) -> list[Digest]:
        """The versions of these that it was made from, in the order of the inputs."""
        return list(dict.fromkeys(edge.parent for edge in self.edges if edge.child == version))


def trained_on(reader: Reader, dataset: Digest) -> TrainedOn:
    """The versions that some run made with a dataset, all their descendants, and the edges among them."""
    direct = {row["child"] for row in reader.rows("SELECT child FROM run_dataset WHERE dataset = ?", [dataset])}
    rows = reader.rows("SELECT parent, child, transform, role, run FROM edge ORDER BY seq, position")
    children: dict[Digest, list[Digest]] = {}
    for row in rows:
        children.setdefault(row["parent"], []).append(row["child"])
    touched = set(direct)
    for version in direct:
        touched.update(reach(version, lambda digest: children.get(digest, ())))
    edges = [Edge(**row) for row in rows if row["parent"] in touched and row["child"] in touched]
    return TrainedOn(frozenset(direct), nodes(reader, touched), edges)


def compute(reader: Reader, version: Digest) -> dict[str, dict[str, Any]]:
    """What a version took: its own step, and with it every distinct run that led to it. Untold is None."""
    own = """SELECT 1 AS runs, r.wall_s, r.facts FROM version v JOIN run r ON r.id = v.run WHERE v.digest = ?"""
    everything = (
        """SELECT r.wall_s, r.facts FROM up JOIN version v ON v.digest = up.digest JOIN run r ON r.id = v.run"""
    )
    ancestors = """WITH RECURSIVE up(digest) AS (SELECT ? UNION SELECT e.parent FROM up
        JOIN version v ON v.digest = up.digest JOIN edge e ON e.run = v.run)"""
    totals = """SELECT count(*) AS runs, sum(wall_s) AS wall_s,
        CAST(sum(TRY_CAST(facts->>'$.tokens' AS DOUBLE)) AS BIGINT) AS tokens,
        sum(TRY_CAST(facts->>'$.flops' AS DOUBLE)) AS flops"""
    return {
        "step": reader.rows(f"{totals} FROM ({own})", [version])[0],
        "lineage": reader.rows(f"{ancestors} {totals} FROM ({everything})", [version])[0],
    }


def _edges(reader: Reader, centre: Digest, *, up: bool, down: bool) -> list[Edge]:
    rows = reader.rows("SELECT parent, child, transform, role, run FROM edge ORDER BY seq, position")
    parents: dict[Digest, list[Digest]] = {}
    children: dict[Digest, list[Digest]] = {}
    for row in rows:
        parents.setdefault(row["child"], []).append(row["parent"])
        children.setdefault(row["parent"], []).append(row["child"])
    keep = {centre}
    keep.update(reach(centre, lambda digest: parents.get(digest, ())) if up else ())
    keep.update(reach(centre, lambda digest: children.get(digest, ())) if down else ())
    return [Edge(**row) for row in rows if row["parent"] in keep and row["child"] in keep]


def recipe(reader: Reader, target: Digest) -> list[Step]:
    """The steps that lead to a version, each after its inputs."""
    return chain(target, lambda digest: step(reader, digest))


def step(reader: Reader, digest: Digest) -> Step:
    """How a version was first made."""
    run = reader.one("SELECT r.* FROM version v JOIN run r ON r.id = v.run WHERE v.digest = ?", [digest])
    if run is None:
        return Step(version=digest, transform="import")
    return Step(
        version=digest,
        transform=run["transform"],
        mode=run["mode"],
        params=run["params"],
        inputs=tuple((used["role"], used["digest"]) for used in run["inputs"]),
        datasets=tuple(run["datasets"]),
        seed=run["seed"],
        threads=run["threads"],
        device=run["device"],
        portable=bool(run["portable"]),
        processes=run["processes"] or 1,
        transform_version=run["transform_version"],
        code=run["code"],
        determinism=run["determinism"],
        environment=run["environment"],
        facts=run["facts"] or {},
        wall_s=run["wall_s"],
        run=run["id"],
    )


def made_besides(reader: Reader) -> dict[Digest, tuple[Digest, ...]]:
    """The datasets that runs made besides their models, by the version that the run was the first to make."""
    sql = """SELECT v.digest, r.made FROM version v JOIN run r ON r.id = v.run
             WHERE r.mode = 'apply' AND json_array_length(r.made) > 0 ORDER BY v.number"""
    return {row["digest"]: tuple(row["made"]) for row in reader.rows(sql)}


def makers(reader: Reader) -> dict[Digest, Digest]:
    """The version beside which each dataset was made, for datasets that nobody had before that run."""
    sql = """SELECT d.digest AS dataset, v.digest AS version FROM run r JOIN version v ON v.run = r.id
             JOIN dataset d ON d.seq > r.started_seq AND d.seq < r.ended_seq
                 AND json_contains(r.made, to_json(d.digest))
             WHERE r.mode = 'apply' AND json_array_length(r.made) > 0"""
    return {row["dataset"]: row["version"] for row in reader.rows(sql)}


def _made_from(reader: Reader) -> dict[Digest, list[Digest]]:
    """The inputs of the run that first made each version, in order; one query for the whole registry."""
    found: dict[Digest, list[Digest]] = {}
    sql = "SELECT v.digest, e.parent FROM version v JOIN edge e ON e.run = v.run ORDER BY v.number, e.position"
    for row in reader.rows(sql):
        found.setdefault(row["digest"], []).append(row["parent"])
    return found


def _inputs(reader: Reader, digest: Digest) -> list[tuple[str, Digest]]:
    rows = reader.rows(
        """SELECT e.role, e.parent FROM version v JOIN edge e ON e.run = v.run
           WHERE v.digest = ? AND v.run IS NOT NULL ORDER BY e.position""",
        [digest],
    )
    return [(row["role"], row["parent"]) for row in rows]


def _digest(row: dict[str, Any] | None) -> Digest | None:
    return None if row is None else row["digest"]
