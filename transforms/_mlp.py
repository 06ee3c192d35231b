"""Where a transformer keeps what it knows: the matrix with which each MLP writes into the residual stream.

It is read as a memory in which each key, the MLP's inner activations, has its value (Geva et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Material

if TYPE_CHECKING:
    import torch
    from mreg.transforms._answers import Speaker

FAMILIES = {
    "llama": ("model.layers.{}", "mlp.down_proj"),
    "mistral": ("model.layers.{}", "mlp.down_proj"),
    "qwen2": ("model.layers.{}", "mlp.down_proj"),
    "qwen3": ("model.layers.{}", "mlp.down_proj"),
    "gpt2": ("transformer.h.{}", "mlp.c_proj"),
}
"""By model type: the module of a layer, and in it the last linear layer of the MLP."""

TRANSPOSED = {"gpt2"}
"""Those whose matrices are stored as [in, out]."""


@dataclass(frozen=True)
class Memory:
    """The MLP matrix of one layer: its module, the layer's module, and its tensor in the files."""

    layer: int
    block: str
    module: str
    tensor: str
    transposed: bool

    def weight(self, model: Any) -> torch.Tensor:
        """The matrix as [out, in], a view of the model's own."""
        found: torch.Tensor = model.get_submodule(self.module).weight.data
        return found.T if self.transposed else found

    def stored(self, change: torch.Tensor) -> torch.Tensor:
        """A change of the matrix [out, in] as the files have it."""
        return change.T if self.transposed else change


def memory(config: Mapping[str, Any], tensors: Container[str], layer: int) -> Memory:
    """The matrix of a layer; files saved without the head leave the first part of the name out. Raises Refused."""
    block, module = FAMILIES[config["model_type"]]
    name = f"{block.format(layer)}.{module}"
    spelled = (f"{name}.weight", f"{name.partition('.')[2]}.weight")
    tensor = next((tensor for tensor in spelled if tensor in tensors), None)
    if tensor is None:
        raise Refused(f"no tensor is called {spelled[0]}", fix="give a model whose layers are stored one by one")
    return Memory(layer, block.format(layer), name, tensor, config["model_type"] in TRANSPOSED)


def layers_of(config: Mapping[str, Any]) -> int:
    """How many layers a model of a known family has."""
    count = config.get("num_hidden_layers", config.get("n_layer"))
    assert isinstance(count, int)
    return count


def check_memories(material: Material, layers: Sequence[int]) -> None:
    """Refuse a model of another family, and layers that it has not."""
    kind = material.config.get("model_type")
    if kind not in FAMILIES:
        raise Refused(
            f"{material.name} is of the type {kind}, in which `edit` does not know the MLPs' matrices",
            fix=f"it knows those of {', '.join(FAMILIES)}",
        )
    count = layers_of(material.config)
    for layer in layers:
        if not 0 <= layer < count:
            raise BadParams(f"{material.name} has no layer {layer}", fix=f"its layers are 0 to {count - 1}")
    for layer in layers or range(count):
        memory(material.config, material.tensors, layer)


class _Enough(Exception):
    """What was looked for is found; the rest of the model need not be computed."""


def keys(speaker: Speaker, memories: Sequence[Memory], batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What goes into each matrix, [rows, length, in], in the order of the layers."""
    return _caught(speaker, [each.module for each in memories], batch, lambda given, _: given)


def values(speaker: Speaker, module: str, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What comes out of a module, [rows, length, out]."""
    (found,) = _caught(speaker, [module], batch, lambda _, made: made)
    return found


def _caught(
    speaker: Speaker, modules: Sequence[str], batch: Mapping[str, torch.Tensor], choose: Callable[[Any, Any], Any]
) -> list[torch.Tensor]:
    import torch

    found: list[torch.Tensor] = []

    def catch(module: Any, given: Any, made: Any) -> None:
        del module
        found.append(choose(given[0], _first(made)).detach().clone())
        if len(found) == len(modules):
            raise _Enough

    with ExitStack() as stack, torch.no_grad():
        for name in modules:
            stack.enter_context(speaker.model.get_submodule(name).register_forward_hook(catch))
        with suppress(_Enough):
            speaker.model(**batch)
    return found


@contextmanager
def shifted(speaker: Speaker, module: str, places: Sequence[int], by: Callable[[], torch.Tensor]) -> Iterator[None]:
    """While it lasts, `by()` [out] is added to what comes out of a module, at one place of each row."""
    import torch

    def shift(module: Any, given: Any, made: Any) -> Any:
        del module, given
        first = _first(made).clone()
        first[torch.arange(len(places)), torch.tensor(places)] += by()
        return (first, *made[1:]) if isinstance(made, tuple) else first

    with speaker.model.get_submodule(module).register_forward_hook(shift):
        yield


def _first(made: Any) -> Any:
    """A layer's hidden states, also where it gives more besides."""
    return made[0] if isinstance(made, tuple) else made
