"""What a GGUF file claims: that its blocks hold the source's weights, each rounded to the nearest that they can."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from mreg.registry.models.gguf_file import ERRORS, MOST_ERROR, PLAIN, GgufFile, off_grid
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, Verdict


def gguf(made: Made) -> Iterator[Claim]:
    """Every weight is there; blocks with a grid are checked weight by weight, others by their distance."""
    assert made.gguf is not None, "asked before"
    file = GgufFile(made.gguf)
    names = {name: file.called(name) for name in sorted(made.source.names())}
    tied = made.config_of("source").get("tie_word_embeddings")
    lacking = [
        name
        for name, called in names.items()
        if called is None and not name.endswith("rotary_emb.inv_freq") and not (tied and name == "lm_head.weight")
    ]
    if lacking:
        yield Claim("every weight is in the file", "contradicted", f"{lacking[0]} is not")
        return
    kinds: dict[str, int] = {}
    wrong: dict[str, str] = {}
    plain = gridded = near = 0
    worst = 0.0
    for name, called in names.items():
        if called is None:
            continue
        weight, kind = made.source.tensor(name), file.kind(called)
        if file.shape(called) != weight.shape:
            yield Claim("every weight is in the file", "contradicted", f"{name} has another shape")
            return
        kinds[kind] = kinds.get(kind, 0) + (len(weight.shape) == 2)
        numbers, restored = file.in_order(called, evidence.numbers(weight)), file.restored(called)
        if kind in PLAIN:
            plain += 1
            with np.errstate(over="ignore"):
                wanted = numbers.astype(evidence.DTYPES[kind]).astype(np.float64)
            if not np.array_equal(wanted, restored):
                wrong.setdefault("plain", f"{name} is not")
        elif (grid := file.grid(called)) is not None:
            gridded += 1
            if off := off_grid(numbers, restored, grid):
                wrong.setdefault("grid", f"{name} is {off:.3g} steps too far from it")
        else:
            near += 1
            allowed = ERRORS.get(kind, MOST_ERROR)
            error = evidence.distance(numbers, restored)
            worst = max(worst, error / allowed)
            if error > allowed:
                wrong.setdefault("near", f"{name} is {error:.3g} of its norm off, {kind} at most {allowed:.2g}")
    if asked := made.params.get("gguf_type"):
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
        yield Claim(f"its matrices are {asked}", "proved" if kinds.get(str(asked)) else "contradicted", counts)
    if plain:
        what = "what is not quantized is what it was, rounded to its type"
        yield _verdict(what, "proved", wrong.get("plain"), f"{plain} tensors, bit for bit")
    if gridded:
        what = "each weight is the nearest that its block can hold"
        yield _verdict(what, "proved", wrong.get("grid"), f"{gridded} tensors, to within half a step")
    if near:
        what = "the weights are near what the blocks hold"
        yield _verdict(
            what, "consistent", wrong.get("near"), f"{worst:.0%} of the error that the types allow, at worst"
        )


def _verdict(what: str, good: Verdict, wrong: str | None, right: str) -> Claim:
    return Claim(what, "contradicted" if wrong else good, wrong or right)
