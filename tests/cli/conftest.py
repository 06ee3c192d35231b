"""Running the command line in this process, on registries of models that numpy makes in no time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mreg.cli.main import main
from mreg.registry import Registry
from mreg.registry.log.events import Event, RegistryCreated
from mreg.registry.log.journal import Journal
from safetensors.numpy import save_file

from tests import histories


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON; the command must have ended well or with a difference."""
        assert self.code in (0, 1), self.err
        return json.loads(self.out)


Run = Callable[..., Result]


def make_model(
    folder: Path, *, seed: int = 0, changed: int = 0, layers: int = 4, architecture: str = "LlamaForCausalLM"
) -> Path:
    """A folder with a tensor for each layer and one more, of which the first `changed` have noise on them."""
    folder.mkdir()
    same, other = np.random.default_rng(0), np.random.default_rng(seed)
    tensors = {f"model.layers.{i}.mlp.weight": same.standard_normal((32, 16), np.float32) for i in range(layers)}
    tensors["lm_head.weight"] = same.standard_normal((64, 16), np.float32)
    for tensor in list(tensors)[:changed]:
        tensors[tensor] = tensors[tensor] + np.float32(0.01) * other.standard_normal((32, 16), np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "seed": seed}))
    return folder


@pytest.fixture
def model(here: Path) -> Callable[..., Path]:
    """Makes a model folder in the working directory."""
    return lambda name, **about: make_model(here / name, **about)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `mreg` with these arguments in this process."""
    for name in ("MREG_REGISTRY", "MREG_ACTOR", "MREG_TRACEBACK", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run_(*arguments: object) -> Result:
        capfd.readouterr()
        code = main(list(map(str, arguments)))
        return Result(code, *capfd.readouterr())

    return run_


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ok(run: Run) -> Callable[..., Any]:
    """Run `mreg … --json`, which must exit with 0, and give what it printed."""

    def ok_(*arguments: object) -> Any:
        result = run(*arguments, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    return ok_


@pytest.fixture
def told(here: Path) -> Callable[..., Path]:
    """Makes a registry in the working directory whose log holds these events; there are no objects in it."""

    def told_(*events: Event) -> Path:
        registry = Registry.init(here)
        registry.log.path.unlink()
        Journal(registry.root).rewrite(histories.history([RegistryCreated(registry="told"), *events]))
        registry.rebuild()
        return here

    return told_


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models a, b, c and a registry that holds them: v1 imported, v2 and v3 recorded, a merge v4."""
    folder = tmp_path_factory.mktemp("stock")
    make_model(folder / "a")
    make_model(folder / "b", seed=1, changed=3)
    make_model(folder / "c", seed=2, changed=1)
    make_model(folder / "d", seed=3, changed=2)
    (folder / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    _fill(folder)
    return folder


def _fill(folder: Path) -> None:
    def mreg(*arguments: object) -> None:
        assert main(["--registry", str(folder), *map(str, arguments)]) == 0

    def record(name: str, transform: str, *more: object) -> None:
        mreg("record", "--output", folder / name, "--transform", transform, *more)

    mreg("init")
    mreg("import", folder / "a", "--as", "base", "-m", "where it all begins")
    mreg("data", "add", folder / "rows.jsonl", "--as", "lines")
    record("b", "my-sft", "--from", "base", "--as", "sft", "--set", "learning_rate=1e-4", "--data", "lines")
    record("c", "my-prune", "--from", "v2", "--as", "prod", "--set", "sparsity=0.5")
    record("d", "my-merge", "--from", "v2", "--with", "v3")
    mreg("ref", "set", "prod", "v2", "-m", "safer")


@pytest.fixture
def filled(stock: Path, here: Path) -> Path:
    """A working directory with a copy of the stock, to do with as one likes."""
    shutil.copytree(stock, here, dirs_exist_ok=True)
    return here
