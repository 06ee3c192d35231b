"""Histories made up for tests: any sequence of events that a registry could have recorded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st
from mreg.registry.digests import Digest
from mreg.registry.log import events as e
from mreg.registry.log.events import record
from mreg.registry.log.recorded import Recorded

NAMES = ("prod", "chat/base", "a")


def digest(number: int, what: str = "0") -> Digest:
    """A digest that can be told from another at sight."""
    return Digest(f"{number:04x}".rjust(64, what))


def content(number: int, *, adapter: bool = False) -> e.Content:
    """The content whose digest is `digest(number)`."""
    return e.Content(
        digest=digest(number),
        manifest=digest(number, "a"),
        weights=digest(number, "b"),
        files=3,
        tensors=number,
        parameters=number * 10**9,
        bytes=2 * number * 10**9,
        adapter=adapter,
        architecture="LlamaForCausalLM",
    )


def imported(number: int, **more: Any) -> e.VersionImported:
    return e.VersionImported(content=content(number), source=f"/models/{number}", **more)


def made(number: int, *parents: int, transform: str = "prune", **more: Any) -> e.VersionRecorded:
    inputs = tuple(e.InputUsed(role="source", digest=digest(parent)) for parent in parents)
    return e.VersionRecorded(content=content(number), transform=transform, inputs=inputs, **more)


def moved(ref: str, old: int | None, new: int | None, **more: Any) -> e.RefMoved:
    before, after = (None if number is None else digest(number) for number in (old, new))
    return e.RefMoved(ref=ref, old=before, new=after, **more)


def started(run: str, *parents: int, **more: Any) -> e.RunStarted:
    return e.RunStarted(
        run=run,
        key=digest(1, "c"),
        transform="prune",
        transform_version=1,
        code=digest(1, "d"),
        determinism="exact",
        inputs=tuple(e.InputUsed(role="source", digest=digest(parent)) for parent in parents),
        **{"params": {"sparsity": 0.5}, "seed": 0, "threads": 2, "device": "auto", "portable": False, **more},
    )


def finished(run: str, number: int, **more: Any) -> e.RunFinished:
    return e.RunFinished(run=run, content=content(number), **{"facts": {}, "environment": {}, "wall_s": 1.5, **more})


def score(
    number: int, value: float | None, *, metric: str = "perplexity", data: int | None = 9, **more: Any
) -> e.Score:
    """A score whose question is told by the number of its version, its metric and its data."""
    return e.Score(
        **{
            "key": digest(number * 100 + len(metric) + (data or 0), "e"),
            "metric": metric,
            "value": value,
            "unit": "",
            "n": 40,
            "unit_of_n": "tokens",
            "low": None if value is None else value - 1,
            "high": None if value is None else value + 1,
            "interval": "normal over rows",
            "settings": {"max_length": 512},
            "against": None,
            "dataset": None if data is None else digest(data, "f"),
            "machine": False,
            "details": {},
            **more,
        }
    )


def evaluated(number: int, *scores: e.Score, **more: Any) -> e.EvaluationRecorded:
    data = next((one.dataset for one in scores if one.dataset), None)
    return e.EvaluationRecorded(
        **{
            "evaluation": f"evaluation-{number}-{len(scores)}",
            "version": digest(number),
            "inputs": (e.InputUsed(role="source", digest=digest(number)),),
            "dataset": data,
            "params": {},
            "scores": scores,
            "code": digest(1, "d"),
            "seed": 0,
            "threads": 2,
            "device": "auto",
            "portable": False,
            "environment": {},
            "wall_s": 1.5,
            **more,
        }
    )


def judgement(number: int, *, holds: bool, **more: Any) -> e.GuardJudged:
    return e.GuardJudged(
        **{
            "guard": "perplexity(general) <= 1.05 * source",
            "version": digest(number),
            "source": digest(1),
            "other": digest(1),
            "dataset": None,
            "value": 31.25,
            "reference": 21.5,
            "holds": holds,
            "words": "perplexity(general) is 31.2",
            **more,
        }
    )


def recalled(number: int, **more: Any) -> e.VersionRecalled:
    return e.VersionRecalled(version=digest(number), **{"message": "leaked", **more})


def history(said: Iterable[e.Event]) -> list[Recorded]:
    """These events as a log holds them."""
    recorded: list[Recorded] = []
    prev = Recorded.GENESIS
    for seq, event in enumerate(said, start=1):
        at = f"2026-01-01T{seq // 3600:02}:{seq // 60 % 60:02}:{seq % 60:02}.000Z"
        recorded.append(record(event, seq=seq, id=f"id-{seq}", at=at, actor="ann@host", prev=prev))
        prev = recorded[-1].hash
    return recorded


def texts() -> st.SearchStrategy[str]:
    """What a person may say: anything that UTF-8 can spell."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def json_values() -> st.SearchStrategy[Any]:
    """What canonical JSON can hold, with floats of every size."""
    plain = (
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts()
    )
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | _objects(inner), max_leaves=4)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(texts(), inner, max_size=3)


