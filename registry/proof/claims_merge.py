"""Claims of merges: sums, arcs and task vectors are computed again; layers that were stacked are looked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from mreg.registry.models.layer_names import INPUT_SIDE, number_of, renumbered
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence, evidence_merge
from mreg.registry.proof.claim import BadRecord, Claim, Made, common
from mreg.registry.proof.claims_exact import computed
from mreg.registry.proof.evidence_merge import Fit, Recipe
from mreg.registry.proof.matching import by_layer, is_equal

ON_BASE = ("task-arithmetic", "ties", "dare-linear", "dare-ties", "model-stock")
SPARSE = ("ties", "dare-linear", "dare-ties")
SLICE = re.compile(r"(\d+):(\d+)-(\d+)")

FEWEST_CLEAR = 64
"""Elements that have to tell whether they were kept before a density is judged."""

Exact = Callable[[Sequence[Tensor]], tuple[evidence.Floats, evidence.Floats]]
"""The tensors of one name, the parents' in their order and then the base's, to what should come out and what float32
may lose of it."""


def merge(made: Made) -> Iterator[Claim]:
    """Every method that can be computed again is, in float64, and judged within rounding."""
    method = str(made.params.get("method", "linear"))
    parents = [*made.inputs["source"], *made.inputs.get("others", ())]
    if method == "passthrough":
        yield from _stacked(made, parents)
        return
    if method not in ("linear", "slerp", *ON_BASE):
        yield Claim(f"a {method} merge of {len(parents)}", "not-checkable", "its formula is not known here: replay it")
        return
    what = _told(made, method, len(parents))
    if method in ON_BASE and "base" not in made.inputs:
        yield Claim(what, "not-checkable", "the record does not say on which base")
        return
    problem = _ill_told(made, method, len(parents))
    if problem:
        yield Claim(what, "contradicted", problem)
        return
    bases = list(made.inputs["base"][:1]) if method in ON_BASE else []
    names, problem = _alike(made.output, [*parents, *bases])
    if problem:
        yield Claim(what, "contradicted", problem)
        return
    if method in SPARSE:
        yield from _sparse(made, method, what, names, parents, bases[0])
        return
    worst, where = 0.0, names[0]
    exactly = _formula(made, method, len(parents))
    for name in names:
        after = made.output.tensor(name)
        if not evidence.is_float(after):
            if not is_equal(made.source, name, made.output, name):
                yield Claim(what, "contradicted", f"{name}, which holds no numbers to sum, is not the source's")
                return
            continue
        exact, lost = exactly([one.tensor(name) for one in (*parents, *bases)])
        if (excess := evidence.worst_excess(after, exact, lost)) > worst:
            worst, where = excess, name
    yield computed(what, worst, where, steps=len(parents))


def _told(made: Made, method: str, models: int) -> str:
    if method == "slerp":
        return f"the point at {made.number('t', 0.5):.3g} of the arc between its parents"
    if method == "model-stock":
        return f"the model stock of {models} on their base"
    shares = " + ".join(f"{one:.3g}" for one in _weights(made, models))
    more = "".join(f", {name} {_list(made, name)}" for name in ("density", "lambda") if made.params.get(name))
    return f"a {method} merge of its parents: {shares}{more if method in SPARSE else ''}"


def _list(made: Made, name: str) -> str:
    return " and ".join(f"{one:.3g}" for one in made.numbers(name, []))


def _weights(made: Made, models: int) -> list[float]:
    return made.numbers("weights", [1.0] * models)


def _ill_told(made: Made, method: str, models: int) -> str:
    """Why what is recorded is no such merge."""
    if method == "slerp":
        return "" if models == 2 else f"an arc has two ends, there are {models} parents"
    if method == "model-stock":
        return "" if models > 1 else "there is one parent"
    if len(_weights(made, models)) != models:
        return f"there are {models} parents"
    if method in SPARSE and len(_densities(made, models)) != models:
        return f"there are {models} parents, and other densities"
    return ""


def _normalizes(made: Made, method: str) -> bool:
    given = made.params.get("normalize")
    return bool(given) if given is not None else method in ("linear", "ties")


def _densities(made: Made, models: int) -> list[float]:
    given = made.numbers("density", [1.0])
    return given * models if len(given) == 1 else given


def _formula(made: Made, method: str, models: int) -> Exact:
    """What each tensor should be, from those of its name."""
    if method == "slerp":
        t = made.number("t", 0.5)
        return lambda given: evidence.weighted_sum(given, evidence_merge.slerp_shares(given[0], given[1], t))
    if method == "model-stock":

        def stock(given: Sequence[Tensor]) -> tuple[evidence.Floats, evidence.Floats]:
            ratio = evidence_merge.stock_ratio(given[-1], given[:-1])
            return evidence.weighted_sum(given, [*[ratio / models] * models, 1 - ratio])

        return stock
    weights = _weights(made, models)
    if (total := sum(weights)) and _normalizes(made, method):
        weights = [one / total for one in weights]
    if method == "task-arithmetic":
        return _added([one * made.number("lambda", 1.0) for one in weights])
    return lambda given: evidence.weighted_sum(given, weights)


def _added(weights: Sequence[float]) -> Exact:
    """`base + Σ w·(t - base)`. Each difference is rounded too, and may be larger than what it is taken of."""

    def added(given: Sequence[Tensor]) -> tuple[evidence.Floats, evidence.Floats]:
        exact, lost = evidence.weighted_sum(given, [*weights, 1 - sum(weights)])
        base = np.abs(evidence.numbers(given[-1]))
        return exact, lost + base * (sum(map(abs, weights)) * evidence.FP32_ROUNDING * len(given))

    return added


def _alike(output: TensorSource, parents: Sequence[TensorSource]) -> tuple[list[str], str]:
    """The tensors that all have in one shape, and what is amiss where one lacks some."""
    names, missing = common(parents[0], output)
    if missing or not names:
        return names, missing or "it has no tensors"
    for parent in parents[1:]:
        held = set(parent.names())
        for name in names:
            if name not in held:
                return names, f"a parent has no {name}"
    for name in names:
        shape = output.layout(name)[1]
        if any(one.layout(name)[1] != shape for one in parents):
            return names, f"{name} has another shape in a parent"
    return names, ""


def _sparse(
    made: Made, method: str, what: str, names: Sequence[str], parents: Sequence[TensorSource], base: TensorSource
) -> Iterator[Claim]:
    """Trimmed task vectors are trimmed again; of dropped ones every choice of what was dropped is tried."""
    densities = _densities(made, len(parents))
    if not all(0 < one <= 1 for one in densities):
        raise BadRecord("a recorded density is no share", fix="record the step with densities above 0 and up to 1")
    elect = method != "dare-linear"
    recipe = Recipe(
        _weights(made, len(parents)), densities, made.number("lambda", 1.0), elect, _normalizes(made, method)
    )
    floats = [name for name in names if made.output.layout(name)[0] in evidence.DTYPES]
    drawn = method != "ties" and made.seed is not None and any(one < 1 for one in densities)

    def fit(name: str, *, seeded: bool) -> Fit:
        given, after = [one.tensor(name) for one in parents], made.output.tensor(name)
        if method == "ties":
            return evidence_merge.fit_ties(base.tensor(name), given, after, recipe)
        masks = None
        if seeded:
            assert made.seed is not None, "asked before"
            shape = after.shape
            masks = [evidence_merge.drawn(made.seed, name, place, d, shape) for place, d in enumerate(densities)]
        return evidence_merge.fit_dare(base.tensor(name), given, after, recipe, masks)

    if method == "ties" or drawn:
        found, where = _worst(floats, lambda name: fit(name, seeded=drawn))
        how = f", with what the seed {made.seed} draws" if drawn else ""
        if found.worst <= 0.5 + 1e-6:
            yield Claim(what, "proved", f"at most {found.worst:.3g} steps of its dtype off{how}")
            return
        if method == "ties":
            close = f"{found.decided:.3g} steps of its dtype off, in {where}, ties left aside"
            yield Claim(what, "consistent" if found.decided <= 0.5 + len(parents) else "contradicted", close)
            return
    if len(parents) > evidence_merge.MOST_PATTERNS:
        yield Claim(what, "not-checkable", f"{len(parents)} models could be dropped in too many ways: replay it")
        return
    found, where = _worst(floats, lambda name: fit(name, seeded=False))
    if found.decided > 0.5 + len(parents):
        yield Claim(what, "contradicted", f"{found.decided:.3g} steps from whatever could be kept, in {where}")
        return
    yield Claim(what, "consistent", f"each element is one that could be kept, to {found.decided:.3g} steps")
    yield from _density(densities, found.kept)


def _density(densities: Sequence[float], kept: Sequence[tuple[int, int]]) -> Iterator[Claim]:
    for place, (asked, (clear, stayed)) in enumerate(zip(densities, kept, strict=True)):
        of = f"{asked:.3g} of the task vector of parent {place + 1} stayed"
        if clear < FEWEST_CLEAR:
            yield Claim(of, "consistent", f"only {clear} elements tell whether they were kept")
            continue
        share, slack = stayed / clear, 4 * (asked * (1 - asked) / clear) ** 0.5 + 0.005
        fits = abs(share - asked) <= slack
        yield Claim(of, "consistent" if fits else "contradicted", f"{share:.3g} of the {clear} that tell")


def _worst(names: Sequence[str], fit: Callable[[str], Fit]) -> tuple[Fit, str]:
    found, where, worst = Fit(), "", -1.0
    for name in names:
        here = fit(name)
        found += here
        if here.decided > worst:
            worst, where = here.decided, name
    return found, where


def _stacked(made: Made, parents: Sequence[TensorSource]) -> Iterator[Claim]:
    """Each layer is that of the slice it stands in, bit for bit, and what is outside them that of the first or last."""
    slices = made.params.get("slices") or ()
    stack = _stack([str(one) for one in slices])
    what = f"layers {', '.join(map(str, slices))}, one after the other"
    if any(place >= len(parents) for place, _ in stack):
        yield Claim(what, "contradicted", f"there are {len(parents)} parents")
        return
    layers = by_layer(list(made.output.names()))
    if sorted(number for number in layers if number is not None) != list(range(len(stack))):
        count = sum(number is not None for number in layers)
        yield Claim(what, "contradicted", f"there are {count} layers, not {len(stack)}")
        return
    for name in sorted(made.output.names()):
        number = number_of(name)
        if number is None:
            wanted, source = name, stack[0 if INPUT_SIDE.search(name) else -1][0]
        else:
            source, layer = stack[number]
            wanted = renumbered(name, layer)
        if not _came_from(parents[source], wanted, made.output, name):
            yield Claim(what, "contradicted", f"{name} is not {wanted} of parent {source + 1}")
            return
    expected = {renumbered(name, 0) for name in parents[stack[0][0]].names() if number_of(name) == stack[0][1]}
    lacking = expected - {name for name in made.output.names() if number_of(name) == 0}
    if lacking:
        yield Claim(what, "contradicted", f"{min(lacking)} is gone")
        return
    yield Claim(what, "proved", f"all {len(stack)} layers and what is outside them, bit for bit")


def _stack(slices: Sequence[str]) -> list[tuple[int, int]]:
    stack = []
    for text in slices:
        found = SLICE.fullmatch(text)
        if found is None:
            raise BadRecord(f"the slice {text!r} is not MODEL:START-END", fix="record the step with such slices")
        model, start, end = map(int, found.groups())
        stack += [(model, number) for number in range(start, end)]
    if not stack:
        raise BadRecord("no slices are recorded", fix="record the step with slices such as 0:0-12")
    return stack


def _came_from(parent: TensorSource, wanted: str, output: TensorSource, name: str) -> bool:
    if wanted not in set(parent.names()):
        return False
    if is_equal(parent, wanted, output, name):
        return True
    before, after = parent.tensor(wanted), output.tensor(name)
    return before.dtype != after.dtype and evidence.is_cast(before, after)
