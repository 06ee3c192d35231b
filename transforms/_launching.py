"""Several processes for one job on this machine, started by torchrun or by accelerate: their messages and their end."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from mreg.registry.transform import Job

LOG = "log.txt"


def command(job: Job, path: Path) -> list[str]:
    """What starts the job whose file is at `path`. Ports are those that are free, on the loopback interface."""
    # `-P`: nothing is imported from the working directory.
    python = [sys.executable, "-P", "-m"]
    rank = [*python, "mreg.transforms._launch", str(path)]
    count = str(job.processes)
    if job.launcher == "torchrun":
        own = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", count, "--no-python"]
        return [*python, "torch.distributed.run", *own, *rank]
    if job.launcher == "accelerate":
        settled = {
            "num_processes": count,
            "num_machines": "1",
            "num_cpu_threads_per_process": str(job.threads),
            "mixed_precision": "no",
            "dynamo_backend": "no",
            "main_process_port": "0",
        }
        options = [word for name, value in settled.items() for word in (f"--{name}", value)]
        # Without --multi_gpu it starts a single process, on CPUs too; what is used is the job's to say.
        return [*python, "accelerate.commands.launch", "--multi_gpu", *options, "--no_python", *rank]
    return rank


@contextlib.contextmanager
def launched(job: Job, path: Path, variables: Mapping[str, str]) -> Iterator[Iterator[dict[str, Any]]]:
    """Start the job whose file is at `path` and give its messages; leaving ends whatever still runs.

    `variables` are its environment. What it prints goes into `log.txt` beside the job's file.
    """
    log = path.with_name(LOG)
    with open(log, "ab") as printed:
        process = subprocess.Popen(  # noqa: S603 these are our own words
            command(job, path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            cwd=path.parent,
            # What launchers leave in a temporary folder goes with the job's.
            env={**variables, "TMPDIR": str(path.parent), **_loopback()},
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    # Ranks read our pipe and not the launcher's: should that be killed alone, its end ends them too.
    guard = threading.Thread(target=_close_after, args=[process, process.stdin], daemon=True)
    guard.start()
    try:
        yield _messages(process, process.stdout, log)
    finally:
        _close(process.stdin)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        guard.join()
        process.stdout.close()


def _messages(process: subprocess.Popen[bytes], out: IO[bytes], log: Path) -> Iterator[dict[str, Any]]:
    failed = None
    for line in out:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # Blank, or half a line of a process that was killed.
        if not isinstance(message, dict):
            continue
        if "failed" in message:
            # When one fails the others do, because they miss it.
            failed = failed or message["failed"]
        else:
            yield message
    status = process.wait()
    if failed or status:
        # One that was killed says nothing itself, only that those who miss it fail.
        yield {"failed": _killed(log) or failed or _died(status)}


def _killed(log: Path) -> str | None:
    """Which of several processes was killed, which launchers tell only in what they print."""
    printed = log.read_text(encoding="utf-8", errors="replace")
    for signal, rank in re.findall(r"exitcode: -(\d+)\) local_rank: (\d+)", printed):
        if signal != "15":  # That is how a launcher ends the others.
            return f"process {rank} was {_died(-int(signal))}"
    return None


def _died(status: int) -> str:
    if status < 0:
        return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"it ended with exit status {status}"


def _loopback() -> dict[str, str]:
    """Where processes of one machine meet: gloo would look the host's name up, which not every host can."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


def _close_after(process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
    process.wait()
    _close(pipe)


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        pipe.close()
