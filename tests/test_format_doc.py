"""docs/format.md is enough to write a checker from: one that has nothing of mreg finds what is wrong, and only that."""

from __future__ import annotations

import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mreg.registry import Registry
from mreg.registry.log.events import Content, RunFailed, RunFinished
from mreg.registry.store.objects import ObjectStore
from mreg.registry.versions import Version

from tests import histories
from tests.strategies import TINY_MODEL, MadeTensor, safetensors, write_folder

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small registry with versions, data, a run with its log, floats of all sizes and odd text."""
    folder = tmp_path_factory.mktemp("sound")
    registry = Registry.init(folder)
    base = registry.import_model(
        write_folder(folder / "a", TINY_MODEL), ref="base", message='"hash":"' + "0" * 64 + '",'
    )
    gguf = {**TINY_MODEL, "weights.gguf": b"GGUF and more"}
    other = registry.record_version(
        write_folder(folder / "b", gguf), transform="my-sft", source=base.version, params={"rate": 1e-7, "n": 1e20}
    )
    (folder / "rows.csv").write_text("prompt,n\né \u2028,1\nb,2\n")
    registry.add_dataset(folder / "rows.csv", name="rows")
    with registry.store.batch() as batch:
        log = batch.put_bytes(b"step 1\n")
    registry.log.append(histories.started("run-1", 1))
    made = RunFinished(
        run="run-1", content=_content(registry, other.version.name), facts={}, environment={}, wall_s=0.5, log=log
    )
    registry.log.append(made)
    registry.log.append(histories.started("run-2", 1))
    registry.log.append(RunFailed(run="run-2", error="\x1b[31m out of\nmemory", wall_s=1.25))
    registry.set_ref("prod", "v2", message="日本\u202e")
    registry.rollback("prod", to="v2")
    return registry.root


@pytest.fixture
def check() -> Callable[[Path], list[str]]:
    """The checker of the page, called as a function."""
    return lambda root: list(runpy.run_path(str(DOCS / "check_registry.py"))["check"](root))


def _content(registry: Registry, rev: str) -> Content:
    version = registry.version(rev)
    return Content(**{name: getattr(version, name) for name in Content.model_fields})


def test_a_sound_registry_passes_without_anything_of_mreg(sound: Path) -> None:
    script = DOCS / "check_registry.py"

    done = subprocess.run([sys.executable, script, sound], capture_output=True, text=True, check=False)

    assert (0, "everything is as it was written\n", "") == (done.returncode, done.stdout, done.stderr)
    assert "mreg." not in script.read_text(encoding="utf-8")


def test_one_changed_bit_is_found_wherever_it_is(
    sound: Path, tmp_path: Path, check: Callable[[Path], list[str]]
) -> None:
    chance = random.Random(0)
    root = shutil.copytree(sound, tmp_path / ".mreg")
    kept = [root / "HEAD", root / "log" / "journal.jsonl", *(root / "objects").glob("??/*")]
    unseen = []
    for path in [*kept, *chance.choices(kept, k=300)]:
        path.chmod(0o644)
        before = path.read_bytes()
        place = chance.randrange(len(before))
        path.write_bytes(before[:place] + bytes([before[place] ^ 1 << chance.randrange(8)]) + before[place + 1 :])
        unseen += [] if check(root) else [(path.name, place)]
        path.write_bytes(before)

    assert [] == unseen
    assert [] == check(root)


def test_a_lost_event_and_a_lost_object_are_found(
    sound: Path, tmp_path: Path, check: Callable[[Path], list[str]]
) -> None:
    root = shutil.copytree(sound, tmp_path / ".mreg")
    next((root / "objects").glob("??/*")).unlink()
    journal = root / "log" / "journal.jsonl"
    first, _, *rest = journal.read_bytes().splitlines(keepends=True)
    lost_object = check(root)
    journal.write_bytes(b"".join([first, *rest]))

    assert 1 <= len(lost_object)
    assert "event 2 does not follow the one before it" in check(root)


def test_the_page_says_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogapp", "--check", DOCS / "format.md"], capture_output=True, text=True, check=False
    )

    assert 0 == done.returncode, f"{done.stdout}{done.stderr}: run `make docs`"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A registry in which one tensor is stored in planes and another as a residual."""
    registry = Registry.init(tmp_path / "registry")
    weights = np.random.default_rng(0).normal(0, 0.02, 4096).astype(np.float32)
    tuned = np.where(np.arange(4096) % 5 == 0, np.nextafter(weights, 1), weights).astype(np.float32)
    version: Version | None = None
    for name, numbers in [("base", weights), ("tuned", tuned)]:
        tensor = MadeTensor("w", "F32", (64, 64), numbers.tobytes())
        folder = write_folder(tmp_path / name, {"config.json": b"{}", "model.safetensors": safetensors([tensor])})
        if version is None:
            version = registry.import_model(folder).version
        else:
            registry.record_version(folder, transform="my-sft", source=version)
    encodings = [registry.store.envelope(digest).encoding for digest in registry.store.names()]
    assert {"raw", "solo", "residual"} == set(encodings)
    return registry.root


def test_a_checker_decodes_what_is_stored_small(small: Path, check: Callable[[Path], list[str]]) -> None:
    assert [] == check(small)


def test_a_checker_finds_a_flipped_bit_in_what_is_stored_small(small: Path, check: Callable[[Path], list[str]]) -> None:
    store = ObjectStore(small / "objects")
    for digest in list(store.names()):
        if store.envelope(digest).encoding == "raw":
            continue
        path = store.path(digest)
        data = path.read_bytes()
        for byte in range(0, len(data), max(1, len(data) // 40)):
            path.chmod(0o644)
            path.write_bytes(data[:byte] + bytes([data[byte] ^ 4]) + data[byte + 1 :])
            assert any(digest in problem for problem in check(small)), byte
        path.write_bytes(data)
