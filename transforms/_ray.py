"""A Ray cluster as a place to run jobs: one of this machine, started when needed, or one that is there (`ray://…`).

A job is run there as it is here, by the same code in a process with the same fixed environment, so that the same comes
out. It travels in parts, unless the worker sees our files; no part is larger than what an object store has room for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError
from mreg.registry.transform import BadParams, Job
from mreg.transforms import _catalog, _check

HERE = "ray"
PART = 4 << 20
"""Bytes of a file that travel at once."""

STORE = 100 << 20
"""Bytes of shared memory for the object store of a cluster of our own: parts are let go of as soon as they are read."""


class NoCluster(MregError):
    """A Ray cluster cannot be reached, or has no machine for a job."""

    exit_code = 12


def check_place(place: str) -> None:
    """Refuse what is no address of Ray, and any where Ray is not installed."""
    if place != HERE and not re.fullmatch(r"ray://[^\s/:]+:\d+", place):
        raise BadParams(f"jobs cannot be run on {place!r}", fix="say ray, or ray://host:port for a cluster")
    for package in ("ray",) if place == HERE else ("ray", "grpc"):
        _check.needs(package, "ray", f"--on {place}")


class Cluster:
    """A connection to a cluster, made by the first job. `shares_files` says whether workers see our files, if known."""

    def __init__(self, address: str, *, shares_files: bool | None = None) -> None:
        self.address = address
        self._shares_files = shares_files
        self._is_ours = False

    def close(self) -> None:
        """Leave the cluster, or end it if it was started for us."""
        if self._is_ours:
            import ray

            ray.shutdown()
            self._is_ours = False

    @contextlib.contextmanager
    def running(self, job: Job, path: Path) -> Iterator[Iterator[dict[str, Any]]]:
        """Send the job whose file is at `path` and give its messages, the last after its output is back.

        Leaving ends it. Raises NoCluster.
        """
        import ray

        self._connect()
        cpus, gpus = self._wanted(job)
        from mreg.transforms._ray_worker import Worker

        worker: Any = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus).remote()
        try:
            yield self._messages(worker, job, path)
        finally:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(worker.end.remote(), timeout=20)
            ray.kill(worker)

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        own: dict[str, Any] = {"address": self.address}
        if self.address == HERE:
            # Ray would otherwise tell its makers of every cluster that is started.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            own = {"address": "local", "num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE}
        try:
            with warnings.catch_warnings(action="ignore"):
                ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            there = "see that it runs, and set RAY_AUTH_MODE=token if it asks for a token"
            fix = "try again" if self.address == HERE else there
            raise NoCluster(f"{self.address} cannot be reached: {said}", fix=fix) from error
        self._is_ours = True

    def _wanted(self, job: Job) -> tuple[int, int]:
        """The CPUs and GPUs to ask for. Raises NoCluster where no machine has them, for which Ray would wait for ever.

        A cluster of this machine alone has nobody else to be shared with.
        """
        import ray

        nodes: Any = ray.nodes
        machines = [node["Resources"] for node in nodes() if node["Alive"]]
        cpus = 0 if self.address == HERE else job.threads * job.processes
        most = max((machine.get("GPU", 0) for machine in machines), default=0)
        wants_gpu = job.device.startswith("cuda") or (job.device == "auto" and most >= job.processes)
        gpus = job.processes if wants_gpu else 0
        if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
            what = f"{cpus} CPUs" + f" and {gpus} GPUs" * bool(gpus)
            raise NoCluster(f"no machine of {self.address} has {what}", fix="lower --threads or --processes")
        return cpus, gpus

    def _messages(self, worker: Any, job: Job, path: Path) -> Iterator[dict[str, Any]]:
        import ray

        try:
            about = ray.get(worker.about.remote(job.transform))
            if about["code"] != _catalog.code(job.transform):
                yield {"failed": f"{about['host']} has other code for {job.transform}: install the same mreg there"}
                return
            shared = self._shares_files
            if shared is None:
                shared = ray.get(worker.finds.remote(str(path), path.read_text(encoding="utf-8")))
            if shared:
                ray.get(worker.finds.remote(str(path), path.read_text(encoding="utf-8")))
                ray.get(worker.start.remote(job.model_dump_json()))
            elif job.checkpoints and (job.checkpoints.save_steps or job.checkpoints.resume):
                yield {"failed": f"{about['host']} does not see our checkpoints: leave --save-steps and --resume out"}
                return
            else:
                _send(worker, job)
            where = {"on": self.address, "ray": ray.__version__, "host": about["host"]}
            over = False
            while not over:
                said, over = ray.get(worker.hear.remote())
                if over and not shared:
                    _take_back(worker, path.parent)
                for message in said:
                    if "environment" in message:
                        message["environment"] |= where
                    yield message
        except ray.exceptions.RayError as error:
            yield {"failed": f"{self.address}: {_why(error)}"}


def _send(worker: Any, job: Job) -> None:
    """Let the inputs travel, and start the job on them."""
    import ray

    ray.get(worker.make_room.remote(job.id))
    inputs, datasets = [], []
    for place, one in enumerate(job.inputs):
        name = Path("inputs") / f"{place}-{one.role}"
        for file in sorted(one.path.rglob("*")):
            if file.is_file():
                _send_file(worker, file, str(name / file.relative_to(one.path)))
        inputs.append(one.model_copy(update={"path": name}))
    for place, data in enumerate(job.datasets):
        name = Path(f"data-{place}.jsonl")
        _send_file(worker, data.path, str(name))
        datasets.append(data.model_copy(update={"path": name}))
    there = {"inputs": tuple(inputs), "datasets": tuple(datasets), "output": Path("output"), "checkpoints": None}
    ray.get(worker.start.remote(job.model_copy(update=there).model_dump_json()))


def _send_file(worker: Any, path: Path, name: str) -> None:
    import ray

    with open(path, "rb") as file:
        part = file.read(PART)
        ray.get(worker.take.remote(name, part))
        while part := file.read(PART):
            ray.get(worker.take.remote(name, part))


def _take_back(worker: Any, folder: Path) -> None:
    """Write what the job left into our own folder."""
    import ray

    for name, size in ray.get(worker.left.remote()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for start in range(0, size, PART):
                file.write(ray.get(worker.give.remote(name, start, PART)))


def _why(error: Exception) -> str:
    """What went wrong there, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("No module named 'mreg" in line for line in lines):
        return "its machines lack mreg: install it there, with what the transform needs"
    return f"the job was lost ({lines[-1] if lines else type(error).__name__})"
