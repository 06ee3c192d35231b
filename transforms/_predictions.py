"""What a model predicts for rows with a known answer, and how well that is calibrated."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Progress, Report
from mreg.transforms import _metrics
from mreg.transforms._architecture import SAFE, model_class
from mreg.transforms._confidence import Array, Labels

if TYPE_CHECKING:
    import torch

MEASURES = ("ece", "nll", "brier", "accuracy")


def halves(groups: Sequence[Any], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The places to fit on and those held out, drawn by the seed from each group apart; both in order."""
    chance = random.Random(seed)  # noqa: S311 no secret
    held: list[int] = []
    for group in dict.fromkeys(groups):
        places = [place for place, one in enumerate(groups) if one == group]
        held += chance.sample(places, min(max(1, round(len(places) * fraction)), len(places) - 1))
    return sorted(set(range(len(groups))) - set(held)), sorted(held)


def class_logits(folder: Path, texts: Sequence[str], most: int, batch: int, device: str, report: Report) -> Array:
    """The logits [rows, labels] of a classifier, computed in float32; `most` tokens of a text are read."""
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = _load(folder, "SEQ_CLS", device), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    parts: list[Array] = []
    for start in range(0, len(texts), batch):
        given = tokenizer(
            list(texts[start : start + batch]), return_tensors="pt", padding=True, truncation=True, max_length=most
        )
        with torch.no_grad():
            parts.append(model(**given.to(device)).logits.double().cpu().numpy())
        report(Progress(min(start + batch, len(texts)), len(texts), "rows"))
    return np.concatenate(parts)


def judged(probabilities: Array, labels: Labels, names: list[str], bins: int, seed: int) -> dict[str, Any]:
    """The scores of a classifier: `_metrics.classification` without what is not about calibration."""
    scores = _metrics.classification(probabilities, labels, names, bins, seed)
    return {name: scores[name] for name in MEASURES}


def told(part: str, when: str, scores: Mapping[str, Any]) -> Facts:
    """The values of scores as facts, such as `eval_ece_before`."""
    return {f"{part}_{name}_{when}": round(scores[name]["value"], 6) for name in MEASURES}


def token_logits(
    folder: Path, texts: Sequence[str], most: int, tokens: int, device: str, report: Report
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each text the logits [tokens, vocabulary] of a language model in float32, and the tokens that came.

    Ends when so many `tokens` were predicted. A text of one token says nothing and is left out.
    """
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = (
        _load(folder, "CAUSAL_LM", device),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    )
    left = tokens
    for text in texts:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=min(most, left + 1))["input_ids"]
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = model(ids.to(device)).logits[0, :-1].float().cpu()
        left -= len(logits)
        report(Progress(tokens - left, tokens, "tokens"))
        yield logits, ids[0, 1:]
        if left < 1:
            return


class TokenScores:
    """Calibration of a language model, token by token: gathered row by row, since logits are too many to be kept."""

    def __init__(self, bins: int) -> None:
        self._calibration = _metrics.Calibration(bins)
        self._sums: list[tuple[float, float, float, int]] = []

    def add(self, logits: torch.Tensor, answers: torch.Tensor) -> None:
        """One row: logits [tokens, vocabulary] and the tokens that came."""
        logs = logits.log_softmax(dim=1)
        powers = logs.exp()
        confidence, guess = powers.max(dim=1)
        right = (guess == answers).double().numpy()
        of_answers = logs.gather(1, answers[:, None]).double()
        brier = powers.double().square().sum(dim=1) - 2 * of_answers.exp()[:, 0] + 1
        self._calibration.add(confidence.double().numpy(), right)
        self._sums.append((-float(of_answers.sum()), float(brier.sum()), float(right.sum()), len(right)))

    @property
    def count(self) -> int:
        """The tokens that were judged."""
        return sum(count for *_, count in self._sums)

    def scores(self, seed: int) -> dict[str, Any]:
        """The scores, as `judged` gives them for a classifier. Raises Refused where nothing was judged."""
        if not self._sums:
            raise Refused("no row has two tokens or more", fix="give longer texts")
        nll, brier, right, _ = np.array(self._sums).sum(axis=0) / self.count
        values = {"nll": nll, "brier": brier, "accuracy": right}
        means = {name: {"value": float(value)} for name, value in values.items()}
        return {**means, "ece": self._calibration.score("tokens", seed)}


def _load(folder: Path, task: str, device: str) -> Any:
    import torch

    model = model_class({}, task).from_pretrained(folder, dtype=torch.float32, **SAFE)
    return (model if device == "cpu" else model.to(device)).eval()
