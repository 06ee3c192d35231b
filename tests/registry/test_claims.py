"""Claims: true ones are never contradicted, false ones nearly always, in bf16 and in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mreg.registry.digests import Digest
from mreg.registry.models.weights import Tensor
from mreg.registry.proof.claim import Claim, Made
from mreg.registry.proof.claims import check, weakest

Weights = dict[str, Any]
LAYERS = [f"model.layers.{layer}.{part}.weight" for layer in range(3) for part in ("up", "down")]
DTYPES = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}
SPELLED = {
    "bfloat16": "BF16",
    "float32": "F32",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "int8": "I8",
    "int32": "I32",
}
NORM = "model.norm.weight"
ROWS, COLUMNS = 16, 32


class Held:
    """Tensors in memory."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def names(self) -> Iterable[str]:
        return self.weights

    def digest(self, name: str) -> Digest | None:  # noqa: ARG002  the protocol asks
        return None

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        tensor = self.tensor(name)
        return tensor.dtype, tensor.shape

    def tensor(self, name: str) -> Tensor:
        array = np.ascontiguousarray(self.weights[name])
        return Tensor(SPELLED[array.dtype.name], array.shape, memoryview(array.view(np.uint8).reshape(-1)))


def model(chosen: np.random.Generator, dtype: str) -> Weights:
    made = {name: chosen.normal(0, 0.1, (ROWS, COLUMNS)).astype(DTYPES[dtype]) for name in LAYERS}
    return {**made, NORM: np.ones(COLUMNS, DTYPES[dtype])}


def near(chosen: np.random.Generator, weights: Weights, size: float = 0.02) -> Weights:
    """What a gentle training makes of it."""
    return {
        name: (one.astype(np.float64) + chosen.normal(0, size * 0.1, one.shape)).astype(one.dtype)
        for name, one in weights.items()
    }


def step(transform: str, params: dict[str, Any], output: Weights, config: Any = None, **inputs: Any) -> Made:
    held = {
        role: tuple(Held(one) for one in (given if isinstance(given, list) else [given]))
        for role, given in inputs.items()
    }
    configs = {"source": config} if config else {}
    facts = params.pop("facts", {})
    return Made(transform, params, facts, held, configs, Held(output), {}, is_adapter=False)


def verdict(made: Made) -> str:
    return weakest(check(made))


# The right outputs, made here by other code than that which checks them.


def cast(weights: Weights, dtype: str) -> Weights:
    return {name: one.astype(DTYPES[dtype]) for name, one in weights.items()}


def prune(weights: Weights, sparsity: float) -> Weights:
    made = dict(weights)
    for name in LAYERS:
        flat = made[name].reshape(-1).copy()
        flat[np.argsort(np.abs(flat.astype(np.float64)), kind="stable")[: round(sparsity * flat.size)]] = 0
        made[name] = flat.reshape(ROWS, COLUMNS)
    return made


def merge(parents: list[Weights], shares: list[float]) -> Weights:
    made = {}
    for name in parents[0]:
        total = np.zeros(parents[0][name].shape, np.float32)
        for parent, share in zip(parents, shares, strict=True):
            total = total + parent[name].astype(np.float32) * np.float32(share)
        made[name] = total.astype(parents[0][name].dtype)
    return made


def lora(chosen: np.random.Generator, rank: int, names: list[str]) -> tuple[Weights, dict[str, Any]]:
    factors: Weights = {}
    for name in names:
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        factors[f"{prefix}A.weight"] = chosen.normal(0, 0.3, (rank, COLUMNS)).astype(np.float32)
        factors[f"{prefix}B.weight"] = chosen.normal(0, 0.3, (ROWS, rank)).astype(np.float32)
    return factors, {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}


def fuse(base: Weights, factors: Weights, scale: float) -> Weights:
    made = dict(base)
    for name in base:
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{prefix}A.weight" in factors:
            delta = factors[f"{prefix}B.weight"] @ factors[f"{prefix}A.weight"] * np.float32(scale)
            made[name] = (base[name].astype(np.float32) + delta).astype(base[name].dtype)
    return made


