"""Loading a version as a transformers model, straight from the store: its weights are never written to a file.

GGUF, torchao and weights under unusual names are the exceptions (`stored_weights.weights`): those need a checkout,
which is removed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.log import queries
from mreg.registry.models import stored_weights
from mreg.registry.models.checkout import check_out
from mreg.registry.models.manifest import Manifest
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from peft import PeftModel
    from transformers import PreTrainedModel

_OF_FILES = {"gguf_file", "state_dict", "subfolder", "variant"}
"""Options that say which files to read."""


def load(registry: Registry, version: Version, **options: Any) -> PreTrainedModel | PeftModel:
    """The model of a version, in evaluation mode; an adapter comes on its base. `options` go to `from_pretrained`.

    The architecture that config.json names is loaded; of a model that is GGUF only, that file. How an adapter is put on
    its base depends on its kind, which the engine knows.
    """
    import transformers

    with registry.scratch(f"load-{registry.log.new_id()}") as folder:
        if version.adapter:
            digest = version.base
            assert digest is not None, "an adapter version knows its base"
            base = registry.log.ask(lambda reader: queries.version(reader, digest))
            check_out(registry.manifest(version), registry.store, folder / "adapter")
            options = _lay_out(registry, base, folder / "base", options)
            return registry.engine.load(folder / "base", folder / "adapter", **options)
        architecture = getattr(transformers, version.architecture, None)
        if architecture is None:
            raise Refused(
                f"transformers has no {version.architecture}", fix="check it out and load it with its own code"
            )
        options = _lay_out(registry, version, folder / "model", options)
        model: PreTrainedModel = from_folder(architecture, folder / "model", **options)
        model.train(False)
        return model


def _lay_out(registry: Registry, version: Version, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write what `from_folder` needs of a model into `folder`, and return the options that go with it."""
    manifest = registry.manifest(version)
    weights = None
    if _OF_FILES.isdisjoint(options) and options.get("use_safetensors", True) and not _is_spread():
        weights = stored_weights.weights(manifest, registry.store)
    if weights is not None:
        manifest = Manifest(tuple(file for file in manifest.files if _is_config(file.path)))
        options = {**options, "state_dict": weights}
    else:
        gguf = next((file.path for file in manifest.files if file.path.endswith(".gguf")), None)
        if gguf is not None and not any(manifest.tensors()):
            options = {"gguf_file": gguf, **options}
    check_out(manifest, registry.store, folder)
    return options


def _is_spread() -> bool:
    """Whether DeepSpeed spreads tensors over processes, before any of them is read."""
    from transformers.integrations import deepspeed

    library: Any = deepspeed
    return bool(library.is_deepspeed_zero3_enabled())


def _is_config(path: str) -> bool:
    return "/" not in path and path.endswith(".json") and path != stored_weights.INDEX


def from_folder(architecture: Any, folder: Path, **options: Any) -> Any:
    """`architecture.from_pretrained(folder, **options)`, except that a `state_dict` holds the weights, if there is one.

    transformers takes one in the place of a folder only, so what else it would find there is told it piece by piece.
    """
    if "state_dict" not in options:
        return architecture.from_pretrained(folder, **options)
    if architecture.__name__.startswith("Auto"):
        architecture, config = _chosen(architecture, folder, options.get("config"))
    else:
        config = folder
    model = architecture.from_pretrained(None, **{"config": config, **options})
    if model.can_generate() and "generation_config" not in options:
        model.generation_config = _generation_config(folder, options)
    # It came from no place that will last; without this its name would be "None".
    model.config.name_or_path = model.name_or_path = ""
    return model


def _chosen(auto: Any, folder: Path, config: Any) -> tuple[Any, Any]:
    """The class that an auto class chooses for a folder, and the config to give it: the folder where that will do."""
    import torch
    from transformers import AutoConfig

    found = config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        skeleton = auto.from_config(found)
    is_part = not isinstance(found, skeleton.config_class)
    return type(skeleton), skeleton.config if is_part else folder


def _generation_config(folder: Path, options: dict[str, Any]) -> Any:
    """What `from_pretrained` would find in the folder: defaults of a model's config are defaults of its generation."""
    from transformers import GenerationConfig

    library: Any = GenerationConfig
    given = {name: value for name, value in options.items() if hasattr(library(), name)}
    if (folder / "generation_config.json").exists():
        return library.from_pretrained(folder, **given)
    return library.from_pretrained(folder, config_file_name="config.json", _from_model_config=True, **given)
