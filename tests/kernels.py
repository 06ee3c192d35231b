"""Have the tests of a module run with the compiled loops and with those in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mreg.registry.store import kernels


@pytest.fixture(params=["compiled", "numpy"], scope="module", autouse=True)
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of the whole module, since hypothesis runs one test many times."""
    if request.param == "compiled" and kernels.compiled is None:
        pytest.skip("there was no C compiler when mreg was installed")
    before, kernels.compiled = kernels.compiled, kernels.compiled if request.param == "compiled" else None
    yield
    kernels.compiled = before
