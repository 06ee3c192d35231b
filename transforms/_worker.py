"""One job in a forked child: settle what the bits depend on, run the transform, judge what it left."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from mreg.registry import canonical
from mreg.registry.errors import MregError
from mreg.registry.transform import Job, Progress
from mreg.transforms import _catalog, _environment, _ranks
from mreg.transforms._server import Send

LOG = "log.txt"


class NoOutput(MregError):
    """A transform ended without an error and without a model."""

    exit_code = 6


def answer(request: dict[str, Any], send: Send) -> None:
    """Do what one line from the parent asks for, and send what came of it."""
    if "environment" in request:
        asked = request["environment"]
        device = _environment.resolve(asked["device"])
        send({"environment": _environment.describe(threads=asked["threads"], device=device)})
        return
    path = Path(request["job"])
    _redirect(path.with_name(LOG))
    os.chdir(path.parent)
    os.environ["TMPDIR"] = tempfile.tempdir = str(path.parent)  # What is left there goes with the job's folder.
    os.umask(0o022)
    try:
        job = Job.model_validate_json(path.read_text(encoding="utf-8"))
        job = _ranks.own(job.model_copy(update={"device": _environment.resolve(job.device)}))
        environment = _environment.describe(threads=job.threads, device=job.device)
        if job.processes > 1:
            environment |= {"processes": job.processes, "launcher": job.launcher}
        send({"environment": environment})
        send({"finished": _work(job, environment, send)})
    except Exception as error:
        traceback.print_exc()
        send({"failed": reason(error)})


def reason(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, MregError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _work(job: Job, environment: dict[str, Any], send: Send) -> dict[str, Any]:
    transform = _catalog.find(job.transform)
    params = transform.params.model_validate(job.params)
    if transform.surroundings is not None:
        send({"environment": {**environment, **transform.surroundings(params)}})
    job.output.mkdir(parents=True, exist_ok=True)
    assert not any(job.output.iterdir()), "the output folder must be new"
    _settle(job)

    def report(progress: Progress) -> None:
        send({"progress": [progress.done, progress.total, progress.note]})

    facts = transform.run(job, params, report)
    canonical.dumps(facts)  # Raises where a fact is no JSON or not a number, before anybody relies on it.
    files = [path for path in job.output.rglob("*") if path.is_file()]
    if not files:
        raise NoOutput(f"{job.transform} ended without writing any file", fix="this is a bug of the transform")
    for file in files:
        file.chmod(0o644)  # Some libraries save with 0600.
    return facts


def _settle(job: Job) -> None:
    import numpy
    import torch

    random.seed(job.seed)
    numpy.random.seed(job.seed % 2**32)
    torch.manual_seed(job.seed)
    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    if job.device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=True)


def _redirect(log: Path) -> None:
    with open(log, "ab", buffering=0) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
