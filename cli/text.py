"""Text for people: outside text made harmless, numbers in human units. Pure.

Names, messages and metadata come from strangers; in a terminal an escape sequence rewrites the screen and a
right-to-left override swaps what is read. So every piece of text that mreg did not write itself goes through `clean`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mreg.registry.plain import is_plain

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BARS = "▁▂▃▄▅▆▇█"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def clean(text: str) -> str:
    """`text` on one line, with every control and text direction character spelled as an escape."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if is_plain(c) else ascii(c)[1:-1] for c in text)


def size(count: int) -> str:
    """Bytes in decimal units: `271 MB`."""
    return f"{_scaled(count, 3)}B"


def amount(count: float) -> str:
    """How many, in decimal units: `134.5 M`, `1,024`."""
    return _scaled(count, 4) if count >= 100_000 else f"{count:,.0f}"


def seconds(duration: float) -> str:
    """`0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`."""
    if duration < 9.95:
        return f"{duration:.1f} s"
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | None) -> str:
    """A measured number in four digits, `-` where there is none."""
    return "-" if value is None else f"{value:.4g}"


def percent(fraction: float | None) -> str:
    """A fraction in per cent; never `0 %` or `100 %` unless it is exactly that."""
    if fraction is None:
        return "-"
    if fraction in (0, 1):
        return f"{fraction:.0%}".replace("%", " %")
    shown = f"{fraction * 100:.1f}"
    return {"0.0": "< 0.1", "100.0": "> 99.9"}.get(shown, shown) + " %"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `3 files`."""
    return f"{amount(count)} {one if count == 1 else many or one + 's'}"


def moment(at: str) -> str:
    """An event's time as people read it: `2026-03-01 12:30:05`, in UTC as it is recorded."""
    return clean(at)[:19].replace("T", " ")


def value(given: Any) -> str:
    """A parameter or fact on one line: text bare (the first of its lines), lists comma separated, the rest JSON."""
    if isinstance(given, str):
        first, *more = given.splitlines() or [""]
        if more:
            return f"{clean(first)} … ({len(more) + 1} lines)"
        return clean(given) if given and not given.isspace() else json.dumps(given)
    if isinstance(given, bool) or given is None:
        return json.dumps(given)
    if isinstance(given, float):
        return f"{given:g}" if math.isfinite(given) else str(given)
    if isinstance(given, Sequence):
        return ",".join(map(value, given)) or "[]"
    if isinstance(given, Mapping):
        return clean(json.dumps(given, ensure_ascii=False, separators=(",", ":")))
    return clean(str(given))


def brief(words: str, most: int = 200) -> str:
    """The beginning of a text that is too long to be shown, and how long it is."""
    return words if len(words) <= most else f"{words[:most]}… ({amount(len(words))} characters)"


def fact(name: str, given: Any) -> str:
    """What a run measured: numbers in human units, a curve or a table by its ends; nothing for what is empty."""
    if isinstance(given, bool | str):
        return value(given) if given != "" else ""
    if isinstance(given, int):
        return size(given) if "bytes" in name else amount(given)
    if isinstance(given, float):
        return number(given)
    if points := [y for _, y in curve(given)]:
        return f"{number(points[0])} → {number(points[-1])}  {sparkline(points)}"
    if isinstance(given, Mapping) and len(given) > 4 and all(isinstance(one, float) for one in given.values()):
        low, high = min(given, key=given.__getitem__), max(given, key=given.__getitem__)
        return f"{len(given)}, from {number(given[low])} ({clean(low)}) to {number(given[high])} ({clean(high)})"
    return value(given) if given else ""


def curve(given: Any) -> list[tuple[float, float]]:
    """The points of a list of `[step, number]` pairs, or of numbers, which are counted; nothing when it is no curve."""
    if not isinstance(given, list) or len(given) < 3:
        return []
    points: list[tuple[Any, Any]] = [
        (one[0], one[1]) if isinstance(one, list | tuple) and len(one) == 2 else (place, one)
        for place, one in enumerate(given, start=1)
    ]
    return points if all(_is_number(x) and _is_number(y) for x, y in points) else []


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


def params(given: Mapping[str, Any] | None) -> str:
    """`bits=8 group_size=64`: what was set, without what is empty; of a digest the beginning."""
    kept = {name: one for name, one in (given or {}).items() if one is not None and one != [] and one != ""}
    return " ".join(f"{clean(name)}={value(_short(one))}" for name, one in kept.items())


def _short(given: Any) -> Any:
    return given[:12] if isinstance(given, str) and _DIGEST.fullmatch(given) else given


def sparkline(values: Iterable[float], width: int = 40) -> str:
    """A curve in one line of blocks; more points than `width` are averaged."""
    points = [float(point) for point in values if math.isfinite(point)]
    if len(points) < 2:
        return ""
    if len(points) > width:
        edges = [round(index * len(points) / width) for index in range(width + 1)]
        points = [sum(points[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(points), max(points) - min(points)
    return "".join(_BARS[round((point - low) / span * (len(_BARS) - 1)) if span else 0] for point in points)


def _scaled(count: float, digits: int) -> str:
    for scale, letter in _SCALES:
        # What would be rounded up to a thousand of a unit is one of the next.
        if count >= scale * (1 - 0.5 * 10**-digits):
            return f"{count / scale:.{digits}g} {letter}"
    return f"{count:.0f} "
