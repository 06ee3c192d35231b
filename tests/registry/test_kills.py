"""A process that is killed at any moment, or runs out of disk, loses nothing that it was told is recorded."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.files import StorageFailed

from tests.registry import victim
from tests.registry.conftest import make_model

Start = Callable[..., tuple[int, Path]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of two small models, on which one process after the other is killed."""
    folder = tmp_path_factory.mktemp("killed")
    registry = Registry.init(folder)
    for seed in (1, 2):
        registry.import_model(make_model(folder / f"base-{seed}", seed=seed, dtype="F32"))
    return registry.root


@pytest.fixture(scope="module")
def start(root: Path) -> Iterator[Start]:
    """`start("import", seed)` begins that work in a new process; it gives the process and the file of its reports."""
    with _forker(root) as start:
        yield start


@pytest.fixture
def start_in() -> Iterator[Callable[[Path], Start]]:
    """The same, for another registry."""
    with ExitStack() as forkers:
        yield lambda root: forkers.enter_context(_forker(root))


@contextmanager
def _forker(root: Path) -> Iterator[Start]:
    script = Path(victim.__file__)
    with subprocess.Popen(
        [sys.executable, script, root],
        cwd=script.parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as forker:
        assert forker.stdin is not None
        assert forker.stdout is not None
        assert "started\n" == forker.stdout.readline()

        def start(work: str, seed: int, limit: int = 0) -> tuple[int, Path]:
            assert forker.stdin is not None
            assert forker.stdout is not None
            report = root.parent / f"{work}-{seed}-{limit}.txt"
            forker.stdin.write(f"{work} {seed} {limit} {report}\n")
            process = int(forker.stdout.readline())
            _wait_for(lambda: report.exists() and report.read_text().startswith("ready\n"), seconds=120)
            return process, report

        yield start
        forker.stdin.close()


def _wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _acknowledged(report: Path) -> dict[int, str]:
    """The events that the process was told are recorded, by seq."""
    lines = [line.split() for line in report.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return {int(seq): name for seq, name in (line for line in lines if len(line) == 2 and line[0].isdigit())}


def _is_gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def _left_behind(root: Path) -> list[int]:
    """The processes that do the work of this registry, whose caches are in its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"XDG_CACHE_HOME={root}/".encode() in environment:
                found.append(int(entry.name))
    return found


# What is killed, how often (and with --thorough), and within how many seconds of its start.
KILLS = {
    "import": (10, 70, 0.6),
    "ref": (10, 70, 0.4),
    "apply": (2, 60, 9.0),
    "gc": (4, 70, 0.4),
    "repack": (3, 60, 1.0),
    "evict": (2, 60, 2.0),
}


@pytest.mark.parametrize("work", KILLS)
def test_a_killed_process_loses_nothing_that_was_acknowledged(root: Path, start: Start, is_thorough: bool, work: str):
    few, many, longest = KILLS[work]
    chosen = random.Random(work)
    kills, acknowledged = many if is_thorough else few, 0
    for seed in range(kills):
        process, report = start(work, seed)
        if work in ("gc", "repack", "evict"):
            # However slow the machine is, some of them are in the middle of a later step.
            _wait_for(lambda: len(_acknowledged(report)) >= seed % 3, seconds=120)  # noqa: B023  waited for here
        time.sleep(chosen.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        _wait_for(partial(_is_gone, process))
        _wait_for(lambda: not _left_behind(root))

        registry = Registry.open(root)
        recorded = {event["seq"]: event["id"] for event in registry.events()}
        assert _acknowledged(report).items() <= recorded.items()
        acknowledged += len(_acknowledged(report))
        assert [*range(1, len(recorded) + 1)] == [*recorded]
        findings = registry.fsck()
        assert () == findings.problems
        assert () == registry.fsck().notes, "once tidied there is nothing more to tidy"
        assert [] == registry.log.ask(lambda reader: reader.rows("SELECT * FROM run WHERE status = 'started'"))
        assert [] == [path for path in (root / "tmp").iterdir() if path.is_dir()]
    print(f"{work}: {kills} kills, {acknowledged} events acknowledged, none lost")


def test_gc_takes_nothing_from_imports_that_find_their_objects_in_the_store(
    tmp_path: Path, start_in: Callable[[Path], Start], is_thorough: bool
):
    root, rounds = Registry.init(tmp_path / "registry").root, 200 if is_thorough else 3
    start = start_in(root)
    sweeper, _ = start("sweep", 0)
    importers = [start("rely", seed) for seed in range(4)]
    _wait_for(lambda: all(len(_acknowledged(report)) >= rounds for _, report in importers), seconds=120 * rounds)
    for process in (sweeper, *(process for process, _ in importers)):
        os.kill(process, signal.SIGKILL)
        _wait_for(partial(_is_gone, process))

    registry = Registry.open(root)
    assert () == registry.fsck().problems
    recorded = {event["seq"]: event["id"] for event in registry.events()}
    for _, report in importers:
        assert _acknowledged(report).items() <= recorded.items()
    for version in registry.versions():
        assert all(map(registry.store.has, registry.manifest(version).objects()))


# From nothing at all over the journal line and HEAD to the database and the objects.
@pytest.mark.parametrize("limit", [1, 300, 6_000, 1_500_000])
def test_a_full_disk_leaves_nothing_half_recorded(root: Path, start: Start, limit: int):
    before = {event["id"] for event in Registry.open(root).events()}
    for work in ("ref", "import"):
        process, report = start(work, 1000 + limit, limit)
        _wait_for(partial(_is_gone, process))
        ending = report.read_text().splitlines()[-1]

        registry = Registry.open(root)
        added = {event["id"] for event in registry.events()} - before
        assert ending in ("done", "failed 9")
        assert added == set(_acknowledged(report).values())
        assert () == registry.fsck().problems
        before |= added


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root, where it may mount, has a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_says_so_and_can_be_used_again_when_there_is_space(small_disk: Path, tmp_path: Path):
    registry = Registry.init(small_disk / "registry")
    imported = []
    elsewhere = Registry.init(tmp_path / "elsewhere")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))

    def fill() -> None:
        for folder in victim.models(elsewhere, 1):
            imported.append(registry.import_model(folder).version.digest)

    with pytest.raises(StorageFailed, match="No space left"):
        fill()
    assert imported == [version.digest for version in registry.versions()]
    assert () == registry.fsck().problems
    ballast.unlink()
    registry.import_model(make_model(tmp_path / "tiny"))
    assert len(imported) + 1 == len(registry.versions())
    assert () == registry.fsck().problems


def test_an_append_on_a_full_disk_is_refused_or_recorded_but_never_both(small_disk: Path):
    registry = Registry.init(small_disk / "registry")
    registry.import_model(make_model(small_disk / "model", seed=1))
    registry.import_model(make_model(small_disk / "model-2", seed=2))
    chosen = random.Random(0)
    for place in range(12):
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk)
        kept = chosen.choice([0, 0, 1, 2, 5, 20, 100, 300]) * 4096
        ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - kept)))
        before = len(registry.events()) if registry.log.path.exists() else None
        try:
            recorded = registry.set_ref("prod", f"v{1 + place % 2}").event
        except StorageFailed:
            recorded = None
        ballast.unlink()

        if before is not None:
            assert before + (recorded is not None) == len(registry.events())
        assert () == registry.fsck().problems
