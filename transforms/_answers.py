"""What a causal language model answers: how likely a given answer to a prompt is, and what it says by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.transforms._architecture import SAFE

if TYPE_CHECKING:
    from pathlib import Path

    import torch

BATCH = 16


@dataclass(frozen=True)
class Speaker:
    """A model that computes in float32, and its tokenizer."""

    model: Any
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device


@dataclass(frozen=True)
class Spelled:
    """The token ids of a prompt and its answer; the answer begins at `start`. `offsets` are places in `text`."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    start: int

    def last_token(self, end: int) -> int:
        """The place of the token in which the text before the character `end` ends."""
        return max(place for place, (begin, to) in enumerate(self.offsets) if begin < end and to > begin)


@dataclass(frozen=True)
class Likelihood:
    """The mean log-probability of an answer's tokens, and whether the model, always taking the likeliest, says it."""

    mean: float
    is_said: bool


def load(folder: Path, device: str) -> Speaker:
    """The model of a folder in float32, whatever it is stored in, its weights frozen. Raises Refused."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise Refused(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in a text",
            fix="add a tokenizer.json, as tokenizers that are called fast have it",
        )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **SAFE)
    return Speaker(model.to(device).eval().requires_grad_(False), tokenizer)


def spell(tokenizer: Any, prompt: str, answer: str = "") -> Spelled:
    """A prompt and its answer as tokens, with a space between them unless one of the two brings it."""
    joint = " " if answer and not prompt[-1:].isspace() and not answer[:1].isspace() else ""
    text = f"{prompt}{joint}{answer}" if answer else prompt.rstrip()
    told = tokenizer(text, return_offsets_mapping=True)
    offsets = tuple((begin, end) for begin, end in told["offset_mapping"])
    edge = len(prompt.rstrip())
    start = next((place for place, (_, end) in enumerate(offsets) if end > edge), len(offsets))
    return Spelled(text, tuple(told["input_ids"]), offsets, start)


def padded(speaker: Speaker, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, both [rows, longest], padded on the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids.to(speaker.device), "attention_mask": mask.to(speaker.device)}


def logits_at(speaker: Speaker, batch: dict[str, torch.Tensor], at: Sequence[tuple[int, int]]) -> torch.Tensor:
    """What a model gives at each `(row, place)`, [len(at), vocabulary]; at other places the head is not computed."""
    import torch

    kept = sorted({place for _, place in at})
    logits = speaker.model(**batch, logits_to_keep=torch.tensor(kept, device=speaker.device)).logits
    found: torch.Tensor = logits[[row for row, _ in at], [kept.index(place) for _, place in at]]
    return found


def likelihoods(speaker: Speaker, asked: Sequence[tuple[str, str]]) -> list[Likelihood]:
    """For each `(prompt, answer)`: how likely the answer is."""
    return [found for some in _batches(asked) for found in _likelihoods(speaker, some)]


def _likelihoods(speaker: Speaker, asked: Sequence[tuple[str, str]]) -> Iterator[Likelihood]:
    import torch

    spelled = [spell(speaker.tokenizer, prompt, answer) for prompt, answer in asked]
    at = [(row, place - 1) for row, each in enumerate(spelled) for place in range(each.start, len(each.ids))]
    with torch.no_grad():
        found = logits_at(speaker, padded(speaker, [each.ids for each in spelled]), at)
    for row, each in enumerate(spelled):
        ids = torch.tensor(each.ids[each.start :], device=found.device)
        scores = found[[place for place, (of, _) in enumerate(at) if of == row]].log_softmax(-1)
        said = bool((scores.argmax(-1) == ids).all())
        yield Likelihood(float(scores.gather(1, ids[:, None]).mean()), said)


def continuations(speaker: Speaker, asked: Sequence[tuple[str, int]]) -> list[tuple[int, ...]]:
    """For each `(prompt, count)`: the so many tokens that the model says, always taking the likeliest."""
    return [found for some in _batches(asked) for found in _continuations(speaker, some)]


def _continuations(speaker: Speaker, asked: Sequence[tuple[str, int]]) -> Iterator[tuple[int, ...]]:
    import torch

    rows = [list(spell(speaker.tokenizer, prompt).ids) for prompt, _ in asked]
    starts = [len(row) for row in rows]
    for _ in range(max(count for _, count in asked)):
        with torch.no_grad():
            last = logits_at(speaker, padded(speaker, rows), [(place, len(row) - 1) for place, row in enumerate(rows)])
        for row, token in zip(rows, last.argmax(-1).tolist(), strict=True):
            row.append(token)
    for row, start, (_, count) in zip(rows, starts, asked, strict=True):
        yield tuple(row[start : start + count])


def _batches(asked: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(asked), BATCH):
        yield asked[start : start + BATCH]
