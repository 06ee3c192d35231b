"""Loading a version as a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mreg.registry import queries
from mreg.registry.checkout import check_out
from mreg.registry.errors import Refused
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from peft import PeftModel
    from transformers import PreTrainedModel


def load(registry: Registry, version: Version, **options: Any) -> PreTrainedModel | PeftModel:
    """The model of a version, in evaluation mode; an adapter comes on its base. `options` go to `from_pretrained`.

    The architecture that config.json names is loaded, from a checkout that is removed again; of a model that is GGUF
    only, that file. How an adapter is put on its base depends on its kind, which the engine knows.
    """
    import transformers

    with registry.scratch(f"load-{registry.log.new_id()}") as folder:
        if version.adapter:
            digest = version.base
            assert digest is not None, "an adapter version knows its base"
            base = registry.log.ask(lambda reader: queries.version(reader, digest))
            for each, place in ((base, "base"), (version, "adapter")):
                check_out(registry.manifest(each), registry.store, folder / place, durable=False)
            return registry.engine.load(folder / "base", folder / "adapter", **options)
        architecture = getattr(transformers, version.architecture, None)
        if architecture is None:
            raise Refused(
                f"transformers has no {version.architecture}", fix="check it out and load it with its own code"
            )
        manifest = registry.manifest(version)
        check_out(manifest, registry.store, folder / "model", durable=False)
        if not any(manifest.tensors()):
            options = {"gguf_file": next(one.path for one in manifest.files if one.path.endswith(".gguf")), **options}
        model: PreTrainedModel = architecture.from_pretrained(folder / "model", **options)
        model.train(False)
        return model
