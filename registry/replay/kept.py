"""What a replay that was stopped leaves, so that it can go on: the steps that were judged and the outputs still needed.

`.mreg/replays/<id>/` is held by a lock as long as somebody works in it, and removed when the replay ends. What is in it
is believed only as far as it can be checked: the same plan, code and environment, and outputs with the same digests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mreg.registry import canonical, files
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.log.events import StepJudged
from pydantic import ValidationError

FOLDER = "replays"
STATE = "state.json"


@dataclass(frozen=True)
class KeptStep:
    """A step that was judged. `place` names its folder, `output` is the version digest of what is still in it.

    `data` maps recorded datasets to what was made in their place. `environment` is that of the work and `code` the
    digest of what did it; both are empty for a step that was not attempted.
    """

    judged: StepJudged
    place: int
    code: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    output: Digest | None = None
    data: Mapping[Digest, Digest | None] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptReplay:
    """A replay as far as it has come. `asked` is what it was asked to do (JSON)."""

    replay: str
    asked: dict[str, Any]
    steps: tuple[KeptStep, ...] = ()

    def save(self, folder: Path) -> None:
        """Write it down in the replay's folder, whole or not at all."""
        steps = [
            {
                "judged": step.judged.model_dump(mode="json"),
                "place": step.place,
                "code": step.code,
                "environment": dict(step.environment),
                "output": step.output,
                "data": dict(step.data),
            }
            for step in self.steps
        ]
        with files.disk_errors(folder):
            state: dict[str, Any] = {"replay": self.replay, "asked": self.asked, "steps": steps}
            files.replace(folder / STATE, canonical.dumps(state))


def asked_otherwise(kept: KeptReplay, asked: Mapping[str, Any]) -> str | None:
    """In what a kept replay was asked for something else than `asked`; None when it is the same."""
    before, now = kept.asked, json.loads(canonical.dumps(dict(asked)))
    name = next((name for name in now if before.get(name) != now[name]), None)
    if name is None:
        return None
    if name == "steps":
        return "its plan has other steps"
    return f"--{name.replace('_', '-')} was {before.get(name)}, is {now[name]}"


@contextmanager
def working(root: Path, replay: str) -> Iterator[Path]:
    """The folder of a replay, ours while inside. It stays when the block is left by an exception."""
    folder = root / FOLDER / replay
    lock = FileLock(folder.with_suffix(".lock"))
    with files.disk_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Refused("another process goes on with this replay", fix="wait until it has ended") from error
        folder.mkdir(exist_ok=True)
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def kept(root: Path, version: Digest) -> list[tuple[Path, KeptReplay]]:
    """The stopped replays of a version that nobody works on, the newest first."""
    found = []
    for path in (root / FOLDER).glob("*"):
        if path.is_dir() and not _is_held(path) and (one := _read(path)) is not None:
            found.append(((path / STATE).stat().st_mtime_ns, path, one))
    mine = [(path, one) for _, path, one in sorted(found, key=lambda entry: entry[0], reverse=True)]
    return [(path, one) for path, one in mine if one.asked.get("version") == version]


def forget(root: Path, version: Digest) -> None:
    """Remove what stopped replays of a version left, and what is in no state to go on."""
    of_it = {path for path, _ in kept(root, version)}
    for path in (root / FOLDER).glob("*"):
        if path in of_it or (path.is_dir() and not _is_held(path) and _read(path) is None):
            shutil.rmtree(path, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    lock = folder.with_suffix(".lock")
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _read(folder: Path) -> KeptReplay | None:
    try:
        state = json.loads((folder / STATE).read_bytes())
        steps = tuple(
            KeptStep(**{**step, "judged": StepJudged.model_validate(step["judged"])}) for step in state["steps"]
        )
        return KeptReplay(str(state["replay"]), dict(state["asked"]), steps)
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