@st.composite
def said(draw: st.DrawFn, *, max_size: int = 20) -> list[e.Event]:
    """Events in an order in which they can happen."""
    known: list[int] = []
    refs: dict[str, int] = {}
    runs: list[str] = []
    replays: list[tuple[str, int]] = []
    found: list[e.Event] = [e.RegistryCreated(registry=draw(texts()))]
    params = _objects(json_values())
    for step in range(draw(st.integers(0, max_size))):
        message = draw(texts())
        kinds = ["import", "dataset"] + ["record", "start", "work", "ref", "replay"] * bool(known)
        kinds += ["policy"] + ["evaluate", "guard"] * bool(known)
        kinds += ["evict", "restore"] * bool(known)
        kinds += ["recall", "lift"] * bool(known)
        kinds += ["finish", "fail"] * bool(runs) + ["judge"] * bool(replays) + ["delete"] * bool(refs)
        number = draw(st.integers(1, 6))
        match draw(st.sampled_from(kinds)):
            case "import":
                found.append(imported(number, message=message, origin=draw(params), marks=("code",) * draw(_ONE)))
                known.append(number)
            case "record":
                parents = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
                data = (digest(number, "f"),) * draw(_ONE)
                found.append(made(number, *parents, message=message, params=draw(params), datasets=data))
                known.append(number)
            case "start":
                runs.append(f"run-{step}")
                found.append(started(runs[-1], draw(st.sampled_from(known)), params=draw(params), message=message))
            case "work":
                runs.append(f"run-{step}")
                source = e.InputUsed(role="source", digest=digest(draw(st.sampled_from(known))))
                found.append(e.WorkStarted(run=runs[-1], transform="mine", params=draw(params), inputs=(source,)))
            case "finish":
                run = runs.pop(draw(st.integers(0, len(runs) - 1)))
                seconds = draw(st.floats(0, 1e9))
                found.append(finished(run, number, facts=draw(params), environment=draw(params), wall_s=seconds))
                known.append(number)
            case "fail":
                run = runs.pop(draw(st.integers(0, len(runs) - 1)))
                found.append(e.RunFailed(run=run, error=message, interrupted=draw(st.booleans())))
            case "ref":
                name, new = draw(st.sampled_from(NAMES)), draw(st.sampled_from(known))
                found.append(moved(name, refs.get(name), new, message=message))
                refs[name] = new
            case "delete":
                name = draw(st.sampled_from(sorted(refs)))
                found.append(moved(name, refs.pop(name), None, reason="delete"))
            case "dataset":
                found.append(
                    e.DatasetAdded(
                        digest=digest(number, "f"),
                        name=draw(st.sampled_from(["", "train", "test"])),
                        rows=number,
                        bytes=number,
                        columns=("text",),
                        format="jsonl",
                        source=message,
                    )
                )
            case "evaluate":
                version = draw(st.sampled_from(known))
                value = draw(st.none() | st.floats(0, 1e9))
                found.append(
                    evaluated(
                        version,
                        score(version, value, details=draw(params), settings=draw(params)),
                        evaluation=f"evaluation-{step}",
                        environment=draw(params),
                        message=message,
                    )
                )
            case "guard":
                version, ref = draw(st.sampled_from(known)), draw(st.none() | st.sampled_from(NAMES))
                found.append(judgement(version, holds=draw(st.booleans()), ref=ref, words=message))
            case "recall":
                found.append(recalled(draw(st.sampled_from(known)), message=message))
            case "lift":
                found.append(e.RecallLifted(version=digest(draw(st.sampled_from(known))), message=message))
            case "policy":
                asked = draw(st.lists(texts(), max_size=2))
                found.append(e.PolicySet(ref=draw(st.sampled_from(NAMES)), guards=tuple(asked), message=message))
            case "evict":
                version = digest(draw(st.sampled_from(known)))
                found.append(
                    e.VersionEvicted(version=version, replay="r", verdict="bytes", objects=number, bytes=number)
                )
            case "restore":
                version = digest(draw(st.sampled_from(known)))
                found.append(
                    e.VersionRestored(
                        version=version, verdict="bytes", steps=(version,), environment=draw(params), wall_s=1.5
                    )
                )
            case "replay":
                replays.append((f"replay-{step}", draw(st.sampled_from(known))))
                found.append(
                    e.ReplayStarted(
                        replay=replays[-1][0],
                        version=digest(replays[-1][1]),
                        from_base=draw(st.booleans()),
                        tolerance=draw(st.floats(0, 1)),
                        steps=(digest(replays[-1][1]),),
                    )
                )
            case "judge":
                replay, version = replays.pop()
                judged = e.StepJudged(
                    version=digest(version),
                    transform="prune",
                    verdict="close",
                    rel_l2=draw(st.floats(0, 1)),
                    environment={"threads": (1, 2)},
                )
                found.append(
                    e.ReplayFinished(
                        replay=replay, version=digest(version), verdict="close", steps=(judged,), environment={}
                    )
                )
    return found


_ONE = st.integers(0, 1)


def histories(*, max_size: int = 20) -> st.SearchStrategy[list[Recorded]]:
    """Histories of up to `max_size` events after the first."""
    return said(max_size=max_size).map(history)
