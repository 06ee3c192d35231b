"""Perplexity on the held-out prose: the mean loss of every token, over blocks of consecutive paragraphs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tests.real import prose

BLOCK = 512
"""Tokens of a block; what is left over at the end is not counted."""

BLOCKS = 6
"""How many are measured, unless said: 3,072 tokens of some 6,900."""


def perplexity(folder: Path, blocks: int = BLOCKS, **options: Any) -> float:
    """exp of the mean negative log-likelihood of the next token, in float32, as plain transformers loads the model.

    `options` go to `from_pretrained`, such as `gguf_file`. The tokenizer is the folder's.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    ids = tokenizer("\n\n".join(prose.paragraphs("held-out")), return_tensors="pt").input_ids[0]
    cut = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)[:blocks]
    with torch.no_grad():
        losses = [float(model(block[None], labels=block[None]).loss) for block in cut]
    return math.exp(sum(losses) / len(losses))
