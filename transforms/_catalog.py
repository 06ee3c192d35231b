"""Which transforms there are: our own files, then what installed packages add through the group `mreg.transforms`."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from mreg.registry.digests import file_hasher
from mreg.registry.errors import MregError
from mreg.registry.transform import Transform, UnknownTransform

HERE = Path(__file__).parent
GROUP = "mreg.transforms"
INTERNAL = frozenset({"_evaluation"})
"""Jobs that an engine runs as it does a transform, though nobody can apply them: what comes out is no model."""


class BrokenTransform(MregError):
    """An installed package offers a transform that does not load, or is none."""

    exit_code = 12


def names() -> list[str]:
    """Every transform, sorted. Loads none of them, so a broken package does not hide the others."""
    return sorted({*_own(), *_outside()})


def find(name: str) -> Transform[Any]:
    """The transform called `name`; only its own module is imported. Raises UnknownTransform or BrokenTransform."""
    if name in _own() or name in INTERNAL:
        found = importlib.import_module(f"mreg.transforms.{name}").TRANSFORM
        assert isinstance(found, Transform)
        assert name == found.name
        return found
    outside = _outside()
    if name not in outside:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownTransform(
            f"no transform is called {name!r}", fix=f"{hint}`mreg transforms` shows the {len(names())} there are"
        )
    return _load(outside[name])


def broken() -> dict[str, str]:
    """The outside transforms that cannot be used, and why. Imports every outside package."""
    reasons = {}
    own = _own()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if entry.name in own:
            reasons[f"{entry.name} ({_package(entry)})"] = f"mreg has a transform called {entry.name} of its own"
            continue
        try:
            _load(entry)
        except BrokenTransform as error:
            reasons[entry.name] = str(error)
    return reasons


def code(name: str) -> str:
    """The digest of the source that `name` runs: its file and the shared `_*.py` files of its package."""
    module = find(name).run.__module__
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin)
    shared = source.parent.glob("_*.py") if spec.parent else ()
    hasher = file_hasher()
    for path in sorted({source, *shared}):
        text = path.read_bytes()
        hasher.update(f"{path.name}\0{len(text)}\0".encode())
        hasher.update(text)
    return hasher.hexdigest()


def _own() -> set[str]:
    return {path.stem for path in HERE.glob("[!_]*.py")}


def _outside() -> dict[str, EntryPoint]:
    return _offered(tuple(sys.path))


@functools.cache
def _offered(_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What packages on the path offer; looked up once, since that reads a file of every installed package."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> Transform[Any]:
    # Whatever somebody else's module raises while it is imported is theirs, and is told as such.
    try:
        found = entry.load()
    except Exception as error:
        raise _broken(entry, f"does not load ({type(error).__name__}: {error})") from error
    if not isinstance(found, Transform):
        raise _broken(entry, f"is a {type(found).__name__}, not a mreg.registry.transform.Transform")
    if found.name != entry.name:
        raise _broken(entry, f"calls itself {found.name!r}: the module that defines `run` must carry the name")
    return found


def _broken(entry: EntryPoint, why: str) -> BrokenTransform:
    return BrokenTransform(
        f"the transform {entry.name!r} ({entry.value}) {why}", fix=f"update or uninstall {_package(entry)}"
    )


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "the package that brings it"
