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
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.models.folder import look
from mreg.registry.models.intake import store_folder
from mreg.registry.versions import Version
from safetensors import safe_open
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


def garbage(registry: Registry, chosen: np.random.Generator, size: int) -> list[Digest]:
    """Objects that no event names, as an import leaves them that fails late."""
    with registry.store.batch() as batch:
        return [batch.put_bytes(chosen.bytes(size)) for _ in range(6)]


def collecting(registry: Registry, seed: int) -> Iterator[Step]:
    chosen = np.random.default_rng(seed)

    def collect(place: int) -> int | None:
        garbage(registry, chosen, 50_000)
        registry.gc(grace=0, kept=0 if place % 2 else None)
        return registry.set_ref("collected", f"v{1 + place % 2}").event

    for place in itertools.count(seed):
        yield partial(collect, place)


def sweeping(registry: Registry, _seed: int) -> Iterator[Step]:
    """Nothing but gc, over and over, that leaves no time to anybody."""
    while True:
        yield lambda: registry.gc(now=True) and None


def relying(registry: Registry, seed: int) -> Iterator[Step]:
    """Import one model after the other, of which others left every object in the store, and nobody needs it yet."""
    chosen = np.random.default_rng(seed)
    folder = registry.root.parent / f"relying-{seed}"
    folder.mkdir(exist_ok=True)

    def bring() -> int | None:
        tensors = {f"{place}.weight": chosen.random((40, 40), np.float32) for place in range(3)}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(f'{{"model_type": "llama", "seed": {chosen.integers(1 << 40)}}}')
        with registry.store.batch() as batch:
            store_folder(look(folder), batch)
        return registry.import_model(folder).event

    while True:
        yield bring


def evicting(registry: Registry, _seed: int) -> Iterator[Step]:
    # Run anew, which starts the engine, and brings back what was evicted.
    version = registry.apply("cast", "v1", dtype="float16", threads=1, fresh=True).version
    if not registry.show(version)["replays"]:
        registry.replay(version)
    while True:
        yield lambda: registry.evict(version).event
        yield lambda: registry.restore(version).event


def repacking(registry: Registry, seed: int) -> Iterator[Step]:
    base = next(models(registry, 1))
    first = registry.import_model(base).version
    with safe_open(base / "model.safetensors", "np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
    changed = registry.root.parent / f"changed-{seed}"
    changed.mkdir()
    save_file({name: tensor * np.float32(1.001) for name, tensor in tensors.items()}, changed / "model.safetensors")
    (changed / "config.json").write_text((base / "config.json").read_text())
    second = registry.record_version(changed, transform="scale", source=first).version

    def pack(ref_at: Version) -> int | None:
        moved = registry.set_ref("fast", ref_at).event
        registry.repack()
        return moved

    for place in itertools.count():
        yield partial(pack, (second, first)[place % 2])


WORKS: dict[str, Callable[[Registry, int], Iterator[Step]]] = {
    "import": importing,
    "ref": naming,
    "apply": applying,
    "gc": collecting,
    "sweep": sweeping,
    "rely": relying,
    "evict": evicting,
    "repack": repacking,
}


def do(root: Path, work: str, seed: int, limit: int, report: Path) -> None:
    told = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    registry = Registry.open(root, wait=300)
    steps = WORKS[work](registry, seed)
    first = next(steps)
    os.write(told, b"ready\n")
    for step in itertools.chain([first], steps):
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
