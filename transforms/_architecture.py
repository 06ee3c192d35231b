"""What a model is made of, read from its config alone: a model on the meta device has every module and no memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.transforms._folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""How every model is loaded: without running code that came with it, which unpickling would be too."""

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def model_class(config: Mapping[str, Any], task: str | None = None) -> Any:
    """The class of transformers for a PEFT task type; without one, the class that the config names."""
    import transformers

    name = AUTO_CLASSES.get(task or "") or (config.get("architectures") or ["AutoModel"])[0]
    return getattr(transformers, name, transformers.AutoModel)


def skeleton(source: ModelFolder) -> PreTrainedModel:
    """The model of the folder's config, on the meta device. No code of the folder is ever run."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    built = model_class(source.config)
    with torch.device("meta"):
        # Auto classes build from a config by a public method, the classes they choose among by this one.
        build = built.from_config if built.__name__.startswith("Auto") else built._from_config
        model: PreTrainedModel = build(config)
    return model


@dataclass(frozen=True)
class Linears:
    """The linear layers of a model by module name, in the order of the model: those to work on and the others.

    The weights of those in `transposed` are (inputs, outputs).
    """

    chosen: tuple[str, ...]
    ignored: tuple[str, ...]
    transposed: frozenset[str] = frozenset()

    @property
    def weights(self) -> frozenset[str]:
        """The names of the tensors to work on."""
        return frozenset(f"{name}.weight" for name in self.chosen)


def linear_layers(source: ModelFolder, ignore: Iterable[str], *, conv1d: bool = False) -> Linears:
    """The `nn.Linear` modules whose weights the folder holds, and with `conv1d` the `Conv1D` ones of GPT-2 too.

    `ignore` takes module names, or `re:` and a regular expression, as `ignore` of compressed-tensors does. An output
    layer that is tied to the embedding is always ignored.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    model: Any = skeleton(source)
    kinds = (torch.nn.Linear, Conv1D) if conv1d else torch.nn.Linear
    tied = model.get_output_embeddings() if getattr(model.config, "tie_word_embeddings", False) else None
    held = source.slots
    linear = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    chosen = tuple(
        name
        for name, module in linear.items()
        if module is not tied and f"{name}.weight" in held and not any(is_match(name, pattern) for pattern in ignore)
    )
    if not chosen:
        raise Refused(
            f"none of the {len(linear)} linear layers of this {type(model).__name__} is left to work on",
            fix="ignore fewer layers, or use a model whose layers are stored one by one",
        )
    transposed = frozenset(name for name in chosen if isinstance(linear[name], Conv1D))
    return Linears(chosen, tuple(name for name in linear if name not in chosen), transposed)


def is_match(name: str, pattern: str) -> bool:
    """Whether a module name is `pattern`, or matches it from its start where it is `re:` and a regular expression."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return name == pattern
