"""Standard output: JSON for programs, tables and colour for a terminal, plain aligned text for a pipe.

The same calls serve both: colour is only put in when standard output is a terminal that wants it, and rich is only
imported then. What goes to a pipe is stable, without escapes and never cut to a width.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import IO, Any

import click
from mreg.cli import text

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")


@dataclass(frozen=True)
class Column:
    """One column of a table. Numbers go to the right; only a `flexible` column is wrapped when a terminal is narrow."""

    title: str
    right: bool = False
    flexible: bool = False


def is_terminal(stream: IO[str] | None = None) -> bool:
    """Whether a person watches this stream, by default standard output."""
    return _is_terminal(stream or sys.stdout)


@lru_cache(maxsize=4)
def _is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_coloured() -> bool:
    """Whether standard output takes colour (https://no-color.org)."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def cropped(all_words: Iterable[str]) -> Iterable[str]:
    """Lines, inked or not, cut to the width of the terminal; whole in a pipe."""
    if not is_terminal():
        return all_words
    columns = shutil.get_terminal_size().columns
    return (_crop(words, columns) for words in all_words)


def _crop(words: str, room: int) -> str:
    if len(click.unstyle(words)) <= room:
        return words
    kept, room = "", room - 1
    for piece in _COLOUR.split(words):
        if _COLOUR.fullmatch(piece):
            kept += piece
        else:
            kept += piece[:room] + ("…" if 0 <= room < len(piece) else "")
            room -= len(piece) if len(piece) <= room else room + 1
    return kept


def ink(words: str, colour: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
    """`words` in a colour where there is colour, `words` alone where there is none."""
    if not words or not is_coloured():
        return words
    return click.style(words, fg=colour, bold=bold or None, dim=dim or None)


def line(words: str = "") -> None:
    """One line of text."""
    click.echo(words, color=is_coloured())


def lines(all_words: Iterable[str]) -> None:
    """Many lines, written some hundreds at a time."""
    for some in batched(all_words, 500):
        line("\n".join(some))


def batched(items: Iterable[str], count: int) -> Iterator[list[str]]:
    """The items in lists of `count`, the last one shorter."""
    iterator = iter(items)
    while some := list(islice(iterator, count)):
        yield some


def note(words: str) -> None:
    """One line for people beside the output, on standard error."""
    click.echo(text.clean(words), err=True)


def hint(words: str) -> None:
    """What to do next, for a person who looks at a terminal."""
    if is_terminal():
        line(ink(words, dim=True))


def emit(document: Any) -> None:
    """A JSON document, in ASCII so that no text in it can act on a terminal."""
    click.echo(json.dumps(_finite(document), indent=2, default=str, allow_nan=False))


def emit_line(document: Any) -> None:
    """A JSON document on one line."""
    click.echo(json.dumps(_finite(document), default=str, allow_nan=False, separators=(",", ":")))


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Rows under titles. The cells are clean already, and may be inked."""
    if is_terminal():
        _rich_table(columns, list(rows))
        return
    everything = [[column.title for column in columns], *rows]
    widths = [max(len(cells[place]) for cells in everything) for place in range(len(columns))]
    lines(
        "  ".join(
            cell.rjust(wide) if column.right else cell.ljust(wide)
            for column, wide, cell in zip(columns, widths, cells, strict=True)
        ).rstrip()
        for cells in everything
    )


def pairs(rows: Iterable[tuple[str, str]], *, indent: str = "") -> None:
    """Names and values, one a line, the values aligned."""
    kept = [(name, shown) for name, shown in rows if shown]
    wide = max((len(name) for name, _ in kept), default=0)
    for name, shown in kept:
        line(f"{indent}{ink(name.ljust(wide), dim=True)}  {shown}")


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.flexible,
            overflow="fold" if column.flexible else "ellipsis",
        )
    for cells in rows:
        shown.add_row(*map(Text.from_ansi, cells))
    Console(markup=False, highlight=False, emoji=False).print(shown)


def _finite(given: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings that Python's float() reads."""
    if isinstance(given, float):
        return given if math.isfinite(given) else str(given)
    if isinstance(given, Mapping):
        return {name: _finite(one) for name, one in given.items()}
    if isinstance(given, list | tuple):
        return [_finite(one) for one in given]
    return given
