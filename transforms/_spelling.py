"""Rows as the tokens that a language model is judged by, and what it predicts for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.transforms._rows import CHAT, COMPLETED

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Spelled:
    """Tokens of a row, of which those from `start` on are judged; `row` counts from 1."""

    row: int
    ids: list[int]
    start: int


def spell(tokenizer: Any, row: int, given: dict[str, Any], columns: tuple[str, ...], most: int) -> Iterator[Spelled]:
    """A row as tokens: a text is judged from its second token on, else what the assistant says, a turn at a time."""
    if columns == CHAT or (columns == COMPLETED and isinstance(given["prompt"], list)):
        turns = given["messages"] if columns == CHAT else [*given["prompt"], *given["completion"]]
        first = 0 if columns == CHAT else len(given["prompt"])
        for place, turn in enumerate(turns):
            if turn["role"] == "assistant" and place >= first:
                before = tokenizer.apply_chat_template(turns[:place], tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template(turns[: place + 1], tokenize=False)
                yield _after(tokenizer, row, before, whole, most, special=False)
    elif columns == COMPLETED:
        yield _after(tokenizer, row, given["prompt"], given["prompt"] + given["completion"], most, special=True)
    else:
        yield Spelled(row, tokenizer(given["text"])["input_ids"][:most], 1)


def _after(tokenizer: Any, row: int, before: str, whole: str, most: int, *, special: bool) -> Spelled:
    """The tokens of `whole`, judged from where they leave those of `before`."""
    first = tokenizer(before, add_special_tokens=special)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=special)["input_ids"]
    start = next((k for k, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), min(len(first), len(ids)))
    return Spelled(row, ids[:most], max(1, start))


def logits_of(model: Any, batch: Sequence[Spelled]) -> list[torch.Tensor]:
    """For each row, the logits [judged, vocabulary] from which its judged tokens are predicted."""
    import torch

    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, one in enumerate(batch):
        ids[place, : len(one.ids)] = torch.tensor(one.ids)
        mask[place, : len(one.ids)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    # Learnt prompts stand before the tokens.
    logits = logits[:, -longest:]
    return [logits[place, one.start - 1 : len(one.ids) - 1] for place, one in enumerate(batch)]


def most_tokens(model: Any) -> int:
    """How many tokens a model takes at most."""
    config = model.config.get_text_config()
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 30
    return int(most)
