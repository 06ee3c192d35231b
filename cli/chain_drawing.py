"""A chain drawn as SVG, from its bases down to its end: each version a box below what it was made from. Pure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mreg.cli import text

WIDTH, HEIGHT, GAP, RISE = 216, 50, 26, 46
_LONGEST = 29
"""Characters that fit into a box."""


@dataclass(frozen=True)
class Box:
    """A version: two lines of text and a tone (good, fair or bad; none for one that was taken as it is)."""

    key: str
    title: str
    words: str
    tone: str = ""


@dataclass(frozen=True)
class Arrow:
    """From what something was made from. `role` is said where it is no plain source; data goes on dashes."""

    start: str
    end: str
    role: str = ""
    data: bool = False


def svg(boxes: Sequence[Box], arrows: Sequence[Arrow], *, title: str) -> str:
    """The drawing. A box comes after those that point to it."""
    places, wide, high = lay_out([box.key for box in boxes], [(arrow.start, arrow.end) for arrow in arrows])
    drawn = [_arrow(arrow, places) for arrow in arrows] + [_box(box, places[box.key]) for box in boxes]
    inside = "\n".join(drawn)
    # What stands beside the outermost arrow.
    wide += 7 * max((len(arrow.role) for arrow in arrows), default=0)
    return (
        f'<svg role="img" viewBox="0 0 {wide:g} {high:g}" width="{wide:g}" height="{high:g}" '
        f'xmlns="http://www.w3.org/2000/svg">\n<title>{_plain(title)}</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8"/></marker></defs>\n{inside}\n</svg>'
    )


Place = tuple[float, float]


def lay_out(
    keys: Sequence[str], arrows: Sequence[tuple[str, str]]
) -> tuple[Mapping[str | tuple[str, str, int], Place], float, float]:
    """The middle of the top of every box, and of the bends `(start, end, level)` of arrows that pass others by.

    Returned with the width and height of the whole. Boxes are on the level below the lowest that points to them.
    """
    level: dict[str, int] = {}
    for key in keys:
        level[key] = 1 + max((level[start] for start, end in arrows if end == key and start in level), default=-1)
    # What only points on is drawn just above what it points to, and not at the top of everything.
    for key in reversed(keys):
        if not any(end == key for _, end in arrows):
            level[key] = min((level[end] for start, end in arrows if start == key), default=1) - 1
    above: dict[str | tuple[str, str, int], list[str | tuple[str, str, int]]] = {key: [] for key in keys}
    rows: list[list[str | tuple[str, str, int]]] = [[] for _ in range(max(level.values(), default=0) + 1)]
    for key in keys:
        rows[level[key]].append(key)
    for start, end in dict.fromkeys(arrows):
        before: str | tuple[str, str, int] = start
        for between in range(level[start] + 1, level[end]):
            bend = (start, end, between)
            above[bend] = [before]
            rows[between].append(bend)
            before = bend
        above[end].append(before)
    places: dict[str | tuple[str, str, int], Place] = {}
    widths = [sum(_wide(one) + GAP for one in row) - GAP for row in rows]
    whole = max(widths, default=0)
    for depth, row in enumerate(rows):
        wanted = {one: [places[up][0] for up in above[one]] for one in row}
        row.sort(key=lambda one: sum(wanted[one]) / len(wanted[one]) if wanted[one] else whole / 2)
        left = (whole - widths[depth]) / 2
        for one in row:
            places[one] = (left + _wide(one) / 2, 4.0 + depth * (HEIGHT + RISE))
            left += _wide(one) + GAP
    margin = 4.0
    shifted = {one: (x + margin, y) for one, (x, y) in places.items()}
    return shifted, whole + 2 * margin, len(rows) * (HEIGHT + RISE) - RISE + 2 * margin


def _wide(one: str | tuple[str, str, int]) -> float:
    return WIDTH if isinstance(one, str) else 12


def _box(box: Box, place: Place) -> str:
    x, y = place
    left = x - WIDTH / 2
    return (
        f'<g><rect class="box {box.tone}" x="{left:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text x="{left + 12:g}" y="{y + 20:g}" font-weight="600">{_fitting(box.title)}</text>'
        f'<text class="dim" x="{left + 12:g}" y="{y + 38:g}">{_fitting(box.words, _LONGEST + 4)}</text></g>'
    )


def _arrow(arrow: Arrow, places: Mapping[str | tuple[str, str, int], Place]) -> str:
    bends = sorted(key for key in places if isinstance(key, tuple) and key[:2] == (arrow.start, arrow.end))
    x, y = places[arrow.start]
    y += HEIGHT
    line = f"M{x:g} {y:g}"
    for bend in bends:
        to, top = places[bend]
        line += f" C{x:g} {y + RISE / 2:g} {to:g} {top - RISE / 2:g} {to:g} {top:g} V{top + HEIGHT:g}"
        x, y = to, top + HEIGHT
    to, top = places[arrow.end]
    line += f" C{x:g} {y + RISE / 2:g} {to:g} {top - RISE / 2:g} {to:g} {top - 2:g}"
    kind = ' class="data"' if arrow.data else ""
    beside, at = (x + 6, y - HEIGHT / 2 + 4) if bends else ((x + to) / 2 + 6, top - RISE / 2 + 4)
    said = f'<text class="dim" x="{beside:g}" y="{at:g}">{_plain(arrow.role)}</text>'
    return f'<path{kind} d="{line}" marker-end="url(#tip)"/>' + (said if arrow.role else "")


def mermaid(boxes: Sequence[Box], arrows: Sequence[Arrow]) -> str:
    """The same for Markdown."""
    lines = ["graph TD"]
    for box in boxes:
        lines.append(f'  {box.key}["{_quoted(box.title)}<br/>{_quoted(box.words)}"]{f":::{box.tone}" * bool(box.tone)}')
    for arrow in arrows:
        line = "-.->" if arrow.data else "-->"
        lines.append(f"  {arrow.start} {line}{f'|{_quoted(arrow.role)}|' * bool(arrow.role)} {arrow.end}")
    tones = {"good": "#12703a", "fair": "#8a5a00", "bad": "#ad1f2d"}
    lines += [f"  classDef {tone} stroke:{ink},stroke-width:2px" for tone, ink in tones.items()]
    return "\n".join(lines)


def _quoted(words: str) -> str:
    # Mermaid spells an entity with a # in the place of the &; a backtick would begin its own Markdown.
    return html.escape(text.clean(words)).replace("&", "#").replace("`", "#96;").replace("#amp;", "&amp;")


def _fitting(words: str, most: int = _LONGEST) -> str:
    shown = text.clean(words)
    return html.escape(shown if len(shown) <= most else f"{shown[: most - 1]}…")


def _plain(words: str) -> str:
    return html.escape(text.clean(words))