def quantize(weights: Weights, group: int, dtype: str) -> Weights:
    """int4 in the packed format, eight in a word."""
    made: Weights = {}
    for name, one in weights.items():
        if name not in LAYERS:
            made[name] = one
            continue
        groups = one.astype(np.float32).reshape(ROWS, -1, group)
        scale = (np.abs(groups).max(-1) / 7.5).astype(DTYPES[dtype])
        whole = np.clip(np.rint(groups / scale.astype(np.float32)[..., None]), -8, 7).astype(np.int64).reshape(ROWS, -1)
        words = (whole + 8).reshape(ROWS, -1, 8) << (4 * np.arange(8))
        made[f"{name}_packed"] = words.sum(-1).astype(np.uint32).view(np.int32)
        made[f"{name}_scale"] = scale
        made[f"{name}_shape"] = np.array([ROWS, COLUMNS], np.int32)
    return made


def edit(chosen: np.random.Generator, weights: Weights, name: str, rank: int) -> Weights:
    delta = chosen.normal(0, 1, (ROWS, rank)) @ chosen.normal(0, 1, (rank, COLUMNS))
    return {**weights, name: (weights[name].astype(np.float64) + delta).astype(weights[name].dtype)}


def touched(chosen: np.random.Generator, weights: Weights, name: str) -> Weights:
    """The same with one more tensor changed, a little."""
    noise = near(chosen, {name: weights[name]}, 0.5)
    return {**weights, **noise}


Cases = list[tuple[str, Made]]


def true_claims(chosen: np.random.Generator, dtype: str) -> Cases:
    base, other = model(chosen, dtype), model(chosen, dtype)
    tuned = near(chosen, base)
    share = float(chosen.uniform(0.2, 0.8))
    sparsity = float(chosen.choice([0.25, 0.5, 0.7]))
    adapter, config = lora(chosen, 2, LAYERS[:4])
    to = "F32" if dtype == "BF16" else "BF16"
    half = {"dtype": {"F32": "float32", "BF16": "bfloat16"}[to]}
    return [
        ("cast", step("cast", half, cast(base, to), source=base)),
        ("prune", step("prune", {"sparsity": sparsity}, prune(base, sparsity), source=base)),
        (
            "merge",
            step(
                "merge",
                {"weights": [share, 1 - share]},
                merge([base, other], [share, 1 - share]),
                source=base,
                others=[other],
            ),
        ),
        ("sum of vectors", step("merge", _summed(0.5), merge([base, tuned], [0.5, 0.5]), source=tuned, base=base)),
        ("fuse", step("fuse", {}, fuse(base, adapter, 2.0), config, source=adapter, base=base)),
        ("quantize", step("quantize", {"method": "int4"}, quantize(base, 16, dtype), source=base)),
        ("edit", step("edit", _edited(2), edit(chosen, base, LAYERS[1], 2), source=base)),
        ("finetune", step("finetune", {"method": "full"}, tuned, source=base)),
        ("frozen", step("finetune", {"layers": [1]}, {**base, **{n: tuned[n] for n in LAYERS[2:4]}}, source=base)),
    ]


def _edited(rank: int) -> dict[str, Any]:
    return {"method": "memit", "facts": {"matrices": [LAYERS[1]], "edits": rank}}


def _summed(scale: float) -> dict[str, Any]:
    return {"method": "task-arithmetic", "lambda": scale}


