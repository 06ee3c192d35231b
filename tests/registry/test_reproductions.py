"""What replays proved of a version, counted from their rows."""

from __future__ import annotations

from typing import Any

import pytest
from mreg.registry.replay.reproductions import machines, summed_up

from tests.histories import digest


def row(number: int, *steps: tuple[int, str], host: str = "lab", cpu: str = "EPYC", of: int = 2) -> dict[str, Any]:
    return {
        "version": digest(of),
        "target": f"v{of}",
        "verdict": steps[-1][1],
        "steps": [{"version": digest(version), "verdict": verdict} for version, verdict in steps],
        "environment": {"cpu": cpu},
        "host": host,
        "ended_at": f"2026-01-0{number}",
    }


def test_what_came_out_bit_for_bit_is_counted_with_the_last_time_and_the_machines():
    rows = [row(1, (2, "bytes")), row(2, (2, "tensors"), host="desk"), row(3, (2, "close")), row(4, (2, "different"))]

    assert {"times": 2, "last": "2026-01-02", "machines": 2, "attempted": 4, "as_step": None} == summed_up(
        rows, digest(2)
    )


def test_a_step_of_a_longer_replay_counts_whatever_became_of_the_rest():
    rows = [row(1, (2, "bytes")), row(2, (2, "tensors"), (5, "failed"), of=5)]

    told = summed_up(rows, digest(2))

    assert (2, "2026-01-02") == (told["times"], told["last"])
    assert {"verdict": "tensors", "of": "v5", "at": "2026-01-02"} == told["as_step"]


def test_what_was_not_attempted_or_is_of_others_counts_for_nothing():
    rows = [row(1, (2, "not-attempted")), row(2, (3, "bytes"), of=3)]

    assert {"times": 0, "last": None, "machines": 0, "attempted": 0, "as_step": None} == summed_up(rows, digest(2))


@pytest.mark.parametrize(
    ("ran", "count"),
    [
        ([("lab", "EPYC"), ("lab", "EPYC")], 1),
        ([("lab", "EPYC"), ("desk", "EPYC")], 2),
        # Before machines were named, processors told them apart.
        ([("", "EPYC"), (None, "EPYC"), ("", "Xeon")], 2),
        ([("", "EPYC"), ("lab", "EPYC")], 1),
        ([("", "Xeon"), ("lab", "EPYC")], 2),
    ],
)
def test_machines_are_told_apart_by_their_names(ran: list[tuple[str, str]], count: int):
    assert count == machines({"host": host, "environment": {"cpu": cpu}} for host, cpu in ran)
