"""A model in conversation with itself: drafts, critiques by a principle, revisions (Bai et al. 2022, section 3)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mreg.registry.errors import MregError

Turn = dict[str, str]

Say = Callable[[Sequence[list[Turn]]], list[str]]
"""What the assistant says next in each conversation."""

PLAIN = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": "\n\n"}
"""How turns are spelled for a model without a chat template."""


class TooLong(MregError):
    """A conversation does not fit into the model."""

    exit_code = 6


@dataclass
class Answer:
    """What became of one prompt: the draft, and for each principle a critique of the last answer and a revision."""

    prompt: str | list[Turn]
    draft: str = ""
    principles: list[str] = field(default_factory=list)
    critiques: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        """The newest answer."""
        return self.revisions[-1] if self.revisions else self.draft

    def turns(self) -> list[Turn]:
        """The conversation up to the question."""
        return [user(self.prompt)] if isinstance(self.prompt, str) else list(self.prompt)


def user(content: str) -> Turn:
    """A turn of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """A turn of the assistant."""
    return {"role": "assistant", "content": content}


class Speaker:
    """A model that takes the next turn in conversations, a batch at a time."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        temperature: float,
        batch: int,
        told: Callable[[], None],
    ) -> None:
        self._model, self._tokenizer, self._batch, self._told = model.eval(), tokenizer, batch, told
        self._tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self._tokenizer.padding_side = "left"
        self._options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        # What a model's own generation config says would otherwise join in.
        self._options |= {"temperature": temperature or 1.0, "top_k": 0, "top_p": 1.0, "num_beams": 1}

    def say(self, conversations: Sequence[list[Turn]]) -> list[str]:
        """What the assistant says next in each. Raises TooLong."""
        said: list[str] = []
        for start in range(0, len(conversations), self._batch):
            said += self._say([self._spell(turns) for turns in conversations[start : start + self._batch]], start)
            self._told()
        return said

    def _say(self, spelled: list[str], start: int) -> list[str]:
        import torch

        given = self._tokenizer(spelled, return_tensors="pt", padding=True, add_special_tokens=not self._has_template)
        given = given.to(self._model.device)
        size = given.input_ids.shape[1]
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and size + self._options["max_new_tokens"] > most:
            raise TooLong(
                f"a conversation about the prompts {start + 1} to {start + len(spelled)} has {size} tokens, and the "
                f"model takes {most} with what it says",
                fix="lower --max-new-tokens, or give shorter prompts, principles and requests",
            )
        with torch.no_grad():
            written = self._model.generate(
                input_ids=given.input_ids,
                attention_mask=given.attention_mask,
                pad_token_id=self._tokenizer.pad_token_id,
                **self._options,
            )
        texts = self._tokenizer.batch_decode(written[:, size:], skip_special_tokens=True)
        return [re.split(r"\n\n(?:Human|Assistant):", text)[0].strip() for text in texts]

    @property
    def _has_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def _spell(self, turns: list[Turn]) -> str:
        if not self._has_template:
            return spelled(turns) + PLAIN["assistant"].rstrip()
        text: str = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text


def spelled(turns: Sequence[Turn]) -> str:
    """A conversation for a model without a chat template."""
    return "".join(PLAIN.get(turn["role"], "\n\n") + turn["content"] for turn in turns).lstrip()


def revise(
    answers: Sequence[Answer],
    say: Say,
    criticize: Say,
    *,
    principles: Sequence[str],
    rounds: int,
    critique_request: str,
    revision_request: str,
    draw: random.Random,
) -> None:
    """Fill in drafts, then in each round a critique of the last answer by a principle drawn for it, and a revision."""
    for answer, draft in zip(answers, say([each.turns() for each in answers]), strict=True):
        answer.draft = draft
    for _ in range(rounds):
        asked = []
        for answer in answers:
            answer.principles.append(draw.choice(principles))
            request = critique_request.replace("{principle}", answer.principles[-1])
            asked.append([*answer.turns(), assistant(answer.last), user(request)])
        critiques = criticize(asked)
        for turns, answer, critique in zip(asked, answers, critiques, strict=True):
            answer.critiques.append(critique)
            request = revision_request.replace("{principle}", answer.principles[-1])
            turns += [assistant(critique), user(request)]
        for answer, revision in zip(answers, say(asked), strict=True):
            answer.revisions.append(revision)
