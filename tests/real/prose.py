"""Real English text that every Python brings along: the language reference, as `help()` shows it, page by page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

SHORTEST = 200
HELD_OUT = 5
"""Every so-many-th page is held out."""


def paragraphs(part: Literal["train", "held-out"]) -> Iterator[str]:
    """Paragraphs of prose in the order of the pages' names; no page has paragraphs in both parts."""
    for number, name in enumerate(sorted(topics)):
        if (number % HELD_OUT == 0) == (part == "held-out"):
            for paragraph in re.split(r"\n\s*\n", topics[name]):
                text = " ".join(paragraph.split())
                if len(text) >= SHORTEST and text[0].isupper():
                    yield text


def write(path: Path, part: Literal["train", "held-out"], count: int | None = None) -> Path:
    """Write the first `count` paragraphs as rows of `{"text": …}`."""
    texts = list(paragraphs(part))[:count]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
