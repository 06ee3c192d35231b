"""Cutting whole parts out of every layer of a model, attention heads or MLP channels, which leaves a smaller model.

What is left computes what the whole model computes with those parts set to zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Report
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest, rewrite
from mreg.transforms._layers import LAYER, count_layers

if TYPE_CHECKING:
    import torch

Structure = Literal["heads", "channels", "layers"]


@dataclass(frozen=True)
class Cut:
    """How one structure lies in the tensors of a layer.

    `tensors` maps names within the layer to the dimension along which the parts follow each other, each of equal size;
    those in `optional` may be missing. `reader` is the module that reads what the parts compute, one after the other.
    """

    tensors: Mapping[str, int]
    optional: frozenset[str]
    reader: str


GATED = Cut(
    {
        "mlp.gate_proj.weight": 0,
        "mlp.up_proj.weight": 0,
        "mlp.down_proj.weight": 1,
        "mlp.gate_proj.bias": 0,
        "mlp.up_proj.bias": 0,
    },
    frozenset({"mlp.gate_proj.bias", "mlp.up_proj.bias"}),
    "mlp.down_proj",
)
GROUPED = Cut(
    {
        "self_attn.q_proj.weight": 0,
        "self_attn.k_proj.weight": 0,
        "self_attn.v_proj.weight": 0,
        "self_attn.o_proj.weight": 1,
        "self_attn.q_proj.bias": 0,
        "self_attn.k_proj.bias": 0,
        "self_attn.v_proj.bias": 0,
    },
    frozenset(f"self_attn.{letter}_proj.bias" for letter in "qkv"),
    "self_attn.o_proj",
)
BERT = Cut(
    {"intermediate.dense.weight": 0, "intermediate.dense.bias": 0, "output.dense.weight": 1},
    frozenset(),
    "output.dense",
)
GPT2 = Cut({"mlp.c_fc.weight": 1, "mlp.c_fc.bias": 0, "mlp.c_proj.weight": 0}, frozenset(), "mlp.c_proj")

# Heads of the others cannot go: their width is the hidden size by the number of heads.
CUTS: Mapping[str, Mapping[str, Cut]] = {
    **{kind: {"heads": GROUPED, "channels": GATED} for kind in ("llama", "mistral", "qwen2", "qwen3")},
    **{kind: {"channels": BERT} for kind in ("bert", "roberta")},
    "gpt2": {"channels": GPT2},
}
TRANSPOSED = frozenset({"gpt2"})
"""Kinds of model whose matrices are (inputs, outputs)."""


@dataclass(frozen=True)
class Plan:
    """How many of the `parts` of every layer stay, and where they lie; no cut where the parts are the layers."""

    structure: Structure
    parts: int
    stay: int
    layers: int
    cut: Cut | None


def plan_of(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]], structure: Structure, sparsity: float
) -> Plan:
    """What is to be cut out of a model of these tensors (name to shape). Raises Refused and BadParams."""
    layers = count_layers(name, config, tensors)
    cut = None if structure == "layers" else _cut(name, config, structure)
    parts = {"layers": layers, "heads": _groups(config), "channels": _channels(config)}[structure]
    if cut is not None:
        _fits(name, cut, tensors, parts, layers)
    gone = round(sparsity * parts)
    # Groups of heads are what can go where keys and values are shared.
    counted = f"{parts} {told(structure, config)}"
    if not 0 < gone < parts:
        whole = "all" if gone else "none"
        raise BadParams(
            f"a sparsity of {sparsity:g} removes {whole} of the {counted} of {name}",
            fix=_possible(parts),
        )
    return Plan(structure, parts, parts - gone, layers, cut)


def _possible(parts: int) -> str:
    if parts < 2:
        return "prune another structure"
    least, most = f"{1 / parts:.2g}", f"{1 - 1 / parts:.2g}"
    return f"give {least}" if least == most else f"give one from {least} to {most}"


def told(structure: Structure, config: Mapping[str, Any]) -> str:
    """What the parts of a structure are called."""
    if structure == "heads" and _groups(config) != config.get("num_attention_heads"):
        return "key-value groups of heads"
    return structure


def _cut(name: str, config: Mapping[str, Any], structure: Structure) -> Cut:
    kind = str(config.get("model_type"))
    cuts = CUTS.get(kind, {})
    if structure not in cuts:
        works = ", ".join(each for each in CUTS if structure in CUTS[each])
        instead = " or ".join([*cuts, "layers"])
        raise Refused(
            f"{structure} cannot be cut out of {name}, a model of type {kind}",
            fix=f"use --structure {instead}, or a model of type {works}",
        )
    return cuts[structure]


def _groups(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 0)


def _channels(config: Mapping[str, Any]) -> int:
    return int(config.get("intermediate_size") or config.get("n_inner") or 4 * int(config.get("n_embd") or 0))


def _fits(name: str, cut: Cut, tensors: Mapping[str, Sequence[int]], parts: int, layers: int) -> None:
    held: dict[str, set[int]] = {}
    for tensor, shape in tensors.items():
        found = LAYER.search(tensor)
        inside = tensor[found.end() :] if found else ""
        if found is None or inside not in cut.tensors:
            continue
        held.setdefault(inside, set()).add(int(found[1]))
        if not parts or shape[cut.tensors[inside]] % parts:
            raise Refused(f"{tensor} does not have the {parts} parts that config.json of {name} says", fix="mend it")
    for inside in cut.tensors:
        if held.get(inside, set()) != set(range(layers)) and not (inside in cut.optional and inside not in held):
            raise Refused(f"{name} lacks {inside} in some layer", fix="use --structure layers")


def changes(plan: Plan, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of a model that is cut so."""
    if plan.structure == "heads":
        heads = int(config["num_attention_heads"])
        width = config.get("head_dim") or int(config["hidden_size"]) // heads
        return {
            "num_attention_heads": heads // plan.parts * plan.stay,
            "num_key_value_heads": plan.stay,
            "head_dim": width,
        }
    return {"n_inner" if "n_embd" in config else "intermediate_size": plan.stay}


