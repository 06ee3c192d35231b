"""Rows of tokens from a place in each of them on: what comes before cannot change, so it is computed once.

A causal model sees no token before it has come. Where something is tried again and again at one place of a text, keys
and values of all before it stay, and only the few tokens that follow are computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.transforms._answers import Speaker, padded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tails:
    """Rows from their own place in `starts` on.

    `batch` has what the model is given: the tokens [rows, longest tail], their positions, and the mask over all before
    and of them. `before` has of each layer the keys and the values [rows, heads, longest before, width], zero on the
    left of what is shorter.
    """

    speaker: Speaker
    starts: tuple[int, ...]
    batch: dict[str, torch.Tensor]
    before: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def logits_at(self, at: Sequence[tuple[int, int]]) -> torch.Tensor:
        """What the model gives at each `(row, place)`, [len(at), vocabulary]; no place is before the row's start."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.before):
            cache.update(keys, values, layer)  # Putting more to it later makes new tensors.
        places = [place - self.starts[row] for row, place in at]
        kept = sorted(set(places))
        told = self.speaker.model(
            **self.batch,
            past_key_values=cache if self.before else None,
            use_cache=bool(self.before),
            logits_to_keep=torch.tensor(kept, device=self.speaker.device),
        )
        found: torch.Tensor = told.logits[[row for row, _ in at], [kept.index(place) for place in places]]
        return found


def tails(speaker: Speaker, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Tails:
    """The tails of rows of tokens; in each, `start` is the place of the first token that is to be computed anew."""
    import torch

    batch = padded(speaker, [row[start:] for row, start in zip(rows, starts, strict=True)])
    longest, width = max(starts), batch["input_ids"].shape[1]
    lengths = torch.tensor(starts, device=speaker.device)[:, None]
    is_there = torch.arange(longest, device=speaker.device)[None] >= longest - lengths
    batch["attention_mask"] = torch.cat([is_there.long(), batch["attention_mask"]], 1)
    batch["position_ids"] = lengths + torch.arange(width, device=speaker.device)[None]
    found = [_before(speaker, row[:start]) for row, start in zip(rows, starts, strict=True)]
    layers = max(map(len, found))
    stacked = []
    for layer in range(layers):
        like = next(each[layer][0] for each in found if each)
        both = torch.zeros(2, len(rows), like.shape[1], longest, like.shape[-1], device=like.device, dtype=like.dtype)
        for row, (each, start) in enumerate(zip(found, starts, strict=True)):
            if start:
                both[0, row, :, longest - start :], both[1, row, :, longest - start :] = (
                    each[layer][0][0],
                    each[layer][1][0],
                )
        stacked.append((both[0], both[1]))
    return Tails(speaker, tuple(starts), batch, tuple(stacked))


def _before(speaker: Speaker, ids: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer the keys and the values [1, heads, tokens, width] of these tokens; nothing for none."""
    import torch
    from transformers import DynamicCache

    if not ids:
        return []
    cache = DynamicCache()
    with torch.no_grad():
        speaker.model(
            torch.tensor([list(ids)], device=speaker.device), past_key_values=cache, use_cache=True, logits_to_keep=1
        )
    layers: Any = cache.layers
    return [(layer.keys, layer.values) for layer in layers]
