"""What pruning claims: which weights went, how many, and that the others stayed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import BadRecord, Claim, Made, Verdict, common, is_same
from mreg.registry.proof.claims_structure import structured

CALIBRATED = ("wanda", "sparsegpt")
TRANSPOSED = ("gpt2",)
"""Kinds of model whose matrices are (inputs, outputs), so that an output's weights stand in a column."""


def prune(made: Made) -> Iterator[Claim]:
    """Only zeros were put in, as many as said, in the places that the method says; or whole parts were cut out."""
    params = made.params
    if params.get("structure") or params.get("method") == "structured":
        yield from structured(made)
        return
    asked, pattern = made.number("sparsity", math.nan), _pattern(params.get("pattern"))
    if math.isnan(asked) and pattern:
        asked = 1 - pattern[0] / pattern[1]
    scope, method = params.get("scope") or "per-tensor", params.get("method") or "magnitude"
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim("only zeros were put in", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    if not changed:
        verdict: Verdict = "consistent" if asked == 0 else "contradicted"
        yield Claim(f"{asked:.0%} of the weights became zero", verdict, "no tensor changed")
        return
    moved = disordered = gone = total = 0
    largest_gone, smallest_kept = 0.0, math.inf
    wrong = ""
    for name in changed:
        before, after = made.source.tensor(name), made.output.tensor(name)
        if len(after.shape) != 2 or before.shape != after.shape:
            yield Claim("only matrices were pruned", "contradicted", f"{name} changed, which is no matrix")
            return
        if _is_transposed(made, name):
            before, after = evidence.turned(before), evidence.turned(after)
        if pattern and after.shape[1] % pattern[1]:
            yield Claim(f"{params['pattern']} in every row", "contradicted", f"{name} has {after.shape[1]} columns")
            return
        moved += evidence.survivors_changed(before, after)
        already, now = evidence.zeros(before), evidence.zeros(after)
        gone, total = gone + int(now.sum()), total + now.size
        wrong = wrong or _wrong_zeros(made, name, already, now, asked, scope, method, pattern)
        if method == "magnitude" and scope != "global":
            disordered += evidence.out_of_order(before, after, _groups(after.shape, scope, pattern))
        elif method == "magnitude":
            sizes = np.abs(evidence.numbers(before))
            largest_gone = max(largest_gone, float(sizes[now].max(initial=0.0)))
            smallest_kept = min(smallest_kept, float(sizes[~now].min(initial=math.inf)))
    if method == "sparsegpt":
        yield Claim("the weights that are left made up for the others", "consistent", f"{moved} of them moved")
    else:
        verdict = "contradicted" if moved else "proved"
        yield Claim("weights that are left are what they were", verdict, f"{moved} of {total - gone} moved")
    if not wrong and scope == "global" and abs(gone - asked * total) > max(1.0, 1e-4 * total):
        wrong = f"{gone / total:.2%} of all are zero"
    said = f"{params['pattern']} in every row" if pattern else f"{asked:.0%} of each matrix became zero"
    yield Claim(said, "contradicted" if wrong else "proved", wrong or f"{gone / total:.4%} in {len(changed)} matrices")
    if method in CALIBRATED:
        yield Claim("those went that matter least on the data", "consistent", "which they are, only a replay tells")
    elif method == "magnitude" and scope != "global":
        verdict = "contradicted" if disordered else "proved"
        yield Claim("the smallest weights went", verdict, f"{disordered} times a larger one went than one that stayed")
    elif method == "magnitude":
        verdict = "contradicted" if largest_gone > smallest_kept else "proved"
        yield Claim("the smallest of all weights went", verdict, f"up to {largest_gone:.6g}, from {smallest_kept:.6g}")


def _pattern(given: Any) -> tuple[int, int] | None:
    """How many of how many stay. Raises BadRecord."""
    if not given:
        return None
    parts = str(given).split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or not 0 < int(parts[0]) < int(parts[1]):
        raise BadRecord(f"the pattern is recorded as {given!r}", fix="record the step with one such as 2:4")
    return int(parts[0]), int(parts[1])


def _is_transposed(made: Made, name: str) -> bool:
    return made.config.get("model_type") in TRANSPOSED and ".c_" in name


def _wrong_zeros(
    made: Made,
    name: str,
    already: Any,
    now: Any,
    asked: float,
    scope: str,
    method: str,
    pattern: tuple[int, int] | None,
) -> str:
    """Why the zeros of a matrix are not those of the claim, or nothing. What was zero before counts for it."""
    if pattern:
        keep, of = pattern
        most = int((~now).reshape(-1, of).sum(axis=1).max(initial=0))
        return f"{name} has {most} of {of} left somewhere" if most > keep else ""
    if scope == "global":
        return ""
    axis = 1 if scope == "per-row" or method == "wanda" else None
    wanted = round(asked * now.shape[1]) if axis else round(asked * now.size)
    # SparseGPT takes one more than asked of each block of columns that it decides on together.
    slack = 1 + (math.ceil(now.shape[1] / made.number("block_size", 128)) if method == "sparsegpt" else 0)
    least, most = np.sum(now, axis=axis), np.maximum(np.sum(already, axis=axis), wanted)
    if np.any(least < wanted - slack) or np.any(least > most + slack):
        return f"{float(now.mean()):.2%} of {name} are zero"
    return ""


def _groups(shape: tuple[int, ...], scope: str, pattern: tuple[int, int] | None) -> tuple[int, int] | None:
    if pattern:
        return (shape[0] * shape[1] // pattern[1], pattern[1])
    return (shape[0], shape[1]) if scope == "per-row" else None
