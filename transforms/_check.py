"""What is refused before any work starts, in words common to the transforms."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import MregError, Refused
from mreg.registry.transform import Material
from mreg.transforms._folder import FLOATS
from mreg.transforms._layers import LAYER, count_layers

if TYPE_CHECKING:
    from mreg.transforms._tuning import TuningParams

HEADS = ("lm_head", "embed_out")
"""What the families of models call the layer that predicts the next token."""


class MissingExtra(MregError):
    """A package that a method needs is not installed."""

    exit_code = 12


def needs(package: str, extra: str, what: str) -> None:
    """Refuse `what` where a package is not installed, naming the extra that brings it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(f"{what} needs {package}, which is not installed", fix=f"pip install 'mreg[{extra}]'")


def is_quantized(material: Material) -> bool:
    """Whether its config says that its weights are quantized."""
    return "quantization_config" in material.config


def complete_model(material: Material, verb: str) -> None:
    """Refuse an adapter, a quantized model and a folder that lacks weights or config, where it is to be VERBed."""
    if material.adapter:
        raise Refused(
            f"{material.name} is an adapter and cannot be {verb} by itself", fix="fuse it into its base first"
        )
    if not material.config:
        raise Refused(f"{material.name} has no config.json", fix="add the config.json of the model and import it again")
    if not any(dtype in FLOATS for dtype, _ in material.tensors.values()):
        raise Refused(f"{material.name} has no floating-point weights", fix="give a model with safetensors weights")
    if is_quantized(material):
        method = material.config["quantization_config"].get("quant_method", "unknown")
        raise Refused(
            f"{material.name} is quantized already ({method})", fix=f"start from the version it was {verb} from"
        )


def tunable(source: Material, params: TuningParams) -> None:
    """Refuse what is no complete model, and layers to train that it does not have."""
    complete_model(source, "trained")
    if params.layers:
        layers = count_layers(source.name, source.config, source.tensors)
        missing = [layer for layer in params.layers if not 0 <= layer < layers]
        if missing:
            raise Refused(f"{source.name} has no layer {missing[0]}", fix=f"its layers are 0 to {layers - 1}")
    if params.trained == "full":
        return
    matrices = _matrices(source)
    if params.target_modules == ("all-linear",):
        if params.layers and params.trained != "adapter":
            # PEFT takes `layers_to_transform` with names only.
            raise Refused(
                "layers can be chosen for an adapter only where target_modules names what is changed in them",
                fix=f"name some with --target-modules, of {', '.join(matrices)}",
            )
        return
    for target in params.target_modules:
        if target.rpartition(".")[2] in HEADS:
            raise Refused(
                f"an adapter of {target} cannot be trained: TRL computes the loss without going through it",
                fix="leave it out of --target-modules",
            )
        # Experts have other names in the model than in its files.
        known = any(f".{name}".endswith(f".{target}.weight") for name in source.tensors)
        if not known and not any("expert" in name for name in source.tensors):
            raise Refused(
                f"{source.name} has no layer whose name ends in {target}", fix=f"it has {', '.join(matrices)}"
            )


def _matrices(source: Material) -> Sequence[str]:
    """What the matrices of the numbered layers are called, by the ends of their names."""
    found = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, (_, shape) in source.tensors.items()
        if LAYER.search(name) and len(shape) == 2 and name.endswith(".weight")
    }
    return sorted(found)


def causal_model(material: Material) -> None:
    """Refuse a model that does not predict the next token."""
    names = material.config.get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        told = ", ".join(names) or "no known kind of model"
        raise Refused(f"{material.name} is {told}, which does not predict text", fix="give a causal language model")


def same_tensors(first: Material, other: Material, fix: str) -> None:
    """Refuse two models whose tensors differ in name or shape, naming the first."""
    for name in sorted({*first.tensors, *other.tensors}):
        here, there = first.tensors.get(name), other.tensors.get(name)
        if here is None or there is None or here[1] != there[1]:
            raise Refused(f"{name} is {_shape(here)} in {first.name} and {_shape(there)} in {other.name}", fix=fix)


def same_vocabulary(first: Material, other: Material, fix: str) -> None:
    """Refuse two models in which a token has another number, naming the first; unknown where a vocabulary is not told.

    A row of an embedding and a number of an output mean a token, so models of other tokens cannot be compared.
    """
    here, there = _vocabulary(first), _vocabulary(other)
    if here is None or there is None:
        return
    for token in sorted({*here, *there}):
        if here.get(token) != there.get(token):
            numbers = [held.get(token, "missing") for held in (here, there)]
            raise Refused(f"token {token!r} is {numbers[0]} in {first.name} and {numbers[1]} in {other.name}", fix=fix)


def _shape(held: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if held is None else "x".join(map(str, held[1])) or "a number"


def _vocabulary(material: Material) -> dict[str, int] | None:
    if "tokenizer.json" not in material.files:
        return None
    parsed: dict[str, Any] = json.loads(material.read("tokenizer.json"))
    vocabulary = parsed["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, in the order of their ids.
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{added["content"]: added["id"] for added in parsed.get("added_tokens", [])}}
