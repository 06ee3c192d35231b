"""Claims about what was added: a fused adapter, an edit."""

from __future__ import annotations

from collections.abc import Iterator

from mreg.registry.models.adapters import with_adapter
from mreg.registry.models.weights import delta_rank
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, Verdict, common, is_same
from mreg.registry.proof.claims_exact import computed


def fuse(made: Made) -> Iterator[Claim]:
    """What the adapter makes of its base, where its formula is known; otherwise the rank of what was added."""
    config = made.configs.get("source", {})
    names, missing = common(made.source, made.output)
    if missing and config.get("task_type") not in ("SEQ_CLS", "TOKEN_CLS"):
        yield Claim("the base with a delta", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    if not config:
        rank = made.params.get("r") or made.params.get("rank")
        yield from _low_rank(made, changed, rank if isinstance(rank, int) else None)
        return
    fused = with_adapter(made.source, made.inputs["source"][0], config)
    if fused is None or missing:
        said = f"it has another head, {len(changed)} tensors changed" if missing else f"{len(changed)} tensors changed"
        what = f"a {config.get('peft_type')} put into its base"
        yield Claim(what, "not-checkable", f"its formula is not known here: replay it; {said}")
        return
    extra = [name for name in changed if name not in fused]
    untouched = f"{len(names) - len(changed)} tensors, bit for bit"
    yield Claim(
        "what the adapter does not aim at is what it was",
        "contradicted" if extra else "proved",
        f"{extra[0]} changed" if extra else untouched,
    )
    worst, where = 0.0, ""
    for name, part in fused.items():
        exact, lost = part.numbers()
        if exact.shape != made.output.layout(name)[1]:
            yield Claim("the adapter fits the base", "contradicted", f"{name} has another shape")
            return
        if (excess := evidence.worst_excess(made.output.tensor(name), exact, lost)) > worst:
            worst, where = excess, name
    told = next(iter(fused.values())).told if fused else "W"
    yield computed(f"{told} in {len(fused)} matrices", worst, where, steps=2)


def edit(made: Made) -> Iterator[Claim]:
    """Only the named matrices changed, in no more directions than there were edits."""
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim("only chosen matrices changed", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    named = made.facts.get("matrices")
    if isinstance(named, (list, tuple)):
        extra = sorted(set(changed) - set(named))
        verdict: Verdict = "contradicted" if extra else "proved"
        shown = f"{extra[0]} changed too" if extra else f"{len(changed)} changed, {len(names) - len(changed)} did not"
        yield Claim(f"only {', '.join(named[:3])} changed", verdict, shown)
    if made.params.get("method") in {"rome", "memit"}:
        edits = made.facts.get("edits") if isinstance(made.facts.get("edits"), int) else made.facts.get("facts")
        yield from _low_rank(made, changed, edits if isinstance(edits, int) else None)
    elif not changed:
        yield Claim("some knowledge was changed", "contradicted", "no tensor changed")


def _low_rank(made: Made, changed: list[str], rank: int | None) -> Iterator[Claim]:
    """A delta of low rank, where it is not known which."""
    if not changed:
        yield Claim("a delta was added", "contradicted", "no tensor changed")
        return
    ranks = {}
    for name in changed:
        before, after = made.source.tensor(name), made.output.tensor(name)
        if len(after.shape) == 2:
            ranks[name] = delta_rank(before.array(), after.array())
    if not ranks or None in ranks.values():
        yield Claim(
            "the delta has low rank", "not-checkable", f"{changed[0]} is no matrix of which the rank can be told"
        )
        return
    worst = max(ranks, key=lambda name: ranks[name] or 0)
    found = ranks[worst] or 0
    if rank is None:
        full = min(made.output.tensor(worst).shape)
        verdict: Verdict = "consistent" if found < full // 2 else "contradicted"
        yield Claim("the delta has low rank", verdict, f"rank {found} of {full} in {worst}")
    else:
        verdict = "consistent" if found <= rank else "contradicted"
        yield Claim(f"the delta has rank {rank} or less", verdict, f"rank {found} in {worst}, {len(ranks)} matrices")
