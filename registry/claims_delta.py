"""Claims about what was added: a fused adapter, an edit, an adapter that fits its base."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mreg.registry import evidence
from mreg.registry.claim import Claim, Made, Verdict, common, is_same
from mreg.registry.claims_exact import computed
from mreg.registry.weight_sources import TensorSource
from mreg.registry.weights import delta_rank


def fuse(made: Made) -> Iterator[Claim]:
    """`W + scale·B·A` where the adapter is a plain LoRA; otherwise the rank of what was added."""
    config = made.configs.get("source", {})
    names, missing = common(made.source, made.output)
    if missing:
        yield Claim("the base with a delta", "contradicted", missing)
        return
    changed = [name for name in names if not is_same(made, name)]
    adapter = made.inputs["source"][0] if config else None
    pairs = _factors(adapter) if adapter is not None and _is_plain(config) else None
    if adapter is None or pairs is None:
        yield from _low_rank(made, changed, config.get("r") or made.params.get("r") or made.params.get("rank"))
        return
    extra = [name for name in changed if name not in pairs]
    untouched = f"{len(names) - len(changed)} tensors, bit for bit"
    yield Claim(
        "what the adapter does not aim at is what it was",
        "contradicted" if extra else "proved",
        f"{extra[0]} changed" if extra else untouched,
    )
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    worst, where = 0.0, ""
    for name, (b, a) in pairs.items():
        if name not in names:
            yield Claim("the adapter fits the base", "contradicted", f"the base has no {name}")
            return
        exact, lost = evidence.with_low_rank(made.source.tensor(name), adapter.tensor(b), adapter.tensor(a), scale)
        if (excess := evidence.worst_excess(made.output.tensor(name), exact, lost)) > worst:
            worst, where = excess, name
    yield computed(f"W + {scale:.3g}·B·A in {len(pairs)} matrices", worst, where, steps=2)


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


def adapter_fits(made: Made) -> Iterator[Claim]:
    """That the adapter that came out can stand on the model it is said to fit."""
    base = {name: made.source.tensor(name).shape for name in made.source.names()}
    pairs = _factors(made.output)
    if pairs is None:
        yield Claim("the adapter fits its base", "not-checkable", f"a {made.config.get('peft_type')} has no factors")
        return
    for name, (b, a) in pairs.items():
        rows, columns = made.output.tensor(b).shape[0], made.output.tensor(a).shape[1]
        if base.get(name) != (rows, columns):
            shape = "x".join(map(str, base.get(name, ()))) or "missing"
            yield Claim("the adapter fits its base", "contradicted", f"{name} is {shape}, the adapter {rows}x{columns}")
            return
    ranks = {made.output.tensor(a).shape[0] for _, a in pairs.values()}
    asked = made.params.get("rank") or made.params.get("r") or made.config.get("r")
    if asked and ranks != {asked}:
        yield Claim(f"its rank is {asked}", "contradicted", f"it is {', '.join(map(str, sorted(ranks)))}")
        return
    yield Claim(
        "the adapter fits its base", "proved", f"{len(pairs)} matrices, rank {', '.join(map(str, sorted(ranks)))}"
    )
    yield Claim("it was trained as said", "not-checkable", "replay it")


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


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether it is a LoRA of which the delta is `scale·B·A`."""
    special = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save")
    starts_at_base = config.get("init_lora_weights", True) in (True, False, None, "gaussian")
    return config.get("peft_type") == "LORA" and not any(config.get(key) for key in special) and starts_at_base


def _factors(adapter: TensorSource) -> dict[str, tuple[str, str]] | None:
    """For each weight of the base, the names of its B and A; None where it has other parts."""
    factors: dict[str, dict[str, str]] = {}
    for name in adapter.names():
        match = re.fullmatch(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight", name)
        if match is None:
            return None
        factors.setdefault(f"{match['module']}.weight", {})[match["side"]] = name
    if not factors or any(set(sides) != {"A", "B"} for sides in factors.values()):
        return None
    return {weight: (sides["B"], sides["A"]) for weight, sides in factors.items()}
