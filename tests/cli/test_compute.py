"""What a version took, and the curves of its training, as `mreg show` tells them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from tests.histories import finished, imported, started

Run = Callable[..., Any]


def test_show_adds_up_what_the_way_to_a_version_took(run: Run, ok: Run, told: Run) -> None:
    told(
        imported(1),
        started("a", 1),
        finished("a", 2, facts={"tokens": 1000, "flops": 2e12}, wall_s=60),
        started("b", 2),
        finished("b", 3, facts={"tokens": 500}, wall_s=2),
    )

    shown, compute = run("show", "v3").out, ok("show", "v3")["compute"]

    assert "this step        500 tokens, 2.0 s" in shown
    assert "with all before  1,500 tokens, 2e+12 FLOPs, 1 min 2 s, in 2 steps" in shown
    assert {"runs": 2, "wall_s": 62, "tokens": 1500, "flops": 2e12} == compute["lineage"]


def test_a_plot_needs_matplotlib_or_is_drawn(run: Run, told: Run) -> None:
    here = told(imported(1), started("a", 1), finished("a", 2, facts={"losses": [[1, 3.0], [2, 2.0], [3, 1.5]]}))
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None

    result = run("show", "v2", "--plot", here / "loss.png")
    without = run("show", "v1", "--plot", here / "none.png")

    assert (0 if has_matplotlib else 12) == result.code
    assert has_matplotlib or "pip install 'mreg[plot]'" in result.err
    assert has_matplotlib == (here / "loss.png").exists()
    assert (11, False) == (without.code, (here / "none.png").exists())
