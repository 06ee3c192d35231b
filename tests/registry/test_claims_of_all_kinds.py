"""Claims of further kinds: merges of every method, parts cut out, 8-bit floats, GGUF, calibrations, students."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from mreg.registry.errors import MregError
from mreg.registry.proof.claim import Beside, Made
from mreg.registry.proof.claims import check
from mreg.registry.proof.evidence_merge import drawn

from tests.registry.test_claims import DTYPES, Weights, near, step, touched, verdict

HIDDEN, WIDTH, HEADS, GROUPS, LAYERS = 32, 64, 4, 2, 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "num_hidden_layers": LAYERS,
    "vocab_size": 48,
    "tie_word_embeddings": True,
}
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // HEADS * GROUPS, HIDDEN),
    "self_attn.v_proj": (HIDDEN // HEADS * GROUPS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDTH, HIDDEN),
    "mlp.up_proj": (WIDTH, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDTH),
}
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
LINEAR = [f"model.layers.{layer}.{part}.weight" for layer in range(LAYERS) for part in SHAPES]


def llama(chosen: np.random.Generator, dtype: str) -> Weights:
    made = {EMBEDDING: chosen.normal(0, 0.1, (CONFIG["vocab_size"], HIDDEN)), NORM: chosen.uniform(0.5, 1.5, HIDDEN)}
    for layer in range(LAYERS):
        for part, shape in SHAPES.items():
            made[f"model.layers.{layer}.{part}.weight"] = chosen.normal(0, 0.1, shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{layer}.{norm}.weight"] = chosen.uniform(0.5, 1.5, HIDDEN)
    return {name: one.astype(DTYPES[dtype]) for name, one in made.items()}


def single(weights: Weights) -> Weights:
    """The same in float32, which holds both dtypes."""
    return {name: one.astype(np.float32) for name, one in weights.items()}


def rounded(weights: Weights, like: Weights) -> Weights:
    return {name: one.astype(like[name].dtype) for name, one in weights.items()}


# The right outputs, made here by other code than that which checks them.


def slerp(a: Weights, b: Weights, t: float) -> Weights:
    made = {}
    for name in a:
        x, y = a[name].astype(np.float64).reshape(-1), b[name].astype(np.float64).reshape(-1)
        cosine = float(x @ y / np.sqrt((x @ x) * (y @ y)))
        if abs(cosine) > 0.9995:
            value = (1 - t) * x + t * y
        else:
            angle = np.arccos(cosine)
            value = (np.sin((1 - t) * angle) * x + np.sin(t * angle) * y) / np.sin(angle)
        made[name] = value.astype(np.float32).reshape(a[name].shape)
    return rounded(made, a)


def vectors(base: Weights, tuned: list[Weights]) -> dict[str, list[Any]]:
    return {n: [one[n].astype(np.float32) - base[n].astype(np.float32) for one in tuned] for n in base}


def summed(weighted: list[Any], shares: list[float], *, elect: bool, normalize: bool) -> Any:
    """Element by element, in plain Python."""
    flat = [one.reshape(-1).astype(np.float64).tolist() for one in weighted]
    out = []
    for values in zip(*flat, strict=True):
        up = sum(values) >= 0
        stay = [(v, s) for v, s in zip(values, shares, strict=True) if not elect or (v > 0 if up else v < 0)]
        divisor = sum(share for _, share in stay) or 1.0 if elect else sum(shares)
        out.append(sum(v for v, _ in stay) / (divisor if normalize else 1.0))
    return np.array(out).reshape(weighted[0].shape)


def ties(base: Weights, tuned: list[Weights], shares: list[float], density: float, scale: float = 1.0) -> Weights:
    made = {}
    for name, learnt in vectors(base, tuned).items():
        kept = []
        for vector, share in zip(learnt, shares, strict=True):
            flat = vector.reshape(-1).copy()
            order = np.argsort(-np.abs(flat), kind="stable")
            flat[order[max(1, int(density * flat.size)) :]] = 0
            kept.append(flat.reshape(vector.shape).astype(np.float64) * share)
        made[name] = base[name].astype(np.float64) + scale * summed(kept, shares, elect=True, normalize=True)
    return rounded(made, base)


def dare(
    base: Weights,
    tuned: list[Weights],
    density: float,
    masks: Callable[[str, int, Any], Any],
    *,
    elect: bool = False,
) -> Weights:
    made = {}
    for name, learnt in vectors(base, tuned).items():
        kept = [np.where(masks(name, n, v), v.astype(np.float64) / density, 0) for n, v in enumerate(learnt)]
        made[name] = base[name].astype(np.float64) + summed(kept, [1.0] * len(kept), elect=elect, normalize=False)
    return rounded(made, base)


def stock(base: Weights, tuned: list[Weights]) -> Weights:
    made, count = {}, len(tuned)
    for name, learnt in vectors(base, tuned).items():
        flat = [one.astype(np.float64).reshape(-1) for one in learnt]
        cosines = [float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in itertools.combinations(flat, 2)]
        cosine = sum(cosines) / len(cosines)
        ratio = count * cosine / (1 + (count - 1) * cosine)
        mean = sum(one[name].astype(np.float64) for one in tuned) / count
        made[name] = ratio * mean + (1 - ratio) * base[name].astype(np.float64)
    return rounded(made, base)


def stacked(models: list[Weights], stack: list[tuple[int, int]]) -> Weights:
    made = {EMBEDDING: models[stack[0][0]][EMBEDDING], NORM: models[stack[-1][0]][NORM]}
    for new, (model, old) in enumerate(stack):
        prefix = f"model.layers.{old}."
        inside = {name: one for name, one in models[model].items() if name.startswith(prefix)}
        made |= {f"model.layers.{new}.{name.removeprefix(prefix)}": one for name, one in inside.items()}
    return made


def without_channels(weights: Weights, gone: Callable[[int, Any], list[int]]) -> Weights:
    made = dict(weights)
    for layer in range(LAYERS):
        gate, up, down = (f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
        held = single({name: weights[name] for name in (gate, up, down)})
        sizes = (held[gate] ** 2).sum(1) + (held[up] ** 2).sum(1) + (held[down] ** 2).sum(0)
        lost = gone(layer, sizes)
        made[gate], made[up] = np.delete(weights[gate], lost, 0), np.delete(weights[up], lost, 0)
        made[down] = np.delete(weights[down], lost, 1)
    return made


def without_heads(weights: Weights, gone: int) -> Weights:
    """One of the groups of each layer, of those that the sizes put first."""
    made, width = dict(weights), HIDDEN // HEADS
    for layer in range(LAYERS):
        q, k, v, o = (f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkvo")
        held = single({name: weights[name] for name in (q, k, v, o)})
        rows = [(held[name] ** 2).sum(1).reshape(GROUPS, -1).sum(1) for name in (q, k, v)]
        sizes = sum(rows) + (held[o] ** 2).sum(0).reshape(GROUPS, -1).sum(1)
        lost = int(np.argsort(sizes)[gone])
        share = HEADS // GROUPS * width
        for name, part, axis in ((q, share, 0), (k, width, 0), (v, width, 0), (o, share, 1)):
            made[name] = np.delete(weights[name], range(lost * part, (lost + 1) * part), axis)
    return made


def smallest(count: int) -> Callable[[int, Any], list[int]]:
    return lambda layer, sizes: np.argsort(sizes, kind="stable")[:count].tolist()


def by_rows(chosen: np.random.Generator, weights: Weights, sparsity: float) -> Weights:
    """What Wanda leaves where its data makes any weight unimportant."""
    made = dict(weights)
    for name in LINEAR:
        after = weights[name].copy()
        order = np.argsort(chosen.random(after.shape), axis=1)
        np.put_along_axis(after, order[:, : int(sparsity * after.shape[1])], 0, axis=1)
        made[name] = after
    return made


def compensated(chosen: np.random.Generator, weights: Weights, sparsity: float) -> Weights:
    """What SparseGPT leaves: one more is gone than asked for, and the others have moved."""
    made = dict(weights)
    for name in LINEAR:
        after = weights[name].astype(np.float64) * (1 + 0.05 * chosen.normal(size=weights[name].shape))
        after.reshape(-1)[chosen.permutation(after.size)[: int(sparsity * after.size) + 1]] = 0
        made[name] = after.astype(weights[name].dtype)
    return made


def two_of_four(chosen: np.random.Generator, weights: Weights) -> Weights:
    made = dict(weights)
    for name in LINEAR:
        groups = weights[name].reshape(-1, 4).copy()
        np.put_along_axis(groups, np.argsort(chosen.random(groups.shape), axis=1)[:, :2], 0, axis=1)
        made[name] = groups.reshape(weights[name].shape)
    return made


def eight_bits(weights: Weights, kind: str, columns: dict[str, Any] | None = None) -> Weights:
    """One scale a row. `columns` are factors that the columns are scaled by before."""
    made = dict(weights)
    for name in LINEAR:
        exact = weights[name].astype(np.float32) * (columns or {}).get(name, np.float32(1))
        most = 448 if kind == "fp8" else 127.5
        scale = (np.abs(exact).max(1, keepdims=True) / most).astype(weights[name].dtype)
        place = exact / scale.astype(np.float32)
        if kind == "fp8":
            made[name] = np.clip(place, -448, 448).astype(ml_dtypes.float8_e4m3fn)
        else:
            made[name] = np.clip(np.rint(place), -128, 127).astype(np.int8)
        made[f"{name}_scale"] = scale
    return made


def smoothed(chosen: np.random.Generator, weights: Weights) -> Weights:
    norms, columns = dict(weights), {}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm, readers in (("input_layernorm", "qkv"), ("post_attention_layernorm", ("gate", "up"))):
            taken = np.exp(chosen.uniform(-1, 1, HIDDEN)).astype(np.float32)
            name = f"{prefix}{norm}.weight"
            norms[name] = (weights[name].astype(np.float32) / taken).astype(weights[name].dtype)
            part = "self_attn" if norm == "input_layernorm" else "mlp"
            columns |= {f"{prefix}{part}.{reader}_proj.weight": taken for reader in readers}
    return eight_bits(norms, "int8", columns)


def mapped(weights: Weights, name: str, matrix: Any, bias: Any = None) -> Weights:
    made = {**weights, f"{name}.weight": matrix @ weights[f"{name}.weight"].astype(np.float64)}
    if bias is not None:
        made[f"{name}.bias"] = matrix @ weights[f"{name}.bias"].astype(np.float64) + bias
    return rounded(made, weights)


def extracted(base: Weights, tuned: Weights, rank: int, *, skip: int = 0) -> Weights:
    factors = {}
    for name in LINEAR:
        u, s, v = np.linalg.svd(tuned[name].astype(np.float64) - base[name].astype(np.float64), full_matrices=False)
        prefix, kept = f"base_model.model.{name.removesuffix('.weight')}.lora_", slice(skip, skip + rank)
        factors[f"{prefix}A.weight"] = (np.sqrt(s[kept])[:, None] * v[kept]).astype(np.float32)
        factors[f"{prefix}B.weight"] = (u[:, kept] * np.sqrt(s[kept])).astype(np.float32)
    return factors


def classifier(chosen: np.random.Generator, weights: Weights, labels: int) -> Weights:
    """The same body under a head that tells labels apart."""
    dtype = weights[NORM].dtype
    head = {"score.weight": chosen.normal(0, 0.1, (labels, HIDDEN)), "score.bias": chosen.normal(0, 0.1, labels)}
    return {**weights, **{name: one.astype(dtype) for name, one in head.items()}}


def lora_of(made: Made, rank: int) -> Made:
    return replace(made, is_adapter=True, config={"peft_type": "LORA", "r": rank, "lora_alpha": rank})


def sized(made: Made, **more: Any) -> Made:
    """The step with what lies beside its models."""
    held = {role: tuple(Beside(CONFIG) for _ in given) for role, given in made.inputs.items()}
    return replace(made, beside={**held, "output": (Beside(CONFIG),), **more})


def tokens(**numbers: int) -> Beside:
    content = json.dumps({"model": {"vocab": numbers}}).encode()
    return Beside(CONFIG, {"tokenizer.json": str(numbers)}, lambda path: content)


def write_gguf(path: Path, weights: Weights, kind: str) -> Path:
    """The file that llama.cpp's converter would write: its names, and its order of the rows of q and k."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    called = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    called |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    called |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, one in single(weights).items():
        parts = name.split(".")
        new = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight"}.get(name)
        new = new or f"blk.{parts[2]}.{called[parts[-2]]}.weight"
        if parts[-2] in ("q_proj", "k_proj"):
            heads = HEADS if parts[-2] == "q_proj" else GROUPS
            one = one.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(one.shape)
        chosen = gguf.GGMLQuantizationType[kind if one.ndim == 2 else "F32"]
        writer.add_tensor(new, gguf.quants.quantize(np.ascontiguousarray(one), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Cases = list[tuple[str, Made]]


def dropped(chosen: np.random.Generator, density: float) -> Callable[[str, int, Any], Any]:
    return lambda name, place, vector: chosen.random(vector.shape) < density


def merges(chosen: np.random.Generator, dtype: str) -> tuple[Cases, Cases]:
    base = llama(chosen, dtype)
    other = llama(chosen, dtype)
    size = 0.2 if dtype == "BF16" else 0.05
    tuned = [near(chosen, base, size), near(chosen, base, size)]
    t, density = float(chosen.uniform(0.2, 0.4)), float(chosen.choice([0.3, 0.5]))
    arc, trimmed = slerp(base, other, t), ties(base, tuned, [1.0, 0.5], density)
    a, b = tuned
    thinned = dare(base, tuned, density, dropped(chosen, density))
    elected = dare(base, tuned, density, dropped(chosen, density), elect=True)
    seeded = dare(base, tuned, density, lambda name, place, v: drawn(5, name, place, density, v.shape))
    stack = [(0, 0), (0, 1), (1, 1), (1, 2)]
    layers = stacked([base, other], stack)
    ties_of: dict[str, Any] = {"method": "ties", "weights": [1.0, 0.5], "density": [density]}
    dare_of: dict[str, Any] = {"method": "dare-linear", "density": [density]}
    passed: dict[str, Any] = {"method": "passthrough", "slices": ["0:0-2", "1:1-3"]}

    def made(params: dict[str, Any], output: Weights, x: Weights, y: Weights, **more: Any) -> Made:
        return step("merge", dict(params), output, source=x, others=[y], **more)

    slerp_of, stock_of = {"method": "slerp", "t": t}, {"method": "model-stock"}
    true = [
        ("slerp", made(slerp_of, arc, base, other)),
        ("slerp of near ones", made(slerp_of, slerp(a, b, t), a, b)),
        ("ties", made(ties_of, trimmed, a, b, base=base)),
        ("dare-linear", made(dare_of, thinned, a, b, base=base)),
        ("dare-ties", made({**dare_of, "method": "dare-ties"}, elected, a, b, base=base)),
        ("dare with its seed", replace(made(dare_of, seeded, a, b, base=base), seed=5)),
        ("model-stock", made(stock_of, stock(base, tuned), a, b, base=base)),
        ("passthrough", made(passed, layers, base, other)),
    ]
    one_more = {**layers, "model.layers.2.mlp.up_proj.weight": base["model.layers.2.mlp.up_proj.weight"]}
    stranger = dare(other, tuned, density, dropped(chosen, density))
    false = [
        ("slerp elsewhere", made({**slerp_of, "t": t + 0.02}, arc, base, other)),
        ("slerp, parents swapped", made(slerp_of, arc, other, base)),
        ("a mean passed off as slerp", made(slerp_of, mean(base, other, t), base, other)),
        ("slerp, one matrix touched", made(slerp_of, touched(chosen, arc, DOWN), base, other)),
        ("ties of another density", made({**ties_of, "density": [density + 0.1]}, trimmed, a, b, base=base)),
        ("ties, parents swapped", made(ties_of, trimmed, b, a, base=base)),
        ("ties on another base", made(ties_of, trimmed, a, b, base=near(chosen, base))),
        ("ties, another lambda", made({**ties_of, "lambda": 0.7}, trimmed, a, b, base=base)),
        ("ties, one matrix touched", made(ties_of, touched(chosen, trimmed, DOWN), a, b, base=base)),
        ("a sum passed off as ties", made(ties_of, mean(a, b, 0.5), a, b, base=base)),
        ("dare of another density", made({**dare_of, "density": [density + 0.2]}, thinned, a, b, base=base)),
        ("dare that dropped fewer", made(dare_of, dare(base, tuned, density, dropped(chosen, 0.8)), a, b, base=base)),
        ("dare on another base", made(dare_of, stranger, a, b, base=base)),
        ("dare of another parent", made(dare_of, thinned, a, near(chosen, base, size), base=base)),
        ("dare, one matrix touched", made(dare_of, touched(chosen, thinned, DOWN), a, b, base=base)),
        ("model-stock on another base", made(stock_of, stock(base, tuned), a, b, base=near(chosen, base, size))),
        ("a mean passed off as model-stock", made(stock_of, mean(a, b, 0.5), a, b, base=base)),
        ("layers in another order", made({**passed, "slices": ["0:0-2", "1:0-2"]}, layers, base, other)),
        ("layers of swapped parents", made(passed, layers, other, base)),
        ("one layer too many", made({**passed, "slices": ["0:0-2", "1:1-2"]}, layers, base, other)),
        ("one matrix of another layer", made(passed, one_more, base, other)),
    ]  # fmt: skip
    return true, false


def mean(a: Weights, b: Weights, t: float) -> Weights:
    return rounded({n: (1 - t) * a[n].astype(np.float64) + t * b[n].astype(np.float64) for n in a}, a)


def cuts(chosen: np.random.Generator, dtype: str) -> tuple[Cases, Cases]:
    base = llama(chosen, dtype)
    tuned = near(chosen, base)
    count = int(chosen.integers(4, 40))
    fewer, heads = without_channels(base, smallest(count)), without_heads(base, 0)

    def made(structure: str, sparsity: float, output: Weights, source: Weights, **more: Any) -> Made:
        params = {"method": "structured", "structure": structure, "sparsity": sparsity, **more}
        return sized(step("prune", params, output, source=source))

    by_size = np.argsort([sum(float((single(base)[n] ** 2).sum()) for n in LINEAR if f".{x}." in n) for x in range(3)])
    left = sorted(by_size[1:].tolist())
    shorter = stacked([base], [(0, one) for one in left])
    thinned = by_rows(chosen, base, 0.4)
    part = count / WIDTH
    random = without_channels(base, lambda layer, sizes: chosen.permutation(WIDTH)[:count].tolist())
    shuffled = without_channels(base, lambda layer, sizes: np.argsort(sizes)[:count].tolist())
    gate = "model.layers.0.mlp.gate_proj.weight"
    shuffled[gate] = np.ascontiguousarray(shuffled[gate][::-1])
    wanda = {"method": "wanda", "sparsity": 0.4}
    sparsegpt = compensated(chosen, base, 0.4)
    pattern = {"method": "wanda", "pattern": "2:4", "sparsity": 0.5}
    fewer_zeros = by_rows(chosen, base, 0.3)
    true = [
        ("channels", made("channels", part, fewer, base)),
        ("heads", made("heads", 0.5, heads, base)),
        ("layers", made("layers", 1 / 3, shorter, base)),
        ("channels by data", made("channels", part, random, base, importance="activations")),
        ("wanda", step("prune", dict(wanda), thinned, source=base)),
        ("wanda 2:4", step("prune", dict(pattern), two_of_four(chosen, base), source=base)),
        ("sparsegpt", step("prune", {**wanda, "method": "sparsegpt"}, sparsegpt, source=base)),
    ]
    false = [
        ("more channels than said", made("channels", part + 0.1, fewer, base)),
        ("channels of another model", made("channels", part, fewer, tuned)),
        ("channels, one matrix touched", made("channels", part, touched(chosen, fewer, gate), base)),
        ("channels, a norm touched", made("channels", part, touched(chosen, fewer, NORM), base)),
        ("channels in another order", made("channels", part, shuffled, base)),
        ("other channels than the smallest", made("channels", part, random, base)),
        ("other heads than the smallest", made("heads", 0.5, without_heads(base, 1), base)),
        ("heads of another model", made("heads", 0.5, heads, tuned)),
        ("nothing cut", made("heads", 0.5, base, base)),
        ("layers of another model", made("layers", 1 / 3, shorter, tuned)),
        ("more layers than said", made("layers", 2 / 3, shorter, base)),
        ("the largest layer gone", made("layers", 1 / 3, stacked([base], [(0, int(n)) for n in sorted(by_size[:2])]), base)),  # noqa: E501
        ("layers changed over", made("layers", 1 / 3, stacked([base], [(0, n) for n in left[::-1]]), base)),
        ("wanda with fewer zeros", step("prune", dict(wanda), fewer_zeros, source=base)),
        ("wanda of another model", step("prune", dict(wanda), thinned, source=tuned)),
        ("wanda that moved weights", step("prune", dict(wanda), sparsegpt, source=base)),
        ("no pattern", step("prune", dict(pattern), by_rows(chosen, base, 0.5), source=base)),
        ("sparsegpt with fewer zeros", step("prune", {**wanda, "method": "sparsegpt"}, fewer_zeros, source=base)),
    ]  # fmt: skip
    return true, false


def grids(chosen: np.random.Generator, dtype: str) -> tuple[Cases, Cases]:
    base = llama(chosen, dtype)
    tuned = near(chosen, base, 0.2)
    floats, whole, smooth = eight_bits(base, "fp8"), eight_bits(base, "int8"), smoothed(chosen, base)

    def made(method: str, output: Weights, source: Weights) -> Made:
        return step("quantize", {"method": method}, output, source=source)

    def scaled(output: Weights, factor: float) -> Weights:
        name = f"{DOWN}_scale"
        return {**output, name: (output[name].astype(np.float64) * factor).astype(output[name].dtype)}

    less = {name: one for name, one in whole.items() if name != NORM}
    true = [
        ("fp8", made("fp8", floats, base)),
        ("dynamic-int8", made("dynamic-int8", whole, base)),
        ("smoothquant", made("smoothquant", smooth, base)),
    ]
    false = [
        ("fp8 of another model", made("fp8", floats, tuned)),
        ("fp8 with a wrong scale", made("fp8", scaled(floats, 1.3), base)),
        ("fp8, embedding touched", made("fp8", touched(chosen, floats, EMBEDDING), base)),
        ("int8 passed off as fp8", made("fp8", whole, base)),
        ("int8 of another model", made("dynamic-int8", whole, tuned)),
        ("int8 with a scale too small", made("dynamic-int8", scaled(whole, 0.5), base)),
        ("int8 with a scale too large", made("dynamic-int8", scaled(whole, 2), base)),
        ("int8, a norm touched", made("dynamic-int8", touched(chosen, whole, NORM), base)),
        ("int8, a norm gone", made("dynamic-int8", less, base)),
        ("smoothquant of another model", made("smoothquant", smooth, tuned)),
        ("smoothquant, a norm touched", made("smoothquant", touched(chosen, smooth, "model.layers.0.input_layernorm.weight"), base)),  # noqa: E501
        ("smoothquant, embedding touched", made("smoothquant", touched(chosen, smooth, EMBEDDING), base)),
    ]  # fmt: skip
    return true, false


def calibrations(chosen: np.random.Generator, dtype: str) -> tuple[Cases, Cases]:
    base = llama(chosen, dtype)
    judge = classifier(chosen, base, 3)
    two = classifier(chosen, base, 2)
    hot = float(chosen.uniform(1.2, 2.0))
    matrix, bias = np.eye(3) + 0.3 * chosen.normal(size=(3, 3)), 0.3 * chosen.normal(size=3)
    scale = np.exp(chosen.normal(0, 0.3, 3))
    cooled = rounded({**base, NORM: base[NORM].astype(np.float64) / hot}, base)
    told: dict[str, Any] = {"temperature": hot, "layer": "model.norm"}
    vector, whole = mapped(judge, "score", np.diag(scale), bias), mapped(judge, "score", matrix, bias)
    platt = mapped(two, "score", np.eye(2) * scale[0], np.array([-bias[0], bias[0]]) / 2)

    def made(method: str, facts: dict[str, Any], output: Weights, source: Weights) -> Made:
        return sized(step("calibrate", {"method": method, "facts": facts}, output, source=source))

    vector_told = {"scale": scale.tolist(), "bias": bias.tolist()}
    matrix_told = {"matrix_diagonal": np.diag(matrix).tolist(), "bias": bias.tolist()}
    platt_told = {"scale": float(scale[0]), "shift": float(bias[0])}
    map_file = Beside(CONFIG, {"calibration.json": "0" * 64})
    beside = replace(made("isotonic", {}, judge, judge), beside={"output": (map_file,)})
    wrong = {**told, "temperature": hot * 1.05}
    true = [
        ("temperature", made("temperature", told, cooled, base)),
        ("temperature not told", made("temperature", {}, cooled, base)),
        ("vector", made("vector", vector_told, vector, judge)),
        ("matrix", made("matrix", matrix_told, whole, judge)),
        ("platt", made("platt", platt_told, platt, two)),
        ("isotonic", beside),
    ]
    false = [
        ("another temperature", made("temperature", wrong, cooled, base)),
        ("temperature, one matrix touched", made("temperature", told, touched(chosen, cooled, DOWN), base)),
        ("temperature of another model", made("temperature", told, cooled, near(chosen, base))),
        ("no temperature at all", made("temperature", {}, touched(chosen, base, NORM), base)),
        ("vector with other scales", made("vector", {**vector_told, "scale": scale[::-1].tolist()}, vector, judge)),
        ("a matrix passed off as vector", made("vector", vector_told, whole, judge)),
        ("matrix with other shares", made("matrix", {"matrix_diagonal": (scale + 0.5).tolist()}, whole, judge)),
        ("matrix of another head", made("matrix", matrix_told, whole, classifier(chosen, base, 3))),
        ("platt, another shift", made("platt", {**platt_told, "shift": float(bias[0]) + 0.3}, platt, two)),
        ("isotonic, a weight touched", made("isotonic", {}, touched(chosen, judge, DOWN), judge)),
        ("isotonic without its map", made("isotonic", {}, judge, judge)),
    ]
    return true, false


def trainings(chosen: np.random.Generator, dtype: str) -> tuple[Cases, Cases]:
    base, other = llama(chosen, dtype), llama(chosen, dtype)
    tuned = near(chosen, base)
    rank = int(chosen.integers(2, 6))
    factors = extracted(base, tuned, rank)
    wild = {name: one * np.float32(8) for name, one in factors.items()}
    student = stacked([tuned], [(0, 0), (0, 2)])
    judge = classifier(chosen, tuned, 1)
    labels = classifier(chosen, tuned, 4)
    shorter = stacked([tuned], [(0, 0), (0, 1)])
    two = {"num_hidden_layers": 2}
    task = {"method": "full", "task": "sequence-classification"}
    frozen = {**classifier(chosen, base, 4)}

    def extract(output: Weights, **inputs: Any) -> Made:
        return lora_of(step("extract", {"rank": rank}, output, **inputs), rank)

    def distill(params: dict[str, Any], after: Weights, before: Weights, **beside: Any) -> Made:
        return sized(step("distill", dict(params), after, source=before, teacher=other), **beside)

    def adapter(factors: Weights, source: Weights, rank: int) -> Made:
        return lora_of(step("finetune", {"method": "lora", "rank": rank}, factors, source=source), rank)

    words = {"source": (tokens(a=0, b=1),), "teacher": (tokens(a=0, b=1, c=2),)}
    others = {"source": (tokens(a=0, b=1),), "teacher": (tokens(a=1, b=0),)}
    renamed = {"source": (tokens(a=0, b=1),), "output": (tokens(a=1, b=0),)}
    true = [
        ("extract", extract(factors, source=tuned, base=base)),
        ("adapter", adapter(factors, base, rank)),
        ("distill", distill({}, tuned, base, **words)),
        ("distill with fewer layers", distill(two, student, base)),
        ("reward", step("reward", {}, judge, source=base)),
        ("classifier", step("finetune", dict(task), labels, source=base)),
        ("classifier on a frozen body", step("finetune", {**task, "freeze": ["backbone"]}, frozen, source=base)),
    ]
    false = [
        ("extracted from another", extract(factors, source=near(chosen, base), base=base)),
        ("extracted, versions swapped", extract(factors, source=base, base=tuned)),
        ("not the largest directions", extract(extracted(base, tuned, rank, skip=2), source=tuned, base=base)),
        ("extracted with another rank", replace(extract(factors, source=tuned, base=base), params={"rank": rank + 1})),
        ("extracted, one factor touched", extract(touched(chosen, factors, sorted(factors)[1]), source=tuned, base=base)),  # noqa: E501
        ("an adapter of another rank", adapter(factors, base, rank + 1)),
        ("an adapter of a smaller model", adapter(factors, without_heads(base, 0), rank)),
        ("an adapter larger than its base", adapter(wild, base, rank)),
        ("an adapter that changes nothing", adapter({n: np.zeros_like(factors[n]) for n in factors}, base, rank)),
        ("a student of another model", distill({}, near(chosen, other), base)),
        ("a student of other layers", distill(two, shorter, base)),
        ("a student with all layers", distill(two, tuned, base)),
        ("a student untouched", distill({}, base, base)),
        ("a teacher of other words", distill({}, tuned, base, **others)),
        ("a student of other words", distill({}, tuned, base, **renamed)),
        ("a reward of three numbers", step("reward", {}, classifier(chosen, tuned, 3), source=base)),
        ("a reward of another model", step("reward", {}, classifier(chosen, near(chosen, other), 1), source=base)),
        ("a classifier of another model", step("finetune", dict(task), classifier(chosen, other, 4), source=base)),
        ("a body that was not frozen", step("finetune", {**task, "freeze": ["backbone"]}, labels, source=base)),
        ("a reward with a layer less", step("reward", {}, classifier(chosen, student, 1), source=base)),
    ]  # fmt: skip
    return true, false


REPEATS = 2
FAMILIES = {"merges": merges, "cuts": cuts, "grids": grids, "calibrations": calibrations, "trainings": trainings}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_true_claim_is_contradicted_and_the_false_ones_are(family: str, dtype: str):
    chosen = np.random.default_rng(1)
    cases = [FAMILIES[family](chosen, dtype) for _ in range(REPEATS)]
    true = [(name, verdict(made)) for right, _ in cases for name, made in right]
    false = [(name, verdict(made)) for _, wrong in cases for name, made in wrong]
    missed = [name for name, found in false if found != "contradicted"]

    assert [] == [(name, found) for name, found in true if found not in ("proved", "consistent")]
    assert len(missed) <= 0.05 * len(false), missed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("merges", ["slerp", "ties", "dare with its seed", "model-stock", "passthrough"]),
        ("cuts", ["channels", "heads", "layers"]),
        ("grids", ["fp8", "dynamic-int8"]),
        ("calibrations", ["temperature", "vector", "platt"]),
        ("trainings", ["extract"]),
    ],
)
def test_what_can_be_computed_again_is_proved(family: str, names: list[str], dtype: str):
    true = dict(FAMILIES[family](np.random.default_rng(2), dtype)[0])

    assert dict.fromkeys(names, "proved") == {name: verdict(true[name]) for name in names}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1", "F16"])
