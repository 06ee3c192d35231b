"""How often a version came out again, bit for bit, and where: by its own replays, and as a step of longer ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mreg.registry.digests import Digest

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader

PROVED = ("bytes", "tensors")
_FIELDS = "p.verdict, p.steps, p.environment, p.host, p.ended_at, 'v' || v.number AS target"


def reproduced(reader: Reader, version: Digest) -> dict[str, Any]:
    """`times` that it came out again, the `last` of them, on how many `machines`; how often it was `attempted` at all.

    `as_step` is the last attempt in a replay of another version: its verdict, that version and when; None without one.
    """
    rows = reader.rows(
        f"""SELECT {_FIELDS}, p.version FROM replay p JOIN version v ON v.digest = p.version
            WHERE p.verdict IS NOT NULL AND contains(CAST(p.steps AS VARCHAR), ?) ORDER BY p.ended_seq""",  # noqa: S608
        [version],
    )
    return summed_up(rows, version)


def summed_up(rows: Iterable[Mapping[str, Any]], version: Digest) -> dict[str, Any]:
    """The same, of rows of the replay table in their order. Pure."""
    attempts = [
        (row, step)
        for row in rows
        for step in row["steps"]
        if step["version"] == version and step["verdict"] != "not-attempted"
    ]
    proofs = [row for row, step in attempts if step["verdict"] in PROVED]
    others = [(row, step) for row, step in attempts if row["version"] != version]
    as_step = None
    if others:
        row, step = others[-1]
        as_step = {"verdict": step["verdict"], "of": row["target"], "at": row["ended_at"]}
    return {
        "times": len(proofs),
        "last": proofs[-1]["ended_at"] if proofs else None,
        "machines": machines(proofs),
        "attempted": len(attempts),
        "as_step": as_step,
    }


def machines(proofs: Iterable[Mapping[str, Any]]) -> int:
    """On how many machines these replays ran.

    Replays from before machines were named are told apart by their processors, where no named machine has the same.
    """
    named = [(row["host"], (row["environment"] or {}).get("cpu")) for row in proofs]
    hosts = {host for host, _ in named if host}
    known = {cpu for host, cpu in named if host}
    return len(hosts) + len({cpu for host, cpu in named if not host} - known)
