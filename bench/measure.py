"""Measuring whole commands and calls: wall time, peak memory, and pairs that take turns.

The peak is VmHWM, read while the command runs. What wait4 reports would not do: it counts what this process held when
it started the command.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MREG = str(Path(sys.executable).with_name("mreg"))

Line = tuple[str, float, float, str]
"""What was measured, how much it is, how much it may be, and the unit."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a command: seconds of wall time and the peak resident memory of its process in MB."""

    seconds: float
    peak_mb: float


def command(words: Sequence[str | Path], *, cwd: Path | None = None) -> Ran:
    """Run a command to its end; it must succeed, and what it says is shown only if it does not."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        with subprocess.Popen(
            [str(word) for word in words], cwd=cwd, stdout=subprocess.DEVNULL, stderr=said
        ) as process:
            peaks = [0.0]
            watcher = threading.Thread(target=_watch, args=[process.pid, peaks])
            watcher.start()
            status = process.wait()
            seconds = time.perf_counter() - start
            watcher.join()
        if status:
            said.seek(0)
            raise subprocess.CalledProcessError(status, process.args, stderr=said.read())
    return Ran(seconds, max(peaks))


def _watch(pid: int, peaks: list[float]) -> None:
    """Note the highest resident memory so far, in MB, until the process has ended."""
    while (peak := _peak_mb(pid)) is not None:
        peaks.append(peak)
        time.sleep(0.02)


def _peak_mb(pid: int) -> float | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return None if found is None else int(found[1]) / 1024


def call(work: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(rounds: int, works: Mapping[str, Callable[[int], float]]) -> dict[str, float]:
    """The median seconds of each work, done `rounds` times in turns, so that a busy moment hits them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for place in range(rounds):
        for name, work in works.items():
            seconds[name].append(work(place))
    return {name: statistics.median(times) for name, times in seconds.items()}


@contextmanager
def out_folder(name: str) -> Iterator[Path]:
    """A folder beside the code, not in a temporary file system that might be memory; removed at the end."""
    out = Path(__file__).with_name("out")
    out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=out) as folder:
        yield Path(folder)


def told(lines: Sequence[Line]) -> int:
    """Print each figure beside its target; 1 when one was missed."""
    width = max(len(what) for what, _, _, _ in lines)
    print(f"\n{'':{width}}  measured  target")
    for what, measured, target, unit in lines:
        verdict = "ok" if measured <= target else "MISSED"
        print(f"{what:{width}}  {measured:7.2f}{unit}  {target:5.2f}{unit}  {verdict}")
    return int(any(measured > target for _, measured, target, _ in lines))
