"""Checkpoints of steps that did not finish: where they lie, which one a step can go on from, and when they go.

`.mreg/checkpoints/<step key>/checkpoint-<N>/` is there whole or not at all: it is written elsewhere, sealed with the
digests of its files, and renamed to its place. A step keeps its newest one only, and none once it has finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import canonical, digests, files
from mreg.registry.errors import MregError, Refused
from mreg.registry.replay.verdict import differences

if TYPE_CHECKING:
    from mreg.registry.registry import Registry
    from mreg.registry.runs.steps import Ready

FOLDER = "checkpoints"
SEAL = "checkpoint.json"
_CHUNK = 1 << 20


class NoCheckpoint(MregError):
    """A step was to go on from a checkpoint, and it has none."""

    exit_code = 4


@dataclass(frozen=True)
class Checkpoint:
    """Where a step had come to: `step` of `steps` optimizer steps, in the run `run`, by this code on this machine.

    `files` maps names to their sizes in bytes and their digests; `more` is the transform's own (JSON).
    """

    path: Path
    run: str
    step: int
    steps: int
    code: str
    environment: dict[str, Any]
    files: dict[str, tuple[int, str]]
    more: dict[str, Any]

    @property
    def bytes(self) -> int:
        """What it takes up."""
        return sum(size for size, _ in self.files.values())

    def is_sound(self) -> bool:
        """Whether every file is what it was when the checkpoint was sealed."""
        return all(_sized(self.path / name) == expected for name, expected in self.files.items())


def home(root: Path, key: str) -> Path:
    """The folder of a step's checkpoints."""
    return root / FOLDER / key


def seal(
    folder: Path,
    at: Path,
    *,
    run: str,
    step: int,
    steps: int,
    code: str,
    environment: dict[str, Any],
    more: dict[str, Any],
) -> Checkpoint:
    """Move a finished `folder` to its place in `at`, durably and whole, instead of what was there.

    `folder` lies on the same file system. A process that is killed meanwhile leaves what was there, or the new one.
    """
    with files.disk_errors(at):
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        found = {name: _sized(folder / name, durably=True) for name in names if name != SEAL}
        about: dict[str, Any] = {"run": run, "step": step, "steps": steps, "code": code, "files": found}
        files.replace(folder / SEAL, canonical.dumps({**about, "environment": environment, "more": more}))
        at.mkdir(parents=True, exist_ok=True)
        place = at / f"checkpoint-{step}"
        if place.exists():
            place.rename(folder.with_name(f"former-{folder.name}"))
        folder.rename(place)
        files.sync_directory(at)
        for other in at.iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
    return Checkpoint(place, run, step, steps, code, environment, found, more)


def read(path: Path) -> Checkpoint | None:
    """What a sealed folder says of itself; None for anything else."""
    try:
        told = json.loads((path / SEAL).read_bytes())
        found = {name: (int(size), str(digest)) for name, (size, digest) in told["files"].items()}
        about = {name: told[name] for name in ("run", "step", "steps", "code", "environment", "more")}
        return Checkpoint(path=path, files=found, **about)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest(root: Path, key: str) -> Checkpoint | None:
    """The checkpoint of the step with this key that has come furthest. Its files are not read."""
    found = [one for path in home(root, key).glob("checkpoint-*") if (one := read(path)) is not None]
    return max(found, key=lambda one: one.step, default=None)


def of_step(registry: Registry, ready: Ready) -> Checkpoint | None:
    """The newest checkpoint of a step, None if it was written by other code."""
    found = newest(registry.root, ready.key)
    return found if found is not None and found.code == ready.code else None


def to_go_on(registry: Registry, ready: Ready) -> Checkpoint:
    """The checkpoint from which `ready` ends in the same bytes as without one. Raises NoCheckpoint and Refused."""
    found = newest(registry.root, ready.key)
    over = "leave --resume out to start over"
    if found is None:
        raise NoCheckpoint(f"there is no checkpoint of this very step of {ready.transform.name}", fix=over)
    where = f"the checkpoint at step {found.step} of {found.steps}"
    if found.code != ready.code:
        raise Refused(f"{where} was written by other code of {ready.transform.name}", fix=over)
    now = registry.engine.environment(threads=ready.threads, portable=ready.portable, device=ready.device)
    if changed := differences(found.environment, now):
        name, (before, after) = next(iter(changed.items()))
        raise Refused(f"{where} was written under other conditions: {name} was {before}, is {after}", fix=over)
    if not found.is_sound():
        raise Refused(f"{where} is damaged", fix=over)
    return found


def forget(root: Path, key: str) -> None:
    """Remove the checkpoints of a step that has finished."""
    shutil.rmtree(home(root, key), ignore_errors=True)


def kept(root: Path) -> Iterator[Checkpoint]:
    """Every checkpoint there is."""
    for path in sorted((root / FOLDER).glob("*/checkpoint-*")):
        if (one := read(path)) is not None:
            yield one


def _sized(path: Path, *, durably: bool = False) -> tuple[int, str]:
    """The size and the digest of a file, (0, "") when there is none."""
    hasher = digests.file_hasher()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
            if durably:
                os.fsync(file.fileno())
            return file.tell(), hasher.hexdigest()
    except FileNotFoundError:
        return 0, ""
