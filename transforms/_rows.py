"""Rows to train on: which columns a method reads, checked row by row before any training starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Material, Rows

Format = tuple[str, ...]
"""Columns that a row has all of."""

CHAT: Format = ("messages",)
COMPLETED: Format = ("prompt", "completion")
PROMPTED: Format = ("prompt",)
TEXT: Format = ("text",)
PREFERRED: Format = ("prompt", "chosen", "rejected")
PAIRED: Format = ("chosen", "rejected")
LABELLED: Format = ("prompt", "completion", "label")
CLASSIFIED: Format = ("text", "label")
TAGGED: Format = ("tokens", "labels")

TOLD = {
    CHAT: "`messages` with a role and a text as content each",
    COMPLETED: "`prompt` and `completion`",
    PROMPTED: "`prompt`",
    TEXT: "`text`",
    PREFERRED: "`prompt`, `chosen` and `rejected`",
    PAIRED: "`chosen` and `rejected` that start with the same prompt",
    LABELLED: "`prompt`, `completion` and `label` (true or false)",
    CLASSIFIED: "`text` and its `label`",
    TAGGED: "`tokens`, a list of words, and as many `labels`",
}


def told(formats: Sequence[Format]) -> str:
    """What a row should look like, for people."""
    return f"a row has {', or '.join(TOLD[each] for each in formats)}"


def format_of(name: str, columns: Iterable[str], formats: Sequence[Format]) -> Format:
    """The first format of which a dataset has all columns. Raises Refused."""
    held = set(columns)
    for wanted in formats:
        if set(wanted) <= held:
            return wanted
    raise Refused(f"{name} has the columns {', '.join(columns)}", fix=told(formats))


def check_rows(source: Material, rows: Sequence[Rows], formats: Sequence[Format], *, template: bool = False) -> Format:
    """The one format of all datasets. Raises Refused, naming the first row and column that cannot be used.

    `template` says that a chat template is there, whatever the model has.
    """
    found = {format_of(dataset.name, dataset.columns, formats) for dataset in rows}
    if len(found) > 1:
        named = " and ".join(sorted("+".join(columns) for columns in found))
        raise Refused(f"the datasets have different columns ({named})", fix="train on one after the other")
    for dataset in rows:
        if not dataset.count:
            raise Refused(f"{dataset.name} has no rows", fix="give a dataset with one row a line")
    (columns,) = found
    kinds: set[type] = set()
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            for column in columns:
                value = row.get(column)
                if not _is_usable(column, value):
                    raise Refused(f"row {number} of {dataset.name} has no usable {column}", fix=told(formats))
                kinds |= {type(value)} - {bool}
            if len(kinds) > 1:
                # TRL looks at the first row only.
                raise Refused(
                    f"row {number} of {dataset.name} mixes text with messages, or follows rows of the other kind",
                    fix="give all of the data as text or all of it as messages",
                )
    check_kinds(rows, columns)
    chats = list in kinds
    if chats and not template and not has_chat_template(source):
        others = [each for each in formats if each != CHAT]
        raise Refused(f"{source.name} has no chat template for messages", fix=f"add one, or give text: {told(others)}")
    return columns


def check_kinds(rows: Sequence[Rows], columns: Iterable[str]) -> None:
    """Refuse a column whose values are not all of one kind, which no table holds; naming the row."""
    seen: dict[str, tuple[str, str]] = {}
    wanted = tuple(columns)
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            for column in wanted:
                for place, kind in _kinds(row.get(column), column):
                    first, where = seen.setdefault(place, (kind, f"row {number} of {dataset.name}"))
                    if kind != first:
                        raise Refused(
                            f"row {number} of {dataset.name} has {kind} as {place}, and {where} has {first}",
                            fix="give values of one kind in all rows",
                        )


def _kinds(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """What stands where in a value, in words; what is missing fits everything."""
    match value:
        case None:
            return
        case bool():
            yield place, "true or false"
        case int() | float():
            yield place, "a number"
        case str():
            yield place, "text"
        case list():
            yield place, "a list"
            for each in value:
                yield from _kinds(each, f"{place}[]")
        case _:
            yield place, "an object"
            for name, held in value.items():
                yield from _kinds(held, f"{place}.{name}")


def has_chat_template(source: Material) -> bool:
    """Whether a model says how turns of a conversation are spelled."""
    if "chat_template.jinja" in source.files or "chat_template.json" in source.files:
        return True
    tokenizer = "tokenizer_config.json"
    return tokenizer in source.files and bool(json.loads(source.read(tokenizer)).get("chat_template"))


def check_pairs(rows: Sequence[Rows], *, same_start: bool = False) -> None:
    """Refuse a pair that prefers nothing, and where the prompt is to be found in it, one whose halves start apart."""
    for dataset in rows:
        for number, row in enumerate(dataset, start=1):
            if row["chosen"] == row["rejected"]:
                raise Refused(f"row {number} of {dataset.name} has the same as chosen and as rejected", fix="drop it")
            if same_start and row["chosen"][0] != row["rejected"][0]:
                raise Refused(
                    f"row {number} of {dataset.name} has no prompt to be found", fix=told([PREFERRED, PAIRED])
                )


def check_both_labels(rows: Sequence[Rows], limit: int | None = None) -> None:
    """Refuse labels that are all the same among the rows, or among the first `limit`."""
    labels = {row["label"] for row in islice(chain.from_iterable(rows), limit)}
    if len(labels) < 2:
        told = "true" if True in labels else "false"
        first = "every row" if limit is None else f"each of the first {limit} rows"
        raise Refused(
            f"{first} has the label {told}", fix="give good completions, labelled true, and bad ones, labelled false"
        )


def _is_usable(column: str, value: Any) -> bool:
    if column == "label":
        return isinstance(value, bool)
    if isinstance(value, str):
        return bool(value) and column != "messages"
    turns = isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
    return turns and bool(value) and column != "text"
