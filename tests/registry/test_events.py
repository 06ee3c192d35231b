"""The events: frozen facts whose written shapes never change. `pytest --add-golden` writes lines for new kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from mreg.registry import canonical
from mreg.registry.canonical import NotCanonical
from mreg.registry.log import events as e
from mreg.registry.log.events import KINDS, UPCASTERS, UnreadableEvent, Upcasters, decode, event_of, record
from mreg.registry.log.folds import fold
from mreg.registry.log.journal import sealed
from mreg.registry.log.recorded import Recorded, is_chained, is_sealed, seal
from pydantic import ValidationError

from tests.histories import (
    content,
    digest,
    finished,
    histories,
    history,
    imported,
    json_values,
    moved,
    score,
    started,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "events.jsonl"

EXAMPLES: tuple[e.Event, ...] = (
    e.RegistryCreated(registry="9e7d2f0a-3f4b-4a39-8a1e-0d9f6a1b2c3d", message="first light"),
    imported(1, origin={"hub": "org/name", "revision": "main"}, marks=("code",), left_out=("README.md",)),
    e.DatasetAdded(
        digest=digest(9), name="train", rows=3, bytes=70, columns=("text",), format="csv", source="/data/train.csv"
    ),
    started("5d5f", 1, datasets=(digest(9),), params={"method": "lora", "learning_rate": 1e-5}, seed=7),
    finished(
        "5d5f",
        2,
        facts={"loss": [2.5, 1e-7], "flops": 1e20},
        environment={"torch": "2.8.0"},
        base=digest(1),
        disproves=digest(1),
        made=(digest(9),),
        log=digest(8),
    ),
    started("6e60", 1),
    e.RunFailed(run="6e60", error="out of memory", interrupted=False, wall_s=3.25, log=digest(8)),
    e.WorkStarted(
        run="7d71",
        transform="my-sft",
        params={"epochs": 2},
        inputs=(e.InputUsed(role="source", digest=digest(1)),),
        datasets=(digest(9),),
        message="by hand",
    ),
    e.VersionRecorded(
        content=content(3, adapter=True),
        transform="my-sft",
        inputs=(e.InputUsed(role="source", digest=digest(1)), e.InputUsed(role="teacher", digest=digest(2))),
        params={"epochs": 2},
        base=digest(1),
    ),
    moved("chat/base", None, 2, reason="apply", message="good enough", forced=("kl(general) < 0.1",)),
    e.EvaluationRecorded(
        evaluation="8a82",
        version=digest(2),
        inputs=(e.InputUsed(role="source", digest=digest(2)),),
        dataset=digest(9),
        params={"metrics": ["perplexity"], "max_length": 512},
        scores=(score(2, 31.25), score(2, None, metric="nll", low=None, high=None, interval="")),
        code=digest(1, "d"),
        seed=0,
        threads=2,
        device="auto",
        portable=False,
        environment={"torch": "2.8.0"},
        wall_s=1.5,
        made=(digest(9),),
    ),
    e.GuardJudged(
        guard="perplexity(train) <= 1.05 * source",
        version=digest(2),
        source=digest(1),
        other=digest(1),
        dataset=digest(9),
        value=31.25,
        reference=21.5,
        holds=False,
        words="perplexity(train) is 31.2, 1.45 × that of v1 (21.5); at most 1.05 × is allowed",  # noqa: RUF001
        ref="prod",
        scores=(digest(2, "e"),),
    ),
    e.PolicySet(ref="prod", guards=("perplexity(train) <= 1.05 * source",), message="no worse"),
    e.VersionRecalled(version=digest(2), message="trained on the test set"),
    e.RecallLifted(dataset=digest(9), message="consent was given"),
    e.ReplayStarted(replay="7f71", version=digest(2), from_base=True, tolerance=0.001, steps=(digest(2),)),
    e.ReplayFinished(
        replay="7f71",
        version=digest(2),
        verdict="different",
        steps=(
            e.StepJudged(
                version=digest(2),
                transform="finetune",
                verdict="different",
                weights=digest(3, "b"),
                max_abs=0.5,
                max_rel=0.75,
                max_ulps=9,
                rel_l2=0.25,
                first_tensor="lm_head.weight",
                worst_tensor="lm_head.weight",
                changed_tensors=1,
                inherited=(digest(1),),
                made={digest(9): None},
                behaviour={"dataset": digest(9), "kl": {"value": 0.5}},
                note="in a checkout of its commit",
                environment={"threads": (2, 1)},
                wall_s=9.5,
            ),
        ),
        environment={"threads": 1},
        host="lab",
        jobs=2,
        resumed=1,
    ),
    e.VersionEvicted(
        version=digest(2), replay="7f71", verdict="tensors", objects=272, bytes=268435456, message="rarely used"
    ),
    e.VersionRestored(
        version=digest(3), verdict="bytes", steps=(digest(2), digest(3)), environment={"torch": "2.8.0"}, wall_s=12.5
    ),
)
"""One event of every kind or more, in an order in which they can happen."""


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> list[bytes]:
    lines = GOLDEN.read_bytes().splitlines(keepends=True) if GOLDEN.exists() else []
    if request.config.getoption("--add-golden"):
        lines += _new_lines(lines)
        GOLDEN.write_bytes(b"".join(lines))
    return lines


def _new_lines(lines: list[bytes]) -> list[bytes]:
    """Events for the kinds that have none, at the end of the chain; what is there already stays as it is."""
    there = [Recorded(**canonical.loads(line)) for line in lines]
    added: list[Recorded] = []
    for event in EXAMPLES:
        if event.kind not in {recorded.kind for recorded in there}:
            seq = len(there) + len(added) + 1
            prev = [*there, *added][-1].hash if seq > 1 else Recorded.GENESIS
            at = f"2026-01-01T00:00:{seq:02}.000Z"
            added.append(record(event, seq=seq, id=f"golden-{seq}", at=at, actor="ann@host", prev=prev))
    return [recorded.line() for recorded in added]


def test_every_kind_ever_written_has_a_golden_event(golden: list[bytes]):
    written = {canonical.loads(line)["kind"] for line in golden}

    assert {*KINDS, *UPCASTERS} == written


def test_golden_events_are_spelled_and_hashed_as_they_were(golden: list[bytes]):
    read = [sealed(line) for line in golden]

    assert golden == [recorded.line() for recorded in read if recorded is not None]
    assert is_chained([recorded for recorded in read if recorded is not None])


def test_golden_events_still_decode_and_those_of_a_kind_in_use_encode_to_the_same_bytes(golden: list[bytes]):
    for line in golden:
        old = Recorded(**canonical.loads(line))
        event = event_of(old)
        if old.kind in KINDS:
            again = record(event, seq=old.seq, id=old.id, at=old.at, actor=old.actor, prev=old.prev)

            assert line == again.line(), f"{old.kind} has changed its shape: give the new one a new revision"


def test_golden_events_still_fold(golden: list[bytes]):
    tables = fold([Recorded(**canonical.loads(line)) for line in golden])

    assert all(tables.values()), "every projection gets something from them"


def test_every_upcaster_leads_to_a_kind_in_use():
    for kind in UPCASTERS:
        passed = [kind]
        while passed[-1] in UPCASTERS:
            passed.append(UPCASTERS[passed[-1]][0])
            assert len(passed) <= len(UPCASTERS) + 1, "they run in a circle"

        assert [passed[-1]] == [kind for kind in passed if kind in KINDS]


def _from_0(payload: dict[str, Any]) -> dict[str, Any]:
    return {"ref": payload["name"], "new": payload["to"]}


def _from_00(payload: dict[str, Any]) -> dict[str, Any]:
    return {"name": payload["n"], "to": payload["t"]}


OLD_MOVES: Upcasters = {
    **UPCASTERS,
    # The first moves said only where to; then both fields were renamed.
    "ref-moved/0": ("ref-moved/1", lambda payload: {**_from_0(payload), "old": None}),
    "ref-moved/00": ("ref-moved/0", _from_00),
}


@pytest.mark.parametrize(
    ("kind", "payload"),
    [("ref-moved/0", {"name": "prod", "to": digest(1)}), ("ref-moved/00", {"n": "prod", "t": digest(1)})],
)
def test_an_old_payload_becomes_the_newest_shape_step_by_step(kind: str, payload: dict[str, Any]):
    before = dict(payload)

    assert moved("prod", None, 1) == decode(kind, payload, upcasters=OLD_MOVES)
    assert before == payload, "an upcaster leaves what is on disk alone"


def test_an_unknown_kind_asks_for_a_newer_mreg():
    with pytest.raises(UnreadableEvent, match=r"unknown kind 'ref-painted/1'.*upgrade"):
        decode("ref-painted/1", {})


@pytest.mark.parametrize(
    "payload",
    [{}, {"ref": "a"}, {"ref": "a", "old": None, "new": 3}, {"ref": "a", "old": None, "new": None, "colour": "red"}],
)
def test_a_payload_of_another_shape_is_malformed(payload: dict[str, Any]):
    with pytest.raises(UnreadableEvent, match="malformed"):
        decode("ref-moved/1", payload)


def test_events_are_frozen():
    event = moved("prod", None, 1)

    with pytest.raises(ValidationError, match="frozen"):
        event.ref = "other"


@given(histories())
def test_what_was_recorded_is_what_reading_the_line_gives(told: list[Recorded]):
    assert told == [sealed(recorded.line()) for recorded in told]


@given(json_values())
def test_canonical_json_comes_back_to_the_same_bytes(value: Any):
    spelled = canonical.dumps(value)

    assert spelled == canonical.dumps(canonical.loads(spelled))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 2**53, -(2**53)])
def test_a_number_that_json_does_not_have_is_refused_before_it_is_recorded(number: float):
    with pytest.raises(NotCanonical):
        history([finished("run", 1, facts={"loss": number})])


@pytest.mark.parametrize("field", ["seq", "id", "kind", "at", "actor", "payload", "prev"])
def test_the_hash_covers_every_field(field: str):
    (recorded,) = history([imported(1)])
    other: Any = {"seq": 2, "payload": {}}.get(field, "x")
    fields = {**recorded.body(), "hash": recorded.hash, field: other}

    assert is_sealed(recorded)
    assert not is_sealed(Recorded(**fields))
    assert is_sealed(seal(Recorded(**fields)))
