"""A document for people as one self-contained file: the same blocks written as HTML or as Markdown.

Everything that is put in is text and is escaped here, so that no name or message in it can act on who reads it. The
HTML refers to nothing outside itself and runs no script.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mreg.cli import text


@dataclass(frozen=True)
class Heading:
    """The title of a part of the page."""

    words: str


@dataclass(frozen=True)
class Paragraph:
    """Some sentences. `tone` is good, fair or bad for a judgement."""

    words: str
    tone: str = ""


@dataclass(frozen=True)
class Cell:
    """Words in a table that are toned, or that stand to the right as numbers do."""

    words: str
    tone: str = ""
    right: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under titles; an untitled table has names in its first column."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class Code:
    """Lines to be typed."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Drawing:
    """A picture: finished SVG for HTML, finished Mermaid for Markdown."""

    svg: str
    mermaid: str


Block = Heading | Paragraph | Table | Code | Drawing

_LONG = 24
"""Characters from which on a cell is kept wide enough to be read."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5d6778; --line: #d6dbe4; --paper: #ffffff; --field: #f5f7fa;
  --good: #12703a; --good-field: #e3f4e9; --fair: #8a5a00; --fair-field: #fdf1d6; --bad: #ad1f2d; --bad-field: #fde6e8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --dim: #9aa5b6; --line: #39414f; --paper: #14181f;
  --field: #1d232d; --good: #6fd698; --good-field: #17352a; --fair: #efc063; --fair-field: #3a2f14; --bad: #ff8c98;
  --bad-field: #43191f } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { margin: .5rem 0; max-width: 68ch }
.wide { overflow-x: auto; margin: .9rem 0 } table { border-collapse: collapse; min-width: 20rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; min-width: 3rem }
td.long { min-width: 13rem } td span { white-space: nowrap }
thead th { color: var(--dim); font-weight: 600; white-space: nowrap }
tbody th { font-weight: 600; white-space: nowrap }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
pre { background: var(--field); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  overflow-x: auto }
.good { color: var(--good) } .fair { color: var(--fair) } .bad { color: var(--bad) }
p.good, p.fair, p.bad { padding: .7rem 1rem; border-radius: 6px; font-weight: 600; max-width: none }
p.good { background: var(--good-field) } p.fair { background: var(--fair-field) } p.bad { background: var(--bad-field) }
td .good, td .fair, td .bad { font-weight: 600 }
svg { max-width: 100%; height: auto } svg text { font: 13px system-ui, sans-serif; fill: var(--ink) }
svg .dim { fill: var(--dim); font-size: 11.5px } svg .box { fill: var(--field); stroke: var(--line) }
svg .good { fill: var(--good-field); stroke: var(--good) } svg .fair { fill: var(--fair-field); stroke: var(--fair) }
svg .bad { fill: var(--bad-field); stroke: var(--bad) } svg path { fill: none; stroke: var(--dim); stroke-width: 1.3 }
svg path.data { stroke-dasharray: 4 3 }
footer { margin-top: 3rem; color: var(--dim); font-size: .85rem }
@media print { body { padding: 0 } .wide { overflow: visible } }
"""


def as_html(title: str, blocks: Iterable[Block], *, footer: str) -> str:
    """The page as one HTML file."""
    inside = "\n".join(_html(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_plain(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_plain(title)}</h1>\n{inside}\n</main>\n<footer>{_plain(footer)}</footer>\n</body>\n</html>\n"
    )


def as_markdown(title: str, blocks: Iterable[Block], *, footer: str) -> str:
    """The page as Markdown, with the picture as Mermaid."""
    inside = "\n\n".join(_markdown(block) for block in blocks)
    return f"# {_escaped(title)}\n\n{inside}\n\n---\n\n{_escaped(footer)}\n"


def _html(block: Block) -> str:
    match block:
        case Heading(words):
            return f"<h2>{_plain(words)}</h2>"
        case Paragraph(words, tone):
            return f'<p class="{tone}">{_plain(words)}</p>' if tone else f"<p>{_plain(words)}</p>"
        case Table(titles, rows):
            named = f"<thead><tr>{''.join(map(_title, titles))}</tr></thead>" if titles else ""
            body = "".join(f"<tr>{_row(cells, named=not titles)}</tr>\n" for cells in rows)
            return f'<div class="wide"><table>{named}<tbody>\n{body}</tbody></table></div>'
        case Code(lines):
            return f"<pre><code>{_plain_lines(lines)}</code></pre>"
        case Drawing(svg, _):
            return f'<div class="wide">{svg}</div>'


def _title(words: str) -> str:
    return f'<th scope="col">{_plain(words)}</th>'


def _row(cells: Sequence[str | Cell], *, named: bool) -> str:
    shown = ""
    for place, given in enumerate(cells):
        cell = given if isinstance(given, Cell) else Cell(given)
        inside = f'<span class="{cell.tone}">{_plain(cell.words)}</span>' if cell.tone else _plain(cell.words)
        kind = ' class="right"' if cell.right else ' class="long"' if len(cell.words) > _LONG else ""
        shown += f'<th scope="row">{inside}</th>' if named and place == 0 else f"<td{kind}>{inside}</td>"
    return shown


def _markdown(block: Block) -> str:
    match block:
        case Heading(words):
            return f"## {_escaped(words)}"
        case Paragraph(words, tone):
            return f"**{_escaped(words)}**" if tone else _escaped(words)
        case Table(titles, rows):
            wide = max([len(titles), *(len(row) for row in rows)])
            right = [any(isinstance(c, Cell) and c.right for row in rows for c in row[n : n + 1]) for n in range(wide)]
            head = "".join(f" {_escaped(title)} |" for title in titles or [""] * wide)
            rule = "".join(" ---: |" if one else " --- |" for one in right)
            body = ["|" + "".join(f" {_marked(cell)} |" for cell in row) for row in rows]
            return "\n".join([f"|{head}", f"|{rule}", *body])
        case Code(lines):
            # Longer than any run of backticks in it.
            fence = "`" * max(3, 1 + max((len(run) for line in lines for run in _runs(line)), default=0))
            return "\n".join([f"{fence}sh", *map(text.clean, lines), fence])
        case Drawing(_, mermaid):
            return f"```mermaid\n{mermaid}\n```"


def _marked(given: str | Cell) -> str:
    cell = given if isinstance(given, Cell) else Cell(given)
    shown = _escaped(cell.words)
    return f"**{shown}**" if cell.tone and shown else shown


def _runs(line: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in line).split() if run]


def _plain(words: str) -> str:
    return html.escape(text.clean(words))


def _plain_lines(lines: Sequence[str]) -> str:
    return "\n".join(map(_plain, lines))


def _escaped(words: str) -> str:
    """Text that Markdown, and the HTML that it may hold, shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else html.escape(c) for c in text.clean(words))
