"""How a row of the history reads: what every command that lists versions has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mreg.cli import screen, text

if TYPE_CHECKING:
    from mreg.registry.chains.graph import Edge
    from mreg.registry.digests import Digest

Row = Mapping[str, Any]

_TELLING = (
    "name",
    "method",
    "bits",
    "group_size",
    "gguf_type",
    "sparsity",
    "pattern",
    "structure",
    "weights",
    "rank",
    "learning_rate",
    "max_steps",
    "num_train_epochs",
)
"""What papers and libraries call the settings that make the difference. A one-line summary has no room for the rest."""


def document(row: Row) -> dict[str, Any]:
    """A version for `--json`."""
    return {
        "version": f"v{row['number']}",
        "digest": row["digest"],
        "weights": row["weights"],
        "parents": row["parents"],
        "transform": transform(row),
        "params": row["params"] or {},
        "refs": row["refs"],
        "recalled": row["recalled"],
        "scores": row.get("scores", []),
        "bytes": row["bytes"],
        "evicted": row.get("evicted"),
        "parameters": row["parameters"],
        "architecture": row["architecture"],
        "adapter": row["adapter"],
        "origin": row["origin"],
        "source": row["source"],
        "datasets": row["datasets"],
        "seed": row["seed"],
        "threads": row["threads"],
        "wall_s": row["wall_s"],
        "marks": row["marks"] or [],
        "message": row["message"],
        "actor": row["actor"],
        "at": row["recorded_at"],
        "event": row["seq"],
    }


def node(row: Row) -> dict[str, Any]:
    """A version in a graph for `--json`."""
    return {
        "version": f"v{row['number']}",
        "digest": row["digest"],
        "refs": row["refs"],
        "recalled": row["recalled"],
        "transform": transform(row),
        "params": row["params"] or {},
        "origin": row["origin"],
        "source": row["source"],
        "adapter": row["adapter"],
        "architecture": row["architecture"],
    }


def edge(given: Edge, names: Mapping[Digest, str]) -> dict[str, Any]:
    """A step from one version to another in a graph for `--json`."""
    return {
        "parent": names[given.parent],
        "child": names[given.child],
        "transform": given.transform,
        "role": given.role,
        "run": given.run,
    }


def transform(row: Row) -> str:
    """What made it: the transform, or `import`."""
    return row["transform"] or "import"


def summary(row: Row) -> str:
    """What made it, with inputs and what it is told apart by, in one line: `quantize v3 method=int8`."""
    if row["transform"] is None:
        source = text.clean(row["source"] or "")
        return f"import {source if source.startswith('hf:') else source.rstrip('/').rpartition('/')[2]}"
    is_recorded = row["origin"] == "record"
    parts = [
        text.clean(row["transform"]) + " (recorded)" * is_recorded,
        *(row.get("parents") or []),
        *(f"data={text.clean(one)}" for one in row.get("datasets") or []),
        text.params(row["params"] if is_recorded else telling(row["params"] or {})),
    ]
    return " ".join(part for part in parts if part)


def telling(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params that steps are told apart by; the first few when none of the usual names is among them."""
    usual = [name for name in _TELLING if name in params and params[name] not in (None, [], "")]
    return {name: params[name] for name in usual[:5] or list(params)[:3]}


def recalled(row: Row) -> str:
    """` (recalled)`, or nothing."""
    return " " + screen.ink("(recalled)", "red", bold=True) if row["recalled"] else ""


def refs(row: Row) -> str:
    """`(prod, chat/base)`, or nothing."""
    names = ", ".join(screen.ink(text.clean(name), "green", bold=True) for name in row["refs"])
    return f"({names})" if names else ""
