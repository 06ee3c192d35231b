"""What pruning claims: which weights went, how many, and that the others stayed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from mreg.registry import evidence
from mreg.registry.claim import Claim, Made, Verdict, common, is_same


def prune(made: Made) -> Iterator[Claim]:
    """Only zeros were put in, as many as said, in the places that the method says."""
    params = made.params
    if params.get("structure") or params.get("method") == "structured":
        yield Claim("whole parts were removed", "not-checkable", "replay it: parts are not matched up yet")
        return
    asked = float(params.get("sparsity", math.nan))
    scope, method = params.get("scope", "per-tensor"), params.get("method", "magnitude")
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim("only zeros were put in", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    if not changed:
        verdict: Verdict = "consistent" if asked == 0 else "contradicted"
        yield Claim(f"{asked:.0%} of the weights became zero", verdict, "no tensor changed")
        return
    moved = disordered = 0
    gone = total = 0
    wrong = ""
    for name in changed:
        before, after = made.source.tensor(name), made.output.tensor(name)
        if len(after.shape) != 2 or before.shape != after.shape:
            yield Claim("only matrices were pruned", "contradicted", f"{name} changed, which is no matrix")
            return
        moved += evidence.survivors_changed(before, after)
        already, now = evidence.zeros(before), evidence.zeros(after)
        gone, total = gone + int(now.sum()), total + now.size
        wrong = wrong or _wrong_zeros(name, already, now, asked, scope, params.get("pattern"))
        if method == "magnitude" and scope != "global":
            disordered += evidence.out_of_order(before, after, _groups(after.shape, scope, params.get("pattern")))
    if method == "sparsegpt":
        yield Claim("the weights that are left made up for the others", "consistent", f"{moved} of them moved")
    else:
        verdict = "contradicted" if moved else "proved"
        yield Claim("weights that are left are what they were", verdict, f"{moved} of {total - gone} moved")
    if not wrong and scope == "global" and abs(gone - asked * total) > max(1.0, 1e-4 * total):
        wrong = f"{gone / total:.2%} of all are zero"
    said = f"{params['pattern']} in every row" if params.get("pattern") else f"{asked:.0%} of each matrix became zero"
    yield Claim(said, "contradicted" if wrong else "proved", wrong or f"{gone / total:.4%} in {len(changed)} matrices")
    if method == "magnitude" and scope != "global":
        verdict = "contradicted" if disordered else "proved"
        yield Claim("the smallest weights went", verdict, f"{disordered} times a larger one went than one that stayed")


def _wrong_zeros(name: str, already: Any, now: Any, asked: float, scope: str, pattern: str | None) -> str:
    """Why the zeros of a matrix are not those of the claim, or nothing. What was zero before counts for it."""
    if pattern:
        keep, of = (int(part) for part in str(pattern).split(":"))
        most = int((~now).reshape(-1, of).sum(axis=1).max(initial=0))
        return f"{name} has {most} of {of} left somewhere" if most > keep else ""
    if scope == "global":
        return ""
    axis = 1 if scope == "per-row" else None
    wanted = round(asked * now.shape[1]) if axis else round(asked * now.size)
    least, most = np.sum(now, axis=axis), np.maximum(np.sum(already, axis=axis), wanted)
    if np.any(least < wanted - 1) or np.any(least > most + 1):
        return f"{float(now.mean()):.2%} of {name} are zero"
    return ""


def _groups(shape: tuple[int, ...], scope: str, pattern: str | None) -> tuple[int, int] | None:
    if pattern:
        of = int(str(pattern).split(":")[1])
        return (shape[0] * shape[1] // of, of)
    return (shape[0], shape[1]) if scope == "per-row" else None
