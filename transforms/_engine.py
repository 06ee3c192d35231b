"""The engine that runs jobs in child processes of this machine, so that a crash or a Ctrl-C never takes the log along.

It keeps fork servers for every (threads, portable): the bits depend on both, and they can only be set before torch
is imported. A server does one job at a time; where several threads ask for one at once, each gets a server of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mreg.registry import signals
from mreg.registry.errors import MregError
from mreg.registry.transform import Job, Outcome, Progress, Report, Transform
from mreg.transforms import _catalog, _environment, _launching, _ray

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_Key = tuple[int, bool, int]

GRACE = 60.0
"""Seconds that a training which was stopped has to end its step and to write a checkpoint."""


class EngineBroken(MregError):
    """The child process that runs transforms does not start."""

    exit_code = 12


class LocalEngine:
    """Finds transforms and runs their jobs here.

    `state` is a private folder: what libraries cache goes there, not into the user's home. A job's `job.json` and
    `log.txt` stand beside its output folder. Servers start on first use and end with `close`, with the `with` block
    or with this process, however that ends.
    """

    def __init__(self, *, state: Path) -> None:
        self.state = state.absolute()
        # By threads, portable, and which of several of the kind.
        self._servers: dict[_Key, _Server] = {}
        self._taken: set[_Key] = set()
        self._choosing = threading.Lock()
        self._clusters: dict[str, _ray.Cluster] = {}
        self._finalizer = weakref.finalize(self, _end_all, self._servers, self._clusters)

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def names(self) -> list[str]:
        """Every transform there is, sorted."""
        return _catalog.names()

    def find(self, name: str) -> Transform[Any]:
        """The transform called `name`. Raises UnknownTransform with the nearest names, or BrokenTransform."""
        return _catalog.find(name)

    def broken(self) -> dict[str, str]:
        """The names of outside transforms that cannot be used, and why."""
        return _catalog.broken()

    def code(self, name: str) -> str:
        """The digest of the source that `name` runs."""
        return _catalog.code(name)

    def check_place(self, place: str) -> None:
        """Refuse a place other than `ray` and `ray://host:port`, and these where Ray is not installed."""
        _ray.check_place(place)

    def load(self, base: Path, adapter: Path, **options: Any) -> PreTrainedModel | PeftModel:
        """The model in the folder `base` with an adapter of any kind on it, and with the head that it brings."""
        from mreg.transforms._adapter import load_adapted

        model: PreTrainedModel | PeftModel = load_adapted(base, adapter, **options)
        return model

    def environment(self, *, threads: int, portable: bool, device: str) -> dict[str, Any]:
        """What a job would run under here and now, in the same terms as `Outcome.environment`."""
        described: dict[str, Any] = {}
        with self._asking(threads, portable) as server:
            for message in server.ask({"environment": {"threads": threads, "device": device}}):
                if "environment" in message:
                    described = message["environment"]
        if not described:
            raise EngineBroken(f"the device {device!r} does not work here", fix="leave the device at `auto`")
        return described

    def run(self, job: Job, report: Report) -> Outcome:
        """Do the work in a child process. Raises KeyboardInterrupt after having ended the child.

        One that keeps checkpoints is let write one first, unless it takes more than GRACE or Ctrl-C comes again.
        """
        assert job.output.is_absolute(), "a child works in another folder"
        path, log = job.output.with_name("job.json"), job.output.with_name("log.txt")
        path.write_text(job.model_dump_json(indent=2) + "\n", encoding="utf-8")

        facts: dict[str, Any] = {}
        environment: dict[str, Any] = {}
        error: str | None = "it ended without a result"
        stopping = threading.Event()

        def stopped() -> None:
            stopping.set()
            report(Progress(0, 0, "writing a checkpoint; Ctrl-C again stops at once"))

        with self._answers(job, path, stopped) as messages:
            start = time.perf_counter()
            try:
                for message in messages:
                    if "progress" in message:
                        if not stopping.is_set():
                            report(Progress(*message["progress"]))
                    elif "environment" in message:
                        environment = message["environment"]
                    elif "finished" in message:
                        facts, error = message["finished"], None
                    elif "failed" in message:
                        error = message["failed"]
                    elif message.get("ended"):
                        error = _died(message["ended"])
            except EngineBroken as broken:
                error = str(broken)
        return Outcome(
            facts=facts,
            environment=environment,
            wall_s=time.perf_counter() - start,
            error=error,
            log=log if log.exists() else None,
        )

    def interrupt(self) -> None:
        """End what other threads run here in a single process: each is told that its child ended without a result."""
        with self._choosing:
            for key in self._taken & self._servers.keys():
                self._servers[key].terminate()

    def close(self) -> None:
        """End the servers, and what they run. The engine may be used again afterwards."""
        _end_all(self._servers, self._clusters)

    @contextlib.contextmanager
    def _answers(self, job: Job, path: Path, stopped: Callable[[], None]) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages of a job, from whatever is to run it; leaving early ends it.

        `stopped` is called when it was told to stop and goes on until it has written a checkpoint.
        """
        if job.place is not None:
            with self._cluster(job.place).running(job, path) as messages:
                yield messages
        elif job.processes > 1:
            variables = _environment.variables(os.environ, state=self.state, threads=job.threads, portable=job.portable)
            with _launching.launched(job, path, variables) as messages:
                yield messages
        else:
            with (
                self._asking(job.threads, job.portable) as server,
                server.stoppable(stopped) if job.checkpoints else contextlib.nullcontext(),
            ):
                yield server.ask({"job": str(path)})

    def _cluster(self, address: str) -> _ray.Cluster:
        """The cluster of this address; a process is connected to one at a time."""
        for other in self._clusters.keys() - {address}:
            self._clusters.pop(other).close()
        return self._clusters.setdefault(address, _ray.Cluster(address))

    @contextlib.contextmanager
    def _asking(self, threads: int, portable: bool) -> Iterator[_Server]:
        with self._choosing:
            key = next(key for n in itertools.count() if (key := (threads, portable, n)) not in self._taken)
            self._taken.add(key)
        try:
            if key in self._servers and not self._servers[key].is_alive():
                self._servers.pop(key).end()
            if key not in self._servers:
                self._servers[key] = _Server(
                    _environment.variables(os.environ, state=self.state, threads=threads, portable=portable)
                )
            try:
                yield self._servers[key]
            except BaseException:
                # Interrupted in the middle of an answer it is of no further use, and its child must end.
                if self._servers[key].is_busy:
                    self._servers.pop(key).end()
                raise
        finally:
            with self._choosing:
                self._taken.discard(key)


