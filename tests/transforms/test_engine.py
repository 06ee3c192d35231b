"""The engine: what it records, how runs fail, and that no child outlives whoever wanted its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mreg.registry.errors import MregError
from mreg.registry.transform import Job, Outcome, Progress
from mreg.transforms import _environment
from mreg.transforms._engine import EngineBroken, LocalEngine

from tests.transforms.conftest import OUTSIDE, Stock, install, make_job, tensors, tree

NAUGHTY = '''"""Fail in the way that is asked for."""

import ctypes, os, signal, subprocess, sys, time
from mreg.registry.errors import Refused
from mreg.registry.transform import Input, Params, Progress, Transform


class NaughtyParams(Params):
    """The options of `naughty`."""

    way: str
    """How to fail."""


def run(job, params, report):
    print("about to", params.way)
    if params.way == "raise":
        raise ValueError("a first line\\nand a second")
    if params.way == "refuse":
        raise Refused("this is meaningless", fix="do something else")
    if params.way == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if params.way == "exit":
        os._exit(3)
    if params.way == "nan":
        (job.output / "file").write_text("x")
        return {"loss": float("nan")}
    if params.way == "sleep":
        # A helper process of the child, as a data loader would have.
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        report(Progress(0, 1, f"{os.getpid()} {helper.pid}"))
        time.sleep(600)
    if params.way == "look":
        (job.output / "file").write_text("x")
        ignored = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        return {"cwd": os.getcwd(), "tmp": __import__("tempfile").mkdtemp(), "names": sorted(os.environ),
                "stdin": sys.stdin.read(), "session": os.getsid(0) == os.getpid(), "path": sys.path[0]}
    return {}


TRANSFORM = Transform(NaughtyParams, (Input("source", "ignored"),), "statistical", 1, run)
'''

SCRIPT = """
import sys
from pathlib import Path
from mreg.registry.transform import Job
from mreg.transforms import _environment
from mreg.transforms._engine import LocalEngine
job = Job.model_validate_json(Path(sys.argv[1]).read_text())
engine = LocalEngine(state=Path(sys.argv[1]).parent)
try:
    engine.run(job, lambda progress: print(progress.note, flush=True))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""

FRESH = "import sys; from mreg.transforms._worker import answer; answer({'job': sys.argv[1]}, lambda message: None)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two outside packages, on the path of this process and of the servers it starts."""
    site = tmp_path_factory.mktemp("site")
    install(site, "jitter", (OUTSIDE / "jitter.py").read_text())
    install(site, "naughty", NAUGHTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("OMP_DYNAMIC", "stray")
        yield site


@pytest.fixture(scope="module")
def outside(site: Path) -> Iterator[LocalEngine]:
    with LocalEngine(state=site / "state") as engine:
        yield engine


@pytest.fixture
def fail(outside: LocalEngine, stock: Stock, tmp_path: Path) -> Any:
    def fail(way: str) -> Outcome:
        return outside.run(naughty(outside, stock, tmp_path / way, way), lambda progress: None)

    return fail


def naughty(engine: LocalEngine, stock: Stock, folder: Path, way: str) -> Job:
    return make_job(engine, folder, "naughty", stock.base, {}, stock.data, None, {"way": way})


def test_a_transform_from_another_package_runs(outside: LocalEngine, stock: Stock, tmp_path: Path):
    job = make_job(outside, tmp_path / "job", "jitter", stock.base, {}, stock.data, None, {"scale": 0.5})

    outcome = outside.run(job, lambda progress: None)

    assert (None, {"seed": 7}) == (outcome.error, outcome.facts)
    assert sorted(tree(stock.base)) == sorted(tree(job.output))
    assert 0 < (tensors(job.output)["model.norm.weight"] - tensors(stock.base)["model.norm.weight"]).abs().max() < 3


def test_the_example_package_says_what_the_test_installs():
    import tomllib

    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text())["project"]

    assert {"mreg.transforms": {"jitter": "jitter:TRANSFORM"}} == project["entry-points"]


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("raise", "ValueError: a first line"),
        ("refuse", "this is meaningless: do something else"),
        ("die", "killed by signal 9 (out of memory?)"),
        ("exit", "it ended with exit status 3"),
        ("nothing", "naughty ended without writing any file: this is a bug of the transform"),
        ("nan", "this value cannot be written as canonical JSON"),
    ],
)
def test_a_run_that_fails_says_why_in_one_line(fail: Any, way: str, told: str):
    outcome = fail(way)

    assert outcome.error.startswith(told)
    assert "\n" not in outcome.error
    assert {} == outcome.facts
    assert f"about to {way}" in outcome.log.read_text()
    assert "cpu" == outcome.environment["device"]


def test_the_log_has_the_whole_traceback(fail: Any):
    log = fail("raise").log.read_text()

    assert "Traceback" in log
    assert "and a second" in log


def test_after_a_crash_the_next_run_works(fail: Any, outside: LocalEngine, stock: Stock, tmp_path: Path):
    fail("die")
    job = make_job(outside, tmp_path / "next", "cast", stock.base, {}, stock.data, None, {"dtype": "float32"})

    assert outside.run(job, lambda progress: None).error is None


def test_after_its_server_was_killed_the_engine_starts_another(outside: LocalEngine, stock: Stock, tmp_path: Path):
    outside.environment(threads=1, portable=False, device="cpu")
    (server,) = outside._servers.values()
    server._process.kill()
    server._process.wait()
    job = make_job(outside, tmp_path / "job", "cast", stock.base, {}, stock.data, None, {"dtype": "float32"})

    assert outside.run(job, lambda progress: None).error is None


