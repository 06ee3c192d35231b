"""A process to be killed. It imports everything once, then forks a child for each line of work on standard input.

A line is `WORK SEED LIMIT REPORT`: what to do over and over, how many bytes a file may get (0: any), and the file to
which the child appends `ready`, a line `SEQ ID` for every event when it was acknowledged, and how it ended.
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from mreg.registry import Registry
from mreg.registry.errors import MregError
from safetensors.numpy import save_file


def models(registry: Registry, seed: int) -> Iterator[Path]:
    """One model after the other, each of a few megabytes."""
    chosen = np.random.default_rng(seed)
    folder = registry.root.parent / f"model-{seed}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    while True:
        tensors = {f"{place}.weight": chosen.random((400, 400), np.float32) for place in range(4)}
        save_file(tensors, folder / "model.safetensors")
        yield folder


Step = Callable[[], int | None]
"""One piece of work; it gives the seq of the event that it recorded, if it did."""


def importing(registry: Registry, seed: int) -> Iterator[Step]:
    def bring(folder: Path) -> int | None:
        return registry.import_model(folder).event

    for folder in models(registry, seed):
        yield partial(bring, folder)


def naming(registry: Registry, seed: int) -> Iterator[Step]:
    def move(place: int) -> int | None:
        return registry.set_ref("prod", f"v{1 + place % 2}").event

    for place in itertools.count(seed):
        yield partial(move, place)


def applying(registry: Registry, seed: int) -> Iterator[Step]:
    def cast(place: int) -> int | None:
        return registry.apply("cast", "v1", dtype="float16", threads=1, seed=place).event

    for place in itertools.count(1000 * seed):
        yield partial(cast, place)


WORKS: dict[str, Callable[[Registry, int], Iterator[Step]]] = {
    "import": importing,
    "ref": naming,
    "apply": applying,
}


def do(root: Path, work: str, seed: int, limit: int, report: Path) -> None:
    told = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    registry = Registry.open(root)
    os.write(told, b"ready\n")
    for step in WORKS[work](registry, seed):
        try:
            with files_up_to(limit or resource.RLIM_INFINITY):
                seq = step()
        except MregError as error:
            os.write(told, f"failed {error.exit_code}\n".encode())
            return
        if seq is not None:
            os.write(told, f"{seq} {registry.events(seq - 1)[0]['id']}\n".encode())
        if limit:
            os.write(told, b"done\n")
            return


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can be made larger than this meanwhile: what a disk does that is full."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def main() -> None:
    root = Path(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("started", flush=True)
    for line in sys.stdin:
        work, seed, limit, report = line.split()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Whatever becomes of it, it must not go on reading our lines.
            try:
                do(root, work, int(seed), int(limit), Path(report))
            finally:
                os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
