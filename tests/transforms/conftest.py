"""What the tests of the transforms share: tiny models, made once, and engines, each with a server started once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from mreg.registry.transform import Job, JobDataset, JobInput, Material, Outcome, Rows
from mreg.transforms._engine import LocalEngine

from tests import tiny

OUTSIDE = Path(__file__).parents[1] / "outside"
COLUMNS = {
    "text": ("text",),
    "chat": ("messages",),
    "prompt": ("prompt", "completion"),
    "pairs": ("prompt", "chosen", "rejected"),
    "labels": ("prompt", "completion", "label"),
}


@dataclass(frozen=True)
class Stock:
    """Models and data to work on. `other` has the shapes of `base`; `sharded` is float32 in several files.

    `judge` is a reward model. `edited` is `base` with one matrix changed, and `later` that with another one changed.
    """

    base: Path
    other: Path
    sharded: Path
    adapter: Path
    judge: Path
    edited: Path
    later: Path
    data: Path


@dataclass(frozen=True)
class Ran:
    """A run that ended, and where its output is."""

    outcome: Outcome
    output: Path


Run = Callable[..., Ran]
Here = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    root = tmp_path_factory.mktemp("stock")
    base = tiny.make_model(root / "base")
    stock = Stock(
        base=base,
        other=tiny.make_model(root / "other", seed=1),
        sharded=tiny.make_model(root / "sharded", seed=2, dtype="float32", tied=False, max_shard_size="100KB"),
        adapter=tiny.make_adapter(root / "adapter", base),
        judge=tiny.make_judge(root / "judge", base),
        edited=(edited := tiny.make_changed(root / "edited", base, "model.layers.0.mlp.up_proj.weight")),
        later=tiny.make_changed(root / "later", edited, "model.layers.1.mlp.up_proj.weight"),
        data=root,
    )
    tiny.write_rows(root / "text.jsonl", tiny.text_rows())
    tiny.write_rows(root / "chat.jsonl", tiny.chat_rows())
    tiny.write_rows(root / "prompt.jsonl", tiny.prompt_rows())
    tiny.write_rows(root / "pairs.jsonl", tiny.pair_rows())
    tiny.write_rows(root / "labels.jsonl", tiny.label_rows())
    tiny.write_rows(root / "facts.jsonl", tiny.fact_rows())
    return stock


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(state=tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture(scope="session")
def run(engine: LocalEngine, stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run("cast", stock.base, dtype="float32")` through the shared engine."""
    root = tmp_path_factory.mktemp("runs")
    numbers = itertools.count()

    def run(
        transform: str,
        source: Path,
        *,
        more: dict[str, Path | list[Path]] | None = None,
        data: str | list[Path] | None = None,
        on: LocalEngine = engine,
        **params: Any,
    ) -> Ran:
        job = make_job(on, root / str(next(numbers)), transform, source, more or {}, stock.data, data, params)
        return Ran(on.run(job, lambda progress: None), job.output)

    return run


@pytest.fixture
def here(engine: LocalEngine, stock: Stock, tmp_path: Path) -> Here:
    """`here("finetune", stock.base, method="lora")` in this process, which starts faster: the output and the facts."""
    import torch

    torch.set_num_threads(1)
    numbers = itertools.count()

    def run(
        name: str,
        source: Path,
        *,
        more: dict[str, Path | list[Path]] | None = None,
        data: str | list[Path] | None = None,
        **params: Any,
    ) -> tuple[Path, dict[str, Any]]:
        job = make_job(engine, tmp_path / str(next(numbers)), name, source, more or {}, stock.data, data, params)
        job.output.mkdir()
        torch.manual_seed(job.seed)
        transform = engine.find(name)
        return job.output, transform.run(job, transform.params.model_validate(job.params), lambda progress: None)

    return run


def make_job(
    engine: LocalEngine,
    folder: Path,
    transform: str,
    source: Path,
    more: dict[str, Path | list[Path]],
    data_folder: Path,
    data: str | list[Path] | None,
    params: dict[str, Any],
) -> Job:
    """`data` names a dataset of the stock, or several files of rows."""
    folder.mkdir()
    inputs = [("source", source)]
    for role, paths in more.items():
        inputs += [(role, path) for path in (paths if isinstance(paths, list) else [paths])]
    files = [data_folder / f"{data}.jsonl"] if isinstance(data, str) else data or []
    datasets = []
    for path in files:
        lines = path.read_text().splitlines()
        columns = COLUMNS.get(path.stem) or tuple(json.loads(lines[0]))
        datasets.append(JobDataset(name=path.stem, digest="0" * 64, path=path, rows=len(lines), columns=columns))
    return Job(
        id=folder.name,
        transform=transform,
        params=engine.find(transform).params.model_validate(params).model_dump(mode="json"),
        inputs=tuple(
            JobInput(
                role=role,
                digest=blake3(str(path).encode()).hexdigest(),
                path=path,
                adapter=(path / "adapter_config.json").exists(),
            )
            for role, path in inputs
        ),
        datasets=tuple(datasets),
        output=folder / "output",
        seed=7,
        threads=1,
        device="cpu",
        portable=False,
    )


def tree(folder: Path) -> dict[str, str]:
    """The digest of every file."""
    return {
        path.relative_to(folder).as_posix(): blake3(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder, copied out of its files."""
    from safetensors.torch import load_file

    return {
        name: tensor.clone()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def material(folder: Path, role: str = "source") -> Material:
    """What the registry would tell `check` about a folder."""
    is_adapter = (folder / "adapter_config.json").exists()
    config = folder / ("adapter_config.json" if is_adapter else "config.json")
    dtypes = {"torch.bfloat16": "BF16", "torch.float32": "F32", "torch.int32": "I32", "torch.int64": "I64"}
    return Material(
        role=role,
        name=folder.name,
        adapter=is_adapter,
        config=json.loads(config.read_text()) if config.exists() else {},
        tensors={name: (dtypes[str(tensor.dtype)], tuple(tensor.shape)) for name, tensor in tensors(folder).items()},
        files=tuple(tree(folder)),
        read=lambda path: (folder / path).read_bytes(),
    )


def rows(given: list[dict[str, Any]]) -> Rows:
    """What the registry would tell `check` about a dataset."""
    columns = tuple(dict.fromkeys(column for row in given for column in row))
    return Rows("rows", columns, len(given), lambda: iter(given))


def install(site: Path, module: str, source: str, *, entry: str = "") -> Path:
    """Put a package of one module into `site` as an installer would, with an entry point for its TRANSFORM."""
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mreg.transforms]\n{entry or f'{module} = {module}:TRANSFORM'}\n")
    path = site / f"{module}.py"
    path.write_text(source)
    return path
