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

    The architecture that config.json names is loaded, from a checkout that is removed again.
    """
    import transformers

    with registry.scratch(f"load-{registry.log.new_id()}") as folder:
        if version.adapter:
            from peft import PeftModel

            digest = version.base
            assert digest is not None, "an adapter version knows its base"
            base = load(registry, registry.log.ask(lambda reader: queries.version(reader, digest)), **options)
            check_out(registry.manifest(version), registry.store, folder / "adapter", durable=False)
            fitted = PeftModel.from_pretrained(base, str(folder / "adapter"))
            fitted.eval()
            return fitted
        architecture = getattr(transformers, version.architecture, None)
        if architecture is None:
            raise Refused(
                f"transformers has no {version.architecture}", fix="check it out and load it with its own code"
            )
        check_out(registry.manifest(version), registry.store, folder / "model", durable=False)
        model: PreTrainedModel = architecture.from_pretrained(folder / "model", **options)
        model.train(False)
        return model
