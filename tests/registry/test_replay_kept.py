"""What a stopped replay leaves: written whole, read strictly, held while somebody works in it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from mreg.registry.errors import Refused
from mreg.registry.log.events import StepJudged
from mreg.registry.replay.kept import KeptReplay, KeptStep, asked_otherwise, forget, kept, working

from tests.histories import digest

ASKED = {"version": digest(2), "from_base": True, "tolerance": 1e-3, "threads": None, "steps": [[digest(2), "run"]]}

KEPT = KeptReplay(
    "a",
    ASKED,
    (
        KeptStep(
            StepJudged(version=digest(2), transform="prune", verdict="bytes", environment={"threads": (1, 2)}),
            place=0,
            code="c",
            environment={"threads": 2},
            output=digest(2),
            data={digest(9): None},
        ),
    ),
)


def leave(root: Path, replay: KeptReplay = KEPT) -> None:
    """Stop in the middle."""
    with suppress(KeyboardInterrupt), working(root, replay.replay) as folder:
        replay.save(folder)
        raise KeyboardInterrupt


def test_what_is_kept_is_what_was_saved(tmp_path: Path):
    leave(tmp_path)

    assert [(tmp_path / "replays" / "a", KEPT)] == kept(tmp_path, digest(2))
    assert [] == kept(tmp_path, digest(3))


def test_the_newest_comes_first(tmp_path: Path):
    leave(tmp_path)
    leave(tmp_path, KeptReplay("b", ASKED))

    assert ["b", "a"] == [one.replay for _, one in kept(tmp_path, digest(2))]


def test_nothing_is_left_of_one_that_ended_or_had_judged_nothing(tmp_path: Path):
    with working(tmp_path, "a") as folder:
        KEPT.save(folder)
    with pytest.raises(KeyboardInterrupt), working(tmp_path, "b"):
        raise KeyboardInterrupt

    assert [] == [*(tmp_path / "replays").iterdir()]


def test_one_that_somebody_works_on_is_not_taken(tmp_path: Path):
    with working(tmp_path, "a") as folder:
        KEPT.save(folder)

        assert [] == kept(tmp_path, digest(2))
        forget(tmp_path, digest(2))
        assert folder.exists()
        with pytest.raises(Refused, match="another process goes on with this replay"), working(tmp_path, "a"):
            pass


def test_one_that_cannot_be_read_is_none_and_is_cleared_away(tmp_path: Path):
    leave(tmp_path)
    state = tmp_path / "replays" / "a" / "state.json"
    state.write_bytes(state.read_bytes()[:-9])

    assert [] == kept(tmp_path, digest(2))
    forget(tmp_path, digest(3))
    assert not state.exists()


def test_what_others_left_is_not_forgotten(tmp_path: Path):
    leave(tmp_path)

    forget(tmp_path, digest(3))
    assert 1 == len(kept(tmp_path, digest(2)))
    forget(tmp_path, digest(2))
    assert [] == [*(tmp_path / "replays").iterdir()]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, None),
        ({"tolerance": 0.5}, "--tolerance was 0.001, is 0.5"),
        ({"from_base": False}, "--from-base was True, is False"),
        ({"steps": [(digest(2), "run")]}, None),
        ({"steps": [(digest(3), "run")]}, "its plan has other steps"),
    ],
)
def test_it_is_told_in_what_it_was_asked_for_otherwise(now: dict[str, object], told: str | None):
    assert told == asked_otherwise(KEPT, ASKED | now)