class _Server:
    """Our end of one fork server."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.is_busy = False
        self._is_ending = False
        self._lock = threading.Lock()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the server
        # A session of its own: Ctrl-C in the terminal is for us to handle. `-P`: nothing is imported from the cwd.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mreg.transforms._server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            start_new_session=True,
        )
        try:
            first = self._next()
        except BaseException:
            # It is still importing and hears nothing, and has no child yet that could be left behind.
            self._process.kill()
            self.end()
            raise
        if "broken" in first:
            self.end()
            raise EngineBroken(
                f"transforms cannot run: {first['broken']}",
                fix="reinstall mreg with its dependencies: `pip install mreg`",
            )

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What the server sends until the child that it forked for `request` has ended."""
        with self._lock:
            self.is_busy = True
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # Then `_next` tells why.
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
            while self.is_busy:
                message = self._next()
                self.is_busy = "ended" not in message
                yield message

    @contextlib.contextmanager
    def stoppable(self, stopped: Callable[[], None]) -> Iterator[None]:
        """Pass the first Ctrl-C or SIGTERM on to the running child, and raise it when that has ended."""
        patience = threading.Timer(GRACE, self._signal, [signal.SIGKILL])
        patience.daemon = True

        def stop() -> None:
            self._signal(signal.SIGTERM)
            patience.start()
            stopped()

        try:
            with signals.once(stop):
                yield
        finally:
            patience.cancel()

    def _signal(self, number: int) -> None:
        assert self._process.stdin is not None
        # Past the buffer: the main thread may be in the middle of filling it.
        with contextlib.suppress(OSError, ValueError):
            os.write(self._process.stdin.fileno(), json.dumps({"stop": number}).encode() + b"\n")

    def terminate(self) -> None:
        """Let it end its child and itself; whoever waits for its answer hears that it ended."""
        self._is_ending = True
        self._process.terminate()

    def is_alive(self) -> bool:
        """Whether it can be asked anything. One that was told to end may still be there for a moment."""
        return not self._is_ending and self._process.poll() is None

    def end(self) -> None:
        """Kill the running child, if any, and wait for the server to be gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                continue  # Blank, or half a line of a child that was killed: the end of that child follows.
            return message
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        raise EngineBroken(
            f"the process that runs transforms ended by itself ({said[-1] if said else 'it said nothing'})",
            fix="try again; if it was out of memory, with fewer programs open",
        )


def _end_all(servers: dict[_Key, _Server], clusters: dict[str, _ray.Cluster]) -> None:
    while servers:
        servers.popitem()[1].end()
    while clusters:
        clusters.popitem()[1].close()


def _died(status: int) -> str:
    if status < 0:
        return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"it ended with exit status {status}"
