"""How many tokens rows have, as far as that can be told before any work starts.

What a chat template adds is not counted, so a row is never taken for longer than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Material, Rows

HALVES = ("chosen", "rejected")
"""Columns of which a model reads one at a time."""

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")

Count = Callable[[str], int]
"""The tokens of a text."""


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model was made for, where its config tells."""
    told = {**config.get("text_config", {}), **config}
    return next((told[name] for name in POSITIONS if isinstance(told.get(name), int) and told[name] > 0), None)


def counter(source: Material) -> Count | None:
    """Counts with the tokenizer of a model; None where that is no tokenizer.json."""
    if "tokenizer.json" not in source.files:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(source.read("tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def check_lengths(source: Material, rows: Sequence[Rows], columns: Iterable[str], max_length: int) -> None:
    """Refuse rows that are longer than what the model was made for, and are not cut before; names the first."""
    positions = positions_of(source.config)
    if positions is None or max_length <= positions or (count := counter(source)) is None:
        return
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            tokens = length(row, columns, count)
            if tokens > positions:
                raise Refused(
                    f"row {number} of {dataset.name} has {tokens} tokens, and {source.name} takes {positions}",
                    fix=f"cut rows with --max-length {positions}",
                )


def check_blocks(source: Material, rows: Sequence[Rows], column: str, max_length: int) -> None:
    """Refuse blocks cut out of all rows that are longer than what the model was made for."""
    positions = positions_of(source.config)
    if positions is None or max_length <= positions or (count := counter(source)) is None:
        return
    tokens = 0
    for row in chain.from_iterable(rows):
        tokens += length(row, (column,), count)
        if tokens > positions:
            raise Refused(
                f"blocks of {max_length} tokens are asked for, and {source.name} takes {positions}",
                fix=f"set --max-length {positions}",
            )


def length(row: Mapping[str, Any], columns: Iterable[str], count: Count) -> int:
    """The tokens of these columns of a row, of its halves only the longer."""
    sizes = {column: sum(count(text) for text in texts(row.get(column))) for column in columns}
    halves = [sizes.pop(half) for half in HALVES if half in sizes]
    return sum(sizes.values()) + max(halves, default=0)


def texts(value: Any) -> Iterator[str]:
    """What is said in a column: a text, words, or turns of a conversation."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, dict):
        yield from texts(value.get("content"))
