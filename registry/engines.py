"""Finding what runs transforms: engines are plug-ins, so the registry knows none of them by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from mreg.registry.errors import MregError
from mreg.registry.transform import Engine

GROUP = "mreg.engines"


class UnknownEngine(MregError):
    """No installed package provides this engine."""

    exit_code = 12


def load_engine(name: str, *, state: Path) -> Engine:
    """The engine called `name`, keeping what it needs between runs in `state`. Raises UnknownEngine."""
    for point in entry_points(group=GROUP, name=name):
        engine: Engine = point.load()(state=state)
        return engine
    known = ", ".join(sorted(point.name for point in entry_points(group=GROUP)))
    raise UnknownEngine(f"no engine is called {name!r}", fix=f"there are: {known or 'none; install mreg again'}")