def test_a_server_that_was_told_to_end_is_asked_nothing_more(outside: LocalEngine, stock: Stock, tmp_path: Path):
    outside.environment(threads=1, portable=False, device="cpu")
    (server,) = outside._servers.values()
    os.kill(server._process.pid, signal.SIGSTOP)  # It takes its time.
    try:
        server.terminate()
        assert not server.is_alive()
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
    job = make_job(outside, tmp_path / "job", "cast", stock.base, {}, stock.data, None, {"dtype": "float32"})

    assert outside.run(job, lambda progress: None).error is None


def test_a_child_sees_a_clean_and_fixed_environment(fail: Any, tmp_path: Path):
    facts = fail("look").facts

    assert str(tmp_path / "look") == facts["cwd"]
    assert facts["tmp"].startswith(facts["cwd"])
    assert "" == facts["stdin"]
    assert facts["session"]
    assert "OMP_DYNAMIC" not in facts["names"]
    assert {"OMP_NUM_THREADS", "PYTHONHASHSEED", "HF_HUB_OFFLINE", "PATH"} <= set(facts["names"])


def test_the_environment_is_told_in_the_same_terms_before_and_after(engine: LocalEngine, stock: Stock, tmp_path: Path):
    job = make_job(engine, tmp_path / "job", "cast", stock.base, {}, stock.data, None, {"dtype": "float32"})

    outcome = engine.run(job, lambda progress: None)

    asked = engine.environment(threads=1, portable=False, device="cpu")
    assert asked == outcome.environment
    assert (1, "", "0", "cpu") == tuple(asked[name] for name in ("threads", "mkl_cbwr", "hash_seed", "device"))
    assert all(asked[name] for name in ("python", "torch", "transformers", "peft", "trl", "cpu", "cpu_capability"))


def test_a_forked_child_gives_what_a_fresh_process_gives(engine: LocalEngine, stock: Stock, tmp_path: Path):
    params = {"max_steps": 3}
    job = make_job(engine, tmp_path / "forked", "finetune", stock.base, {}, stock.data, "text", params)
    engine.run(job, lambda progress: None)
    fresh = job.model_copy(update={"output": tmp_path / "fresh" / "output"})
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "job.json").write_text(fresh.model_dump_json())

    subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "fresh" / "job.json")],
        env=_environment.variables(os.environ, state=tmp_path, threads=1, portable=False),
        check=True,
    )

    assert tree(job.output) == tree(fresh.output)


def test_auto_is_resolved(engine: LocalEngine):
    import torch

    device = engine.environment(threads=1, portable=False, device="auto")["device"]

    assert ("cuda" if torch.cuda.is_available() else "cpu") == device


def test_a_portable_run_fixes_the_kernels(tmp_path: Path):
    with LocalEngine(state=tmp_path) as engine:
        told = engine.environment(threads=2, portable=True, device="cpu")

    assert (2, "AVX2,STRICT") == (told["threads"], told["mkl_cbwr"])
    assert told["cpu_capability"] in ("AVX2", "DEFAULT")


def test_nothing_is_left_in_the_state_folder_by_a_run(outside: LocalEngine, stock: Stock, tmp_path: Path):
    job = make_job(outside, tmp_path / "job", "finetune", stock.base, {}, stock.data, "text", {"max_steps": 1})

    outside.run(job, lambda progress: None)

    assert not outside.state.exists()
    assert ["job.json", "log.txt", "output"] == sorted(path.name for path in (tmp_path / "job").iterdir())


def test_a_broken_installation_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(EngineBroken, match="transforms cannot run: ImportError: libtorch is missing: reinstall mreg"):
        LocalEngine(state=tmp_path).environment(threads=1, portable=False, device="cpu")


def test_an_error_of_the_listener_ends_the_child(outside: LocalEngine, stock: Stock, tmp_path: Path):
    pids: list[int] = []

    def listen(progress: Progress) -> None:
        pids.extend(map(int, progress.note.split()))
        raise MregError("the listener broke")

    with pytest.raises(MregError, match="the listener broke"):
        outside.run(naughty(outside, stock, tmp_path / "job", "sleep"), listen)

    assert [] == living(pids)


@pytest.fixture
def sleeper(site: Path, outside: LocalEngine, stock: Stock, tmp_path: Path) -> Iterator[tuple[Any, list[int]]]:
    """A process that runs a job through an engine of its own, and the ids of the processes that do the work."""
    job = naughty(outside, stock, tmp_path / "job", "sleep")
    (tmp_path / "asked.json").write_text(job.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "asked.json")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    with process:
        assert process.stdout is not None
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def test_ctrl_c_ends_the_child_and_is_told(sleeper: Any):
    process, pids = sleeper
    assert pids == living(pids)

    os.killpg(process.pid, signal.SIGINT)

    assert 130 == process.wait(timeout=20)
    assert "interrupted" in process.stdout.read()
    assert [] == living(pids)


def test_nothing_trains_on_when_the_parent_is_killed(sleeper: Any):
    process, pids = sleeper

    process.kill()
    process.wait()

    assert [] == living(pids, patience=10)


def test_nothing_trains_on_when_the_server_is_killed(sleeper: Any):
    process, pids = sleeper
    server = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])

    os.kill(server, signal.SIGKILL)

    assert 0 == process.wait(timeout=20)
    assert [] == living(pids, patience=10)


def living(pids: list[int], *, patience: float = 0) -> list[int]:
    """Which of these processes are there and no zombies, once `patience` seconds are over or none is."""
    end = time.monotonic() + patience
    while True:
        there = [pid for pid in pids if is_running(pid)]
        if not there or time.monotonic() > end:
            return there
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
