"""The last layer of a model, into which a change of its logits can be folded, found by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.transforms._folder import FLOATS, ModelFolder, Slot, copy_rest, rewrite
from mreg.transforms._layers import LAYER

if TYPE_CHECKING:
    import torch
    from mreg.registry.transform import Report
    from mreg.transforms._confidence import Affine

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Of every tensor its dtype and shape, by name."""

AFFINE = ("temperature", "vector", "matrix", "platt")
"""The ways of calibrating that a last layer can take in."""

FILE = "calibration.json"
"""What holds the others, beside the weights."""

CLASSIFIERS = ("classifier.out_proj", "classification_head.out_proj", "classifier", "score", "logits_proj")
HEADS = ("lm_head", "embed_out", "cls.predictions.decoder")
NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")

ZERO_CENTRED = ("gemma", "recurrent_gemma", "qwen3_next")
"""Beginnings of model types whose norms multiply by 1 + weight."""


@dataclass(frozen=True)
class LastLayer:
    """A module by name. `offset` is what it adds to its weight before it multiplies by it."""

    name: str
    bias: bool
    offset: float = 0.0

    @property
    def weight(self) -> str:
        """The name of its weight."""
        return f"{self.name}.weight"


def label_names(config: Mapping[str, Any]) -> list[str]:
    """The labels of a classifier in the order of their numbers; two without names unless its config says otherwise."""
    known = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    count = len(known) or int(config.get("num_labels", 2))
    return [known.get(number, f"LABEL_{number}") for number in range(count)]


def number_of(label: Any, names: Sequence[str]) -> int | None:
    """The number of a label that is a name, or already that number; None for one that is unknown."""
    if str(label) in names:
        return names.index(str(label))
    return label if isinstance(label, int) and 0 <= label < len(names) else None


def classifier_of(name: str, tensors: Tensors, labels: int) -> LastLayer:
    """The layer that gives the logits of a classifier with so many labels. Raises Refused."""
    for module in CLASSIFIERS:
        dtype, shape = tensors.get(f"{module}.weight", ("", ()))
        if dtype in FLOATS and len(shape) == 2 and shape[0] == labels:
            return LastLayer(module, f"{module}.bias" in tensors)
    raise Refused(
        f"{name} has no last layer for {labels} labels that is known by name",
        fix=f"give a classifier that ends in {', '.join(CLASSIFIERS)}, or use isotonic or histogram",
    )


def output_of(name: str, config: Mapping[str, Any], tensors: Tensors) -> LastLayer:
    """Where the logits of a language model can be divided by a number: its head, or the norm before a tied one.

    A head that is tied to the embedding cannot be scaled without scaling that too, and untying it would store it a
    second time. The norm before it has no other reader, so to scale its weight and bias comes to the same.
    Raises Refused.
    """
    if config.get("final_logit_softcapping") or "text_config" in config:
        raise Refused(f"{name} does more to its logits than a last layer", fix="give a plain causal language model")
    if not config.get("tie_word_embeddings"):
        for module in HEADS:
            if f"{module}.weight" in tensors:
                return LastLayer(module, f"{module}.bias" in tensors)
    norms = [
        tensor.removesuffix(".weight")
        for tensor, (_, shape) in tensors.items()
        if tensor.endswith(".weight") and len(shape) == 1 and LAYER.search(tensor) is None
    ]
    final = [module for module in norms if module.rpartition(".")[2] in NORMS]
    if len(final) != 1:
        raise Refused(f"{name} has no final norm that is known by name", fix=f"one called {', '.join(NORMS)} is taken")
    offset = 1.0 if str(config.get("model_type")).startswith(ZERO_CENTRED) else 0.0
    return LastLayer(final[0], f"{final[0]}.bias" in tensors, offset)


def fold(source: Path, output: Path, layer: LastLayer, change: Affine | float, report: Report) -> list[str]:
    """Write `source` with an affine map in its last layer, or with that layer multiplied by a number.

    It is computed in float64 and rounded once to the dtype of the layer. Returns the files left out.
    """
    import numpy as np
    import torch

    def changed(tensor: torch.Tensor, name: str) -> torch.Tensor:
        given = tensor.to(torch.float64)
        if isinstance(change, float):
            shift = layer.offset if name == layer.weight else 0.0
            return ((given + shift) * change - shift).to(tensor.dtype)
        mapped = torch.from_numpy(np.ascontiguousarray(change.matrix)) @ given
        return (mapped if name == layer.weight else mapped + torch.from_numpy(change.bias)).to(tensor.dtype)

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = folder.tensor(slot.name)
        yield changed(tensor, slot.name) if slot.name in (layer.weight, f"{layer.name}.bias") else tensor

    with ModelFolder(source) as folder:
        left_out = copy_rest(source, output)
        rewrite(folder, output, lambda slot: [slot], make, report)
    return left_out