def cut_out(
    source: ModelFolder, plan: Plan, scores: Mapping[int, torch.Tensor], output: Path, report: Report
) -> tuple[list[str], dict[int, list[int]]]:
    """Write `source` without the parts of lowest score of each layer; of equal ones the first go.

    Returns the files left out and, by layer, the numbers of the parts that are gone.
    """
    import torch

    cut = plan.cut
    assert cut is not None, "layers are dropped otherwise"
    gone = {
        layer: sorted(score.sort(stable=True).indices[: plan.parts - plan.stay].tolist())
        for layer, score in scores.items()
    }

    def place(slot: Slot) -> tuple[int, int] | None:
        found = LAYER.search(slot.name)
        dimension = cut.tensors.get(slot.name[found.end() :]) if found else None
        return None if found is None or dimension is None else (int(found[1]), dimension)

    def narrowed(slot: Slot) -> Iterable[Slot]:
        if (where := place(slot)) is None:
            return [slot]
        shape = list(slot.shape)
        shape[where[1]] = shape[where[1]] // plan.parts * plan.stay
        return [replace(slot, shape=tuple(shape))]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = source.tensor(slot.name)
        if (where := place(slot)) is None:
            yield tensor
            return
        layer, dimension = where
        lost, width = {*gone[layer]}, slot.shape[dimension] // plan.parts
        stays = [part * width + offset for part in range(plan.parts) if part not in lost for offset in range(width)]
        yield tensor.index_select(dimension, torch.tensor(stays))

    left_out = copy_rest(source.path, output)
    rewrite(source, output, narrowed, make, report)
    change_config(source.path, output, **changes(plan, source.config))
    return left_out, gone
