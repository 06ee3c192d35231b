"""One job on a machine of a Ray cluster: it arrives or is found there, is run in a process of its own, and goes back.

The process of Ray itself does none of the work: it has imported what it likes, with threads as they were. When it is
gone the job's process ends too, for it reads the end of a pipe.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from mreg.registry.runs import scratch
from mreg.registry.transform import Job
from mreg.transforms import _catalog, _environment, _launching

PATIENCE = 1.0
"""Seconds after which `hear` answers though there is nothing new, so that other calls get their turn."""


class Worker:
    """What Ray makes an actor of: one for each job."""

    def __init__(self) -> None:
        self._ends = contextlib.ExitStack()
        self._folder = Path()
        self._heard: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def about(self, transform: str) -> dict[str, str]:
        """The name of this machine, and the digest of the source that `transform` runs here."""
        return {"host": platform.node(), "code": _catalog.code(transform)}

    def finds(self, path: str, text: str) -> bool:
        """Whether the job file at `path` is there, and the same: then its folder is, and nothing has to travel."""
        file = Path(path)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            return False
        self._folder = file.parent
        return True

    def make_room(self, name: str) -> None:
        """Make a folder for the job to travel to; those of jobs whose process is gone are removed."""
        root = Path(tempfile.gettempdir()) / f"mreg-{os.getuid()}"
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise PermissionError(f"{root} belongs to somebody else")
        (root / "tmp").mkdir(exist_ok=True)
        scratch.sweep(root)
        self._folder = self._ends.enter_context(scratch.scratch(root, name))

    def take(self, name: str, part: bytes) -> None:
        """Put the next bytes of a file at its end."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(part)

    def start(self, text: str) -> None:
        """Start the job; relative paths in it are those of the folder that was made for it."""
        job = Job.model_validate_json(text)
        folder = self._folder
        job = job.model_copy(
            update={
                "inputs": tuple(one.model_copy(update={"path": folder / one.path}) for one in job.inputs),
                "datasets": tuple(one.model_copy(update={"path": folder / one.path}) for one in job.datasets),
                "output": folder / job.output,
            }
        )
        path = folder / "job.json"
        path.write_text(job.model_dump_json(indent=2) + "\n", encoding="utf-8")
        variables = _environment.variables(
            os.environ, state=folder / "state", threads=job.threads, portable=job.portable
        )
        messages = self._ends.enter_context(_launching.launched(job, path, variables))

        def listen() -> None:
            for message in messages:
                self._heard.put(message)
            self._heard.put(None)

        threading.Thread(target=listen, daemon=True).start()

    def hear(self) -> tuple[list[dict[str, Any]], bool]:
        """What the job has said since, and whether that is all; waits a moment where there is nothing."""
        said: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            message = self._heard.get(timeout=PATIENCE)
            while message is not None:
                said.append(message)
                message = self._heard.get_nowait()
            return said, True
        return said, False

    def left(self) -> list[tuple[str, int]]:
        """The files that the job left to be taken back, with their sizes."""
        found = [self._folder / _launching.LOG]
        for name in ("output", "made"):
            found += sorted((self._folder / name).rglob("*"))
        return [(str(path.relative_to(self._folder)), path.stat().st_size) for path in found if path.is_file()]

    def give(self, name: str, start: int, size: int) -> bytes:
        """So many bytes of a file."""
        with open(self._folder / name, "rb") as file:
            file.seek(start)
            return file.read(size)

    def end(self) -> None:
        """End the job, should it still run, and remove the folder that was made for it."""
        self._ends.close()
