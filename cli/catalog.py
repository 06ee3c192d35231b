"""The transforms as the command line shows them, with or without a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mreg.cli import params
from mreg.registry.engines import load_engine
from mreg.registry.errors import MregError
from mreg.registry.transform import Engine, Input, Transform


def engine() -> Engine:
    """What finds transforms; nothing is run with it, so it needs no registry."""
    return load_engine("local", state=Path(".mreg"))


def described(transform: Transform[Any]) -> dict[str, Any]:
    """A transform for `--json`."""
    return {
        "name": transform.name,
        "summary": transform.summary,
        "inputs": [
            {
                "role": one.role,
                "help": one.help,
                "many": one.many,
                "takes": one.takes,
                "derived": one.derived,
                "optional": one.optional,
            }
            for one in transform.inputs
        ],
        "data": transform.datasets,
        "determinism": transform.determinism,
        "version": transform.version,
        "params": params.describe(transform.params),
    }


def summaries() -> Iterator[tuple[str, str]]:
    """Every transform and its first line; for one that does not load, why."""
    found = engine()
    for name in found.names():
        try:
            yield name, found.find(name).summary
        except MregError as error:
            yield name, f"does not load: {error.message}"


def inputs(transform: Transform[Any]) -> Iterator[tuple[str, str]]:
    """How each input is named on the command line, and what it is."""
    for place, one in enumerate(transform.inputs):
        if one.derived:
            continue
        what = one.help + _how_many(one) + _takes(one)
        yield ("--from REV", what) if place == 0 else (f"--with {one.role}=REV", what)
    if transform.datasets != "none":
        yield (
            "--data FILE|NAME",
            "rows to work with" + (" (may be left out)" if transform.datasets == "optional" else ""),
        )


def determinism(transform: Transform[Any]) -> str:
    """What the determinism class promises, in a sentence."""
    more = "; for some settings more, which --dry-run tells" if transform.promise else ""
    promised = {
        "exact": "exact: the same bytes on any machine",
        "same-machine": "same-machine: the same weights for the same threads, packages and kind of CPU",
        "statistical": "statistical: the same quality, not the same bits",
    }[transform.determinism]
    return promised + more


def _how_many(one: Input) -> str:
    if one.optional:
        return ", any number" if one.many else ", may be left out"
    return ", one or more" if one.many else ""


def _takes(one: Input) -> str:
    return {"model": "", "adapter": " (an adapter)", "any": " (a model or an adapter)"}[one.takes]
