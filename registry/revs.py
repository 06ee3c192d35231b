"""Revs: what a person types to name a version (`v3`, `v3~1`, `prod@{1}`, `ab12cd`), parsed and resolved. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError

REF_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,127}")
_NUMBER = re.compile(r"v([1-9][0-9]{0,17})")
_PREFIX = re.compile(r"[0-9a-f]{6,64}")
_REV = re.compile(r"(?P<base>[^~^@{}\s]+)(?:@\{(?P<back>[0-9]{1,9})\})?(?P<walk>(?:[~^][0-9]{0,9})*)")
_WALK = re.compile(r"([~^])([0-9]*)")


class UnknownRev(MregError):
    """No version, ref or digest prefix matches."""

    exit_code = 4


class MalformedName(MregError):
    """A rev or a name is not spelled as one can be."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Rev:
    """A rev taken apart. `walk` holds `("~", n)` for n first parents up and `("^", n)` for the n-th parent."""

    base: str
    back: int = 0
    walk: tuple[tuple[str, int], ...] = ()


class Lookup(Protocol):
    """What resolving needs to know of the registry."""

    def numbered(self, number: int) -> Digest | None:
        """The version with this number."""

    def ref(self, name: str, back: int) -> Digest | None:
        """Where a ref pointed `back` moves ago; None when there is no such ref, or it was not that old."""

    def starting(self, prefix: str) -> Sequence[Digest]:
        """The versions whose digest starts so."""

    def parents(self, digest: Digest) -> Sequence[Digest]:
        """The parents of a version, in order."""

    def names(self) -> Sequence[str]:
        """Every `v…` and ref there is, for suggestions."""


def parse(text: str) -> Rev:
    """Take a rev apart. Raises MalformedName."""
    match = _REV.fullmatch(text)
    if match is None:
        raise MalformedName(
            f"{text!r} is not a rev", fix="write v3, v3~1, v3^2, a ref, ref@{1}, or 6 or more digits of a digest"
        )
    walk = tuple((sign, int(count) if count else 1) for sign, count in _WALK.findall(match["walk"]))
    return Rev(match["base"], int(match["back"] or 0), walk)


def resolve(text: str, lookup: Lookup) -> Digest:
    """The digest of the version that `text` names. Raises UnknownRev and MalformedName."""
    rev = parse(text)
    at = _base(text, rev, lookup)
    for sign, count in rev.walk:
        for _ in range(count if sign == "~" else min(count, 1)):
            parents = lookup.parents(at)
            place = 0 if sign == "~" else count - 1
            if place >= len(parents):
                has = f"{len(parents)} parent{'' if len(parents) == 1 else 's'}"
                raise UnknownRev(
                    f"{text!r} goes too far up: version {at[:12]} has {has}", fix="`mreg log REV` shows the chain"
                )
            at = parents[place]
    return at


def _base(text: str, rev: Rev, lookup: Lookup) -> Digest:
    if number := _NUMBER.fullmatch(rev.base):
        if rev.back:
            raise UnknownRev(f"{rev.base} is a version, and only refs move", fix=f"write {rev.base}~1 for its parent")
        found = lookup.numbered(int(number[1]))
    else:
        found = lookup.ref(rev.base, rev.back)
        if found is None and rev.back and lookup.ref(rev.base, 0) is not None:
            raise UnknownRev(
                f"{rev.base} has not moved {rev.back} times", fix=f"`mreg ref log {rev.base}` shows its moves"
            )
        if found is None and not rev.back and _PREFIX.fullmatch(rev.base):
            matches = lookup.starting(rev.base)
            if len(matches) > 1:
                raise UnknownRev(f"{rev.base} begins {len(matches)} digests", fix="give more digits")
            found = matches[0] if matches else None
    if found is None:
        raise UnknownRev(
            f"no version is called {text!r}", fix=suggest(rev.base, lookup.names(), "`mreg list` shows them all")
        )
    return found


def suggest(text: str, names: Sequence[str], where: str) -> str:
    """What to do about a name that is not there: the nearest one, and where to see them all."""
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}? {where}" if near else where


def check_ref_name(name: str) -> str:
    """The name itself. Raises MalformedName when a ref cannot be called so."""
    if not REF_NAME.fullmatch(name) or ".." in name or name.endswith("/"):
        raise MalformedName(
            f"{name!r} cannot be a ref's name", fix="use a-z, 0-9, . _ / and -, at most 128, without .."
        )
    if _NUMBER.fullmatch(name) or (len(name) == 64 and _PREFIX.fullmatch(name)):
        raise MalformedName(f"{name!r} reads as a version", fix="choose a name such as prod or chat/base")
    return name
