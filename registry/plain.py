"""Which text may be a name: anything that a terminal and a reader see as what it is.

Model files come from strangers. A name with an escape sequence rewrites the screen, one with a right-to-left override
reads as another, one with `..` climbs out of its folder; so such names are refused at the door, not escaped later.
"""

from __future__ import annotations

import unicodedata

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})


def is_plain(text: str) -> bool:
    """Whether `text` has no control, surrogate, line separator or text direction character."""
    if text.isascii():
        return text.isprintable()
    return not any(c in _DIRECTIONS or unicodedata.category(c) in _REFUSED for c in text)


def climbs(text: str) -> bool:
    """Whether `text`, taken as a path, has a `..` part."""
    return ".." in text and ".." in text.replace("\\", "/").split("/")


def is_safe_path(text: str) -> bool:
    """Whether `text` is a plain relative path with `/` between non-empty parts, none of them `.` or `..`."""
    return (
        is_plain(text)
        and "\\" not in text
        and len(text.encode()) <= 4096
        and not any(part in ("", ".", "..") for part in text.split("/"))
    )


def shown(text: str) -> str:
    """`text` as an error message may print it: itself when plain, otherwise quoted with escapes."""
    return text if is_plain(text) else ascii(text)
