"""More tokens for a model: a longer embedding, and a tokenizer that spells with them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Report
from mreg.transforms._architecture import skeleton
from mreg.transforms._folder import ModelFolder, Slot, change_config, copy_rest, rewrite

if TYPE_CHECKING:
    import torch


def add_tokens(source: Path, tokens: Sequence[str], output: Path, report: Report) -> list[str]:
    """Write the model of `source` into `output` with more tokens; return those that it did not have.

    The vector of a new token, and its row of the output layer, is the mean of those of the tokens that spelled it
    before (Gee et al. 2022). Raises Refused where the embedding cannot be told.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    known = tokenizer.get_vocab()
    added = [token for token in dict.fromkeys(tokens) if token not in known]
    spelled = [tokenizer(token, add_special_tokens=False).input_ids for token in added]
    tokenizer.add_tokens(added)
    numbers = tokenizer.convert_tokens_to_ids(added)
    with ModelFolder(source) as model:
        names = _tables(model)
        # Some models have more rows than tokens; the others get longer.
        before = model.slots[names[0]].shape[0]
        size = max(before, len(tokenizer))

        def plan(slot: Slot) -> list[Slot]:
            return [Slot(slot.name, slot.dtype, (size, *slot.shape[1:])) if slot.name in names else slot]

        def make(slot: Slot) -> Iterator[torch.Tensor]:
            table = model.tensor(slot.name)
            yield _longer(table, size, numbers, spelled) if slot.name in names else table

        copy_rest(source, output)
        rewrite(model, output, plan, make, report)
    change_config(source, output, vocab_size=size)
    _save_tokenizer(tokenizer, output)
    return added


def _tables(model: ModelFolder) -> list[str]:
    """The names of the tensors that have a row for each token, of the embedding and, where it has its own, the head."""
    built: Any = skeleton(model)
    modules = [built.get_input_embeddings(), built.get_output_embeddings()]
    named = [f"{name}.weight" for name, module in built.named_modules() if any(module is each for each in modules)]
    named += [f"{name.removesuffix('.weight')}.bias" for name in named]
    found = [name for name in named if name in model.slots]
    if not found or "vocab_size" not in model.config:
        raise Refused("the embedding of this model is not where it is looked for", fix="leave --add-tokens out")
    return found


def _longer(table: torch.Tensor, size: int, numbers: Sequence[int], spelled: Sequence[Sequence[int]]) -> torch.Tensor:
    import torch

    longer = torch.zeros(size, *table.shape[1:], dtype=table.dtype)
    longer[: len(table)] = table
    for number, parts in zip(numbers, spelled, strict=True):
        longer[number] = table[torch.tensor(parts)].float().mean(0).to(table.dtype)
    return longer


def _save_tokenizer(tokenizer: Any, output: Path) -> None:
    """Overwrite the tokenizer's files that `output` has with what it is now, and no machine's path in them."""
    tokenizer.name_or_path = ""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in Path(folder).iterdir():
            if path.suffix != ".jinja":
                (output / path.name).write_bytes(path.read_bytes())
