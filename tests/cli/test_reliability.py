"""`show --plot` of a calibrated version."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.cli import reliability, show
from mreg.registry.errors import Refused

BINS = [
    {"n": 0, "confidence": 0.0, "accuracy": 0.0},
    {"n": 30, "confidence": 0.6, "accuracy": 0.5},
    {"n": 10, "confidence": 0.9, "accuracy": 0.9},
]


def test_a_reliability_diagram_is_drawn_with_a_panel_for_before_and_after(tmp_path: Path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is the extra `plot`")

    reliability.draw(tmp_path / "one.png", "v1 calibrate", {"before": BINS})
    reliability.draw(tmp_path / "two.png", "v1 $calibrate$", {"before": BINS, "after": BINS})

    one, two = (image.imread(tmp_path / name) for name in ("one.png", "two.png"))
    assert (one.shape[0], 2 * one.shape[1]) == (two.shape[0], two.shape[1])
    assert one.std() > 0.1


def test_the_error_in_its_title_is_the_expected_calibration_error(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is the extra `plot`")

    reliability.draw(tmp_path / "diagram.svg", "v1", {"before": BINS})

    assert "before: ECE 0.075" in (tmp_path / "diagram.svg").read_text()


def test_a_format_that_nobody_can_draw_is_refused(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="matplotlib is the extra `plot`")

    with pytest.raises(Refused, match="of no format"):
        reliability.draw(tmp_path / "diagram.txt", "v1", {"before": BINS})


def test_facts_of_that_name_that_are_something_else_are_no_diagram():
    assert show._is_reliability({"before": BINS, "after": BINS})
    for other in (0.9, [1, 2, 3], {}, {"before": 0.4}, {"before": []}, {"before": [{"n": 3}]}):
        assert not show._is_reliability(other)