def false_claims(chosen: np.random.Generator, dtype: str) -> Cases:
    base, other = model(chosen, dtype), model(chosen, dtype)
    tuned, third = near(chosen, base), model(chosen, dtype)
    adapter, config = lora(chosen, 2, LAYERS[:4])
    to = "F32" if dtype == "BF16" else "BF16"
    half = {"dtype": {"F32": "float32", "BF16": "bfloat16"}[to]}
    shares = [0.7, 0.3]
    pruned, merged = prune(base, 0.5), merge([base, other], shares)
    fused, packed = fuse(base, adapter, 2.0), quantize(base, 16, dtype)
    two = {"weights": shares}
    return [
        ("cast of another", step("cast", half, cast(tuned, to), source=base)),
        ("cast to another dtype", step("cast", half, dict(base), source=base)),
        ("wrong sparsity", step("prune", {"sparsity": 0.4}, pruned, source=base)),
        ("pruned from another", step("prune", {"sparsity": 0.5}, pruned, source=tuned)),
        ("pruned and trained", step("prune", {"sparsity": 0.5}, touched(chosen, pruned, LAYERS[5]), source=base)),
        ("swapped parents", step("merge", two, merged, source=other, others=[base])),
        ("wrong shares", step("merge", {"weights": [0.6, 0.4]}, merged, source=base, others=[other])),
        ("another parent", step("merge", two, merged, source=base, others=[third])),
        ("a training passed off as a merge", step("merge", two, tuned, source=base, others=[other])),
        ("merged and touched", step("merge", two, touched(chosen, merged, LAYERS[0]), source=base, others=[other])),
        ("wrong lambda", step("merge", _summed(0.8), merge([base, other], [0.5, 0.5]), source=other, base=base)),
        ("wrong scale", step("fuse", {}, fuse(base, adapter, 1.0), config, source=adapter, base=base)),
        ("wrong base", step("fuse", {}, fused, config, source=adapter, base=tuned)),
        ("one more matrix", step("fuse", {}, touched(chosen, fused, LAYERS[5]), config, source=adapter, base=base)),
        ("quantized from another", step("quantize", {"method": "int4"}, packed, source=tuned)),
        ("quantized, a norm touched", step("quantize", {"method": "int4"}, touched(chosen, packed, NORM), source=base)),
        ("edited elsewhere", step("edit", _edited(1), edit(chosen, base, LAYERS[2], 1), source=base)),
        ("edited in more directions", step("edit", _edited(1), edit(chosen, base, LAYERS[1], 4), source=base)),
        ("a training passed off as an edit", step("edit", _edited(1), tuned, source=base)),
        ("frozen and trained", step("finetune", {"layers": [1]}, tuned, source=base)),
        ("another model passed off as a training", step("finetune", {}, third, source=base)),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_true_claim_is_contradicted_and_the_false_ones_are(dtype: str):
    chosen = np.random.default_rng(1)
    true = [(name, verdict(made)) for _ in range(8) for name, made in true_claims(chosen, dtype)]
    false = [(name, verdict(made)) for _ in range(8) for name, made in false_claims(chosen, dtype)]
    missed = [name for name, found in false if found != "contradicted"]

    assert 150 < len(true) + len(false), "with both dtypes more than three hundred"
    assert {"proved", "consistent"} >= {found for _, found in true}
    assert len(missed) <= 0.05 * len(false), missed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["cast", "prune", "merge", "fuse", "quantize"])
def test_what_can_be_computed_again_is_proved(name: str, dtype: str):
    made = dict(true_claims(np.random.default_rng(2), dtype))[name]

    assert "proved" == verdict(made)


def test_a_training_is_never_more_than_consistent():
    cases = dict(true_claims(np.random.default_rng(2), "BF16"))

    assert "consistent" == verdict(cases["finetune"])
    assert ["proved", "consistent"] == [claim.verdict for claim in check(cases["frozen"])]


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_is_checked_in_every_row(pattern: str):
    chosen = np.random.default_rng(3)
    base = model(chosen, "F32")
    keep, of = (int(part) for part in pattern.split(":"))
    made = dict(base)
    for name in LAYERS:
        groups = made[name].reshape(-1, of).copy()
        np.put_along_axis(groups, np.argsort(np.abs(groups), axis=1)[:, : of - keep], 0, axis=1)
        made[name] = groups.reshape(ROWS, COLUMNS)
    params: dict[str, Any] = {"sparsity": 0.5, "pattern": pattern}

    assert "proved" == verdict(step("prune", dict(params), made, source=base))
    assert "contradicted" == verdict(step("prune", dict(params), prune(base, 0.5), source=base))


def test_what_weights_say_nothing_of_is_not_checkable():
    base = model(np.random.default_rng(0), "F32")
    found: Callable[..., list[Claim]] = check

    assert ["not-checkable"] == [claim.verdict for claim in found(step("my-own", {}, base, source=base))]
