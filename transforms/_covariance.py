"""How the keys of a model's MLP matrices vary over ordinary text: C = E[k·kᵀ], kept for the next edit.

It depends on the model, the text and on what computes it, on nothing else; so it is cached under the digest of all
that, and what is read from the cache has the bits that computing it again would give.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import canonical
from mreg.registry.digests import of_bytes
from mreg.registry.errors import Refused
from mreg.registry.transform import Job, JobDataset, Progress, Report
from mreg.transforms import _environment
from mreg.transforms._answers import Speaker, padded
from mreg.transforms._mlp import Memory, keys

if TYPE_CHECKING:
    import torch

LENGTH = 256
"""Tokens at which a row of text is cut."""

BATCH = 8


def covariances(
    speaker: Speaker, job: Job, text: JobDataset, memories: Sequence[Memory], tokens: int, report: Report
) -> dict[int, torch.Tensor]:
    """By layer: C, [in, in] in float32, over the first so many tokens of a text, from the cache where it is there.

    Raises Refused where the text has fewer tokens than a key has numbers, since C would have no inverse.
    """
    places = {each.layer: _place(job, text, each, tokens) for each in memories}
    found = {layer: kept for layer, place in places.items() if place and (kept := _read(place)) is not None}
    missing = [each for each in memories if each.layer not in found]
    if missing:
        computed = _compute(speaker, text, missing, tokens, report)
        for layer, matrix in computed.items():
            if (place := places[layer]) is not None:
                _write(place, matrix)
        found |= computed
    return found


def _compute(
    speaker: Speaker, text: JobDataset, memories: Sequence[Memory], tokens: int, report: Report
) -> dict[int, torch.Tensor]:
    import torch

    sides = {each.layer: each.weight(speaker.model).shape[1] for each in memories}
    sums = {layer: torch.zeros(side, side, dtype=torch.float64) for layer, side in sides.items()}
    seen = 0
    for rows in _batches(speaker, text, tokens):
        batch = padded(speaker, rows)
        real = batch["attention_mask"].bool()
        for each, found in zip(memories, keys(speaker, memories, batch), strict=True):
            chosen = found[real]
            sums[each.layer] += (chosen.T @ chosen).cpu()
        seen += int(real.sum())
        report(Progress(min(seen, tokens), tokens, f"{seen} tokens of text"))
    if seen < max(sides.values()):
        raise Refused(
            f"{text.name} has {seen} tokens, too few for keys of {max(sides.values())} numbers",
            fix="give more text, ten times as many tokens or more",
        )
    return {layer: (total / seen).float() for layer, total in sums.items()}


def _batches(speaker: Speaker, text: JobDataset, tokens: int) -> Iterator[list[list[int]]]:
    rows: list[list[int]] = []
    left = tokens
    with open(text.path, encoding="utf-8") as lines:
        for line in lines:
            ids = speaker.tokenizer(json.loads(line)["text"])["input_ids"][: min(LENGTH, left)]
            if ids:
                rows.append(ids)
                left -= len(ids)
            if len(rows) == BATCH or (rows and not left):
                yield rows
                rows = []
            if not left:
                return
    if rows:
        yield rows


def _place(job: Job, text: JobDataset, memory: Memory, tokens: int) -> Path | None:
    """The file for C of one layer, named by the digest of everything that its bits depend on."""
    if job.cache is None or job.place is not None:
        return None
    around = _environment.describe(threads=job.threads, device=job.device)
    depends: Mapping[str, Any] = {
        "model": next(given.digest for given in job.inputs if given.role == "source"),
        "module": memory.module,
        "text": text.digest,
        "tokens": tokens,
        "length": LENGTH,
        "batch": BATCH,
        "dtype": "float32",
        "portable": job.portable,
        "environment": {name: around[name] for name in sorted(around) if name not in ("peft", "trl", "datasets")},
    }
    return job.cache / "covariance" / f"{of_bytes(canonical.dumps(depends))}.safetensors"


def _read(place: Path) -> torch.Tensor | None:
    """What is cached there; None where nothing is, or not what was written."""
    from safetensors import SafetensorError, safe_open

    if not place.exists():
        return None
    try:
        with safe_open(place, framework="pt") as opened:
            matrix: torch.Tensor = opened.get_tensor("mom2").clone()
            said = (opened.metadata() or {}).get("digest")
    except (SafetensorError, OSError):
        return None  # It is computed again, and written over.
    return matrix if said == _digest(matrix) else None


def _write(place: Path, matrix: torch.Tensor) -> None:
    from safetensors.torch import save_file

    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.stem}.{os.getpid()}.tmp")
    save_file({"mom2": matrix}, fresh, metadata={"digest": _digest(matrix)})
    fresh.replace(place)


def _digest(matrix: torch.Tensor) -> str:
    raw: Any = matrix.contiguous().numpy()
    return of_bytes(memoryview(raw).cast("B"))