def test_a_gguf_file_is_held_against_the_weights_block_by_block(tmp_path: Path, kind: str, dtype: str):
    chosen = np.random.default_rng(6)
    base = llama(chosen, dtype)

    def made(weights: Weights, source: Weights, said: str = kind) -> Made:
        path = write_gguf(tmp_path / f"{chosen.integers(1 << 40)}.gguf", weights, kind)
        return replace(sized(step("quantize", {"method": "gguf", "gguf_type": said}, {}, source=source)), gguf=path)

    wrong = {
        "of another model": made(base, near(chosen, base)),
        "of a model with one matrix touched": made(touched(chosen, base, DOWN), base),
        "of a model with one norm touched": made(touched(chosen, base, NORM), base),
        "of another type": made(base, base, "Q5_0"),
        "without a layer": made(stacked([base], [(0, 0), (0, 1)]), base),
    }

    assert "proved" == verdict(made(base, base))
    assert dict.fromkeys(wrong, "contradicted") == {name: verdict(one) for name, one in wrong.items()}


def test_a_gguf_file_that_cannot_be_read_says_so(tmp_path: Path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF and no more")
    base = llama(np.random.default_rng(0), "F32")
    broken = replace(step("quantize", {"method": "gguf"}, {}, source=base), gguf=tmp_path / "model.gguf")

    with pytest.raises(MregError, match="cannot be read"):
        check(broken)


@pytest.mark.parametrize(
    ("transform", "params"),
    [
        ("merge", {"weights": ["half", "half"]}),
        ("merge", {"method": "passthrough", "slices": ["all"]}),
        ("merge", {"method": "dare-ties", "density": [0]}),
        ("prune", {"sparsity": "much"}),
        ("prune", {"pattern": "two of four", "sparsity": 0.5}),
    ],
)
def test_what_was_recorded_and_cannot_be_read_is_said_in_a_line(transform: str, params: dict[str, Any]):
    base = llama(np.random.default_rng(0), "F32")

    with pytest.raises(MregError, match=r"recorded|slice"):
        check(step(transform, params, base, source=base, others=[base], base=base))


def test_more_than_three_hundred_claims_are_generated():
    counts = [sum(map(len, make(np.random.default_rng(0), "F32"))) for make in FAMILIES.values()]

    assert 300 < REPEATS * len(DTYPES) * sum(counts)
