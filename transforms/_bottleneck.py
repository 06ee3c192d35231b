"""Bottleneck adapters (Houlsby et al. 2019): two small layers after each block, added to what comes out of it.

PEFT has no such kind. The folder is that of a PEFT adapter, with a kind of its own; `load_bottlenecks` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mreg.registry.errors import Refused

KIND = "BOTTLENECK"
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def add_bottlenecks(model: Any, *, width: int, target_modules: Sequence[str], layers: Sequence[int] = ()) -> None:
    """Add `up(gelu(down(x)))` to the output of the layers whose names end so, and freeze everything else.

    `up` begins at zero, so the model computes what it did. Raises Refused where no layer is called so.
    """
    from torch import nn

    # The first number in a name is that of the layer: `model.layers.3.self_attn.o_proj`.
    numbers = {str(layer) for layer in layers}
    chosen = {
        name: module
        for name, module in model.named_modules()
        if any(f".{name}".endswith(f".{target}") for target in target_modules)
        and (not numbers or next((part for part in name.split(".") if part.isdigit()), None) in numbers)
        and getattr(module, "weight", None) is not None
    }
    if not chosen:
        raise Refused(
            "no layer of the model gets an adapter", fix="name some with --target-modules, by the end of their names"
        )
    model.requires_grad_(False)
    for module in chosen.values():
        # What transformers calls Conv1D holds its weight the other way round.
        size = module.weight.shape[0] if isinstance(module, nn.Linear) else module.weight.shape[1]
        up = nn.Linear(width, size)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        small = nn.Sequential(nn.Linear(size, width), nn.GELU(), up)
        module.bottleneck = small.to(device=module.weight.device, dtype=module.weight.dtype)
        module.register_forward_hook(_add)
    model.bottleneck_config = {
        "peft_type": KIND,
        "base_model_name_or_path": None,
        "r": width,
        "target_modules": sorted(target_modules),
        "layers_to_transform": sorted(layers) or None,
    }


def save_bottlenecks(model: Any, output: Path) -> None:
    """Save what is trained of a model that has been given bottlenecks, a new head included."""
    from safetensors.torch import save_file

    trained = {name: each.detach().contiguous() for name, each in model.named_parameters() if each.requires_grad}
    save_file(trained, output / WEIGHTS, metadata={"format": "pt"})
    (output / CONFIG).write_text(json.dumps(model.bottleneck_config, indent=2) + "\n", encoding="utf-8")


def load_bottlenecks(model: Any, folder: Path) -> Any:
    """The model, which must be the base that it was trained on, with the adapter of `folder` on it."""
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    layers = config["layers_to_transform"] or ()
    add_bottlenecks(model, width=config["r"], target_modules=config["target_modules"], layers=layers)
    found = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    if found.unexpected_keys or any(".bottleneck." in name for name in found.missing_keys):
        raise Refused("the adapter does not fit this model", fix="load it on the base that it was trained on")
    return model.eval()


def _add(module: Any, inputs: Any, output: Any) -> Any:
    del inputs
    return output + module.bottleneck(output)
