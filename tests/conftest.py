"""What the tests of the registry share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mreg.registry import Registry

from tests.strategies import TINY_MODEL, write_folder


def pytest_configure() -> None:
    """Ctrl-C is heard by the tests and what they start, though shells have their background commands ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="flip and kill hundreds of times instead of a few")
    parser.addoption("--add-golden", action="store_true", help="write golden lines for event kinds that have none")


@pytest.fixture(scope="session")
def is_thorough(request: pytest.FixtureRequest) -> bool:
    """Whether there is time to try hundreds of random cases."""
    return bool(request.config.getoption("--thorough"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.init(tmp_path / "registry")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that imports as a model; nothing computes with it."""
    return write_folder(tmp_path / "model", TINY_MODEL)
