"""A job on several processes, or on a Ray cluster: the same comes out, and nothing runs on unseen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from platform import node
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Job, Outcome
from mreg.transforms._check import MissingExtra
from mreg.transforms._engine import LocalEngine

from tests.transforms.conftest import Run, Stock, install, make_job, tensors, tree

SHARED = '''"""End as is asked for."""

import os, signal, time
from pathlib import Path
from mreg.registry.transform import Input, Params, Transform
from mreg.transforms import _ranks


class SharedParams(Params):
    """The options of `shared`."""

    way: str = "well"
    """How it goes."""


def run(job, params, report):
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    Path(f"pid-{_ranks.rank()}").write_text(f"{os.getpid()} {os.getppid()}")
    if params.way == "sleep":
        time.sleep(600)
    if _ranks.rank() == 1 and params.way == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    _ranks.summed(1)
    (job.output / "file").write_text("done")
    return {}


TRANSFORM = Transform(SharedParams, (Input("source", "ignored"),), "same-machine", 1, run, distributed=True)
'''

SCRIPT = """
import sys
from pathlib import Path
from mreg.registry.transform import Job
from mreg.transforms._engine import LocalEngine
engine = LocalEngine(state=Path(sys.argv[1]).parent)
engine.run(Job.model_validate_json(Path(sys.argv[1]).read_text()), lambda progress: None)
"""

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    site = tmp_path_factory.mktemp("shared")
    install(site, "shared", SHARED)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site))
        yield site


@pytest.fixture
def share(site: Path, stock: Stock, tmp_path: Path) -> Any:
    """`share("raise", launcher="torchrun")` on two processes."""
    del site

    def share(way: str, launcher: str) -> tuple[Job, Outcome]:
        with LocalEngine(state=tmp_path / "state") as engine:
            job = make_job(engine, tmp_path / way, "shared", stock.base, {}, stock.data, None, {"way": way})
            job = two(job, launcher)
            return job, engine.run(job, lambda progress: None)

    return share


def two(job: Job, launcher: str = "torchrun") -> Job:
    return job.model_copy(update={"processes": 2, "launcher": launcher})


def test_two_processes_do_what_one_does_on_twice_the_rows(engine: LocalEngine, stock: Stock, run: Run, tmp_path: Path):
    common = {"method": "full", "max_steps": 3, "learning_rate": 1e-3, "eval_fraction": 0.2}
    one = run("finetune", stock.sharded, data="text", per_device_train_batch_size=4, **common)
    params = {"per_device_train_batch_size": 2, **common}
    job = two(
        make_job(engine, tmp_path / "job", "finetune", stock.sharded, {}, stock.data, "text", params), "accelerate"
    )

    outcome = engine.run(job, lambda progress: None)

    assert outcome.error is None
    counted = ("steps", "rows", "tokens", "flops", "eval_rows", "changed_tensors")
    assert {name: one.outcome.facts[name] for name in counted} == {name: outcome.facts[name] for name in counted}
    for name in ("eval_loss_before", "eval_loss_after", "final_loss"):
        assert outcome.facts[name] == pytest.approx(one.outcome.facts[name], abs=2e-5)
    before, expected, actual = tensors(stock.sharded), tensors(one.output), tensors(job.output)
    for name, tensor in expected.items():
        assert (tensor - actual[name]).abs().max() < 1e-5 < (tensor - before[name]).abs().max()
    assert {**one.outcome.environment, "processes": 2, "launcher": "accelerate"} == outcome.environment
    assert sorted(tree(one.output)) == sorted(tree(job.output)), "the other process wrote nothing into it"


def test_when_one_process_is_killed_it_is_told_and_the_others_end(share: Any):
    job, outcome = share("die", "torchrun")

    # Where the launcher saw the other one fail first, which misses it, that is all there is to tell.
    assert outcome.error == "process 1 was killed by signal 9 (out of memory?)" or "Connection" in outcome.error
    assert {} == outcome.facts
    assert "pid" in outcome.log.read_text()
    assert [] == living(job.output.parent)


def test_no_process_outlives_whoever_wanted_the_work(site: Path, stock: Stock, tmp_path: Path):
    with LocalEngine(state=tmp_path) as engine:
        job = two(make_job(engine, tmp_path / "job", "shared", stock.base, {}, stock.data, None, {"way": "sleep"}))
    (tmp_path / "asked.json").write_text(job.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "asked.json")], env={**os.environ, "PYTHONPATH": str(site)}
    )
    with process:
        await_files(job.output.parent, 2)
        assert 3 == len(living(job.output.parent, patience=0))

        process.kill()

    assert [] == living(job.output.parent, patience=20)


def await_files(folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len([path for path in folder.glob("pid-*") if path.read_text()]) < count:
        assert time.monotonic() < end, "the processes did not start"
        time.sleep(0.1)


def living(folder: Path, *, patience: float = 10) -> list[int]:
    """Those of the processes that shared a job, and of the launcher, that still run after a while."""
    pids = {int(pid) for path in folder.glob("pid-*") for pid in path.read_text().split()}
    assert pids
    end = time.monotonic() + patience
    while (there := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.1)
    return there


@pytest.fixture
def registry(tmp_path: Path, stock: Stock) -> Iterator[Registry]:
    with Registry.init(tmp_path / "registry") as registry:
        registry.import_model(stock.base, ref="base")
        yield registry


def test_processes_belong_to_the_step_and_the_launcher_does_not(registry: Registry, stock: Stock):
    common = {"data": [stock.data / "text.jsonl"], "threads": 1}
    one = registry.plan("finetune", "base", **common).step
    by_torchrun = registry.plan("finetune", "base", processes=2, **common).step
    by_accelerate = registry.plan("finetune", "base", processes=2, launcher="accelerate", **common).step
    on_ray = registry.plan("finetune", "base", on="ray", **common).step

    assert (None, "torchrun", "accelerate") == (one.launcher, by_torchrun.launcher, by_accelerate.launcher)
    assert one.key == on_ray.key
    assert one.key != by_torchrun.key == by_accelerate.key


@pytest.mark.parametrize(
    ("transform", "options", "error", "told"),
    [
        ("cast", {"processes": 2, "dtype": "float32"}, Refused, r"cast runs in one process: leave .* finetune, "),
        ("finetune", {"launcher": "torchrun"}, BadParams, "say how many with --processes"),
        ("finetune", {"launcher": "mpirun", "processes": 2}, BadParams, "there are: torchrun, accelerate"),
        ("finetune", {"processes": 2, "device": "cuda:1"}, BadParams, "--device cuda gives one to each"),
        ("finetune", {"on": "slurm"}, BadParams, "say ray, or ray://host:port"),
    ],
)
def test_what_cannot_be_shared_or_sent_is_refused_before_it_starts(
    registry: Registry, stock: Stock, transform: str, options: dict[str, Any], error: type[Exception], told: str
):
    data = [stock.data / "text.jsonl"] if transform == "finetune" else []

    with pytest.raises(error, match=told):
        registry.plan(transform, "base", data=data, **options)


def test_where_ray_is_missing_the_extra_is_named(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingExtra, match=r"--on ray needs ray, .*pip install 'mreg\[ray\]'"):
        registry.engine.check_place("ray")


@needs_ray
def test_a_chain_on_ray_gives_the_same_bytes_as_here(registry: Registry):
    steps: list[tuple[str, dict[str, Any]]] = [
        ("cast", {"dtype": "float32"}),
        ("prune", {"sparsity": 0.5}),
    ]
    here, there = [], []
    source: Any = "base"
    for name, params in steps:
        here.append(registry.apply(name, source, threads=1, **params))
        source = here[-1].version
    assert isinstance(registry.engine, LocalEngine)
    for name, params in steps:
        # The first is run where it lies, the second travels there and back, as it would to a machine without our files.
        registry.engine._cluster("ray")._shares_files = None if name == "cast" else False
        source = here[len(there)].parents[0]
        there.append(registry.apply(name, source, threads=1, on="ray", fresh=True, **params))

    assert [done.version for done in here] == [done.version for done in there]
    assert [(done.facts, None) for done in here] == [(done.facts, done.disproves) for done in there]
    first, second, *on_ray = registry.log.ask(
        lambda reader: reader.rows("SELECT environment FROM run ORDER BY started_seq")
    )
    expected = [{**run["environment"], "on": "ray", "ray": version("ray"), "host": node()} for run in (first, second)]
    assert expected == [run["environment"] for run in on_ray]
