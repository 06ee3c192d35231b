"""Where a registry is on disk and what its config.toml says."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mreg.registry import files
from mreg.registry.errors import MregError

NAME = ".mreg"
FORMAT = 1


class NoRegistry(MregError):
    """There is no registry where one was looked for."""

    exit_code = 3


class AlreadyThere(MregError):
    """A registry is already where one was to be made."""

    exit_code = 3


class BadPlace(MregError):
    """A registry cannot be in a folder of this name."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Config:
    """What config.toml holds."""

    id: str
    format: int
    backend: str


@contextmanager
def created(directory: Path, *, registry_id: str) -> Iterator[Path]:
    """A new registry inside `directory`, under a hidden name; it gets its own when it was filled without an error.

    Raises AlreadyThere.
    """
    _check_place(directory)
    with files.disk_errors():
        if (directory / NAME).exists():
            raise _already_there(directory)
        directory.mkdir(parents=True, exist_ok=True)
        root = directory / f".mreg.{registry_id}"
        try:
            root.mkdir()
            (root / "objects").mkdir()
            (root / "tmp").mkdir()
            text = f'# Written by `mreg init`.\nid = "{registry_id}"\nformat = {FORMAT}\nbackend = "duckdb"\n'
            files.replace(root / "config.toml", text.encode())
            yield root
            _publish(root, directory / NAME)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise


def _publish(root: Path, final: Path) -> None:
    try:
        root.rename(final)
    except OSError as error:
        if final.exists():
            raise _already_there(final.parent) from error
        raise
    files.sync_directory(final.parent)


def _already_there(directory: Path) -> AlreadyThere:
    return AlreadyThere(
        f"there is a registry in {directory.absolute()} already", fix="use it, or choose another folder"
    )


def _check_place(directory: Path) -> None:
    if "?" in str(directory.absolute()):
        raise BadPlace(
            f"{directory.absolute()} has a question mark in its name, which DuckDB takes for the end of a path",
            fix="choose or rename the folder",
        )


def find(place: Path | str | None) -> Path:
    """The `.mreg` folder of `place`, or of the nearest folder above the working directory. Raises NoRegistry."""
    if place is not None:
        if "://" in str(place):
            raise NoRegistry(
                f"{place} is not a folder", fix="give the folder that holds .mreg; servers are not supported yet"
            )
        given = Path(place)
        root = given if given.name == NAME else given / NAME
        if not (root / "config.toml").is_file():
            raise NoRegistry(f"there is no registry in {given}", fix=f"make one with `mreg init {given}`")
        return root
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / NAME / "config.toml").is_file():
            return folder / NAME
    raise NoRegistry(
        f"there is no registry in {here} or above it", fix="make one with `mreg init`, or name one with --registry"
    )


def read(root: Path) -> Config:
    """The registry's config. Raises NoRegistry when it is not one that this mreg can use, and BadPlace."""
    _check_place(root)
    try:
        fields = tomllib.loads((root / "config.toml").read_text(encoding="utf-8"))
        config = Config(id=str(fields["id"]), format=int(fields["format"]), backend=str(fields["backend"]))
    except (ValueError, KeyError, TypeError) as error:
        raise NoRegistry(
            f"{root / 'config.toml'} cannot be read ({error})", fix="restore it: id, format and backend"
        ) from error
    if config.format != FORMAT or config.backend != "duckdb":
        what = f"format {config.format}, backend {config.backend}"
        raise NoRegistry(
            f"{root} is a registry of another kind ({what})", fix="use the mreg that made it, or a newer one"
        )
    return config
