"""Judging: guards are held against scores, which are measured where the log has none, and every verdict is an event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mreg.registry.chains import recalls
from mreg.registry.chains.recalls import Recall
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log import queries
from mreg.registry.measures import guards, metrics, scores
from mreg.registry.measures.evaluating import Prepared, Question, evaluate, prepare_question
from mreg.registry.measures.guards import Guard
from mreg.registry.measures.scores import Score
from mreg.registry.revs import UnknownRev, check_ref_name
from mreg.registry.transform import BadParams, Report
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry

PREFERRED = ("acc", "exact_match", "f1")
"""What counts of a task unless its guard says `metric=…`."""


class GuardFailed(MregError):
    """A version is worse than a guard allows, and a name was to move to it."""

    exit_code = 1


class IsRecalled(GuardFailed):
    """A version is recalled, or came of what is, and a name was to move to it."""


@dataclass(frozen=True)
class Judgement:
    """What a guard said of a version. `words` say by how much it holds or fails; `other` is what it was held against.

    `event` is the seq of the verdict; a guard for which there is nothing to compare with has none, and holds.
    """

    guard: str
    version: Version
    other: Version | None
    value: float | None
    reference: float | None
    holds: bool
    words: str
    event: int | None


@dataclass(frozen=True)
class Bench:
    """On what the measuring for guards is done; the same as the work before it."""

    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    portable: bool = False


def parse_all(
    registry: Registry, texts: Iterable[str], *, source: Version | None, bench: Bench | None = None
) -> tuple[Guard, ...]:
    """The guards, each checked as far as can be done before anything is measured: metric, data, options.

    `source` is a version that they will be held against, if there is one. Raises what is wrong with the first.
    """
    found = tuple(guards.parse(text) for text in texts)
    for guard in found:
        _named(registry, guard, source, source)
        if source is not None:
            prepared(registry, guard, source, source, bench or Bench())
        elif guard.data is not None and guard.metric != metrics.TASK:
            from mreg.registry.models import datasets

            datasets.find(registry, guard.data)
    return found


def prepared(registry: Registry, guard: Guard, version: Version, source: Version | None, bench: Bench) -> Prepared:
    """The evaluation that a guard asks for, checked. Raises what is wrong with it."""
    return prepare_question(registry, question_of(guard, version, source, bench))


def judge(
    registry: Registry,
    asked: Sequence[Guard],
    version: Version,
    source: Version | None,
    *,
    ref: str | None,
    bench: Bench,
    report: Report,
) -> tuple[Judgement, ...]:
    """Hold guards against a version, measuring it and what it is compared with where need be; record each verdict."""
    return tuple(_judge(registry, guard, version, source, ref, bench, report) for guard in asked)


def set_policy(registry: Registry, ref: str, texts: Sequence[str], *, message: str) -> tuple[str, ...]:
    """Have a name demand these guards, and no others, of all that it moves to. Raises what is wrong with a guard."""
    from mreg.registry.log.events import PolicySet

    check_ref_name(ref)
    if not texts:
        raise BadParams(
            "a policy has at least one guard", fix=f"give --guard, or take it away: mreg policy delete {ref}"
        )
    spelled = tuple(str(guard) for guard in parse_all(registry, texts, source=registry.refs().get(ref)))
    if registry.log.ask(scores.policies).get(ref) != spelled:
        registry.log.append(PolicySet(ref=ref, guards=spelled, message=message))
    return spelled


def delete_policy(registry: Registry, ref: str, *, message: str) -> tuple[str, ...]:
    """Have a name demand nothing any more; what it demanded. Raises UnknownRev when that was nothing."""
    from mreg.registry.log.events import PolicySet

    demanded: tuple[str, ...] = ()

    def decision(reader: Reader) -> PolicySet:
        nonlocal demanded
        policies = scores.policies(reader)
        if ref not in policies:
            fix = f"those of {', '.join(policies)} do" if policies else "`mreg policy set` gives a name one"
            raise UnknownRev(f"{ref} has no policy", fix=fix)
        demanded = policies[ref]
        return PolicySet(ref=ref, guards=(), message=message)

    registry.log.decide(decision)
    return demanded


def clear(
    registry: Registry,
    ref: str,
    old: Version | None,
    new: Version,
    *,
    recalled: Sequence[Recall] = (),
    demands: bool,
    force: bool,
    report: Report,
) -> tuple[str, ...]:
    """Let a name move, or raise GuardFailed; the guards and recalls that `force` overrules.

    The version must not be recalled nor fail a guard of its own, and with `demands` hold every guard of the name's
    policy against where it was before. What those need is measured.
    """
    where = f"{ref} stays at {old}" if old is not None else f"{ref} is not set"
    if recalled and not force:
        raise IsRecalled(
            f"{where}, since {recalls.told(new.name, new.digest, recalled)}",
            fix="`mreg recall` lists what is; --force moves it nevertheless",
        )
    policy = registry.log.ask(scores.policies).get(ref, ()) if demands else ()
    asked = tuple(guards.parse(text) for text in policy)
    judge(registry, asked, new, old, ref=ref, bench=Bench(), report=report)
    still = {str(guard) for guard in asked}
    failed = [
        row
        for row in registry.log.ask(lambda reader: scores.broken(reader, new.digest, ref))
        # Of what this name asks, the verdict against where it was before counts; going back, any does.
        if row["ref"] is None
        or not demands
        or (row["guard"] in still and row["source"] == (old.digest if old is not None else None))
    ]
    if failed and not force:
        raise GuardFailed(
            f"{where}, since {new} fails: {'; '.join(row['words'] for row in failed)}",
            fix=f"`mreg show {new}` shows what was measured; --force moves it nevertheless",
        )
    overruled = [f"recall of {one.name} (event {one.event})" for one in recalled]
    return tuple(dict.fromkeys([*overruled, *(row["guard"] for row in failed)]))


def _judge(
    registry: Registry,
    guard: Guard,
    version: Version,
    source: Version | None,
    ref: str | None,
    bench: Bench,
    report: Report,
) -> Judgement:
    from mreg.registry.log.events import GuardJudged

    other = _named(registry, guard, version, source)
    needs_source = guard.metric != metrics.TASK and metrics.metric(guard.metric).against
    if (guard.other is not None and other is None) or (needs_source and source is None):
        words = f"{guard}: there is nothing yet to hold {version} against"
        return Judgement(str(guard), version, None, None, None, True, words, None)
    mine = score_of(registry, guard, version, source, bench, report)
    its = None if other is None else score_of(registry, guard, other, source, bench, report)
    reference = None if its is None else its.value
    holds = guard.holds(mine.value, reference)
    words = guard.words(mine.value, reference, other.name if other is not None else "")
    event = GuardJudged(
        guard=str(guard),
        version=version.digest,
        source=source.digest if source is not None else None,
        other=other.digest if other is not None else None,
        dataset=mine.dataset,
        value=mine.value,
        reference=reference,
        holds=holds,
        words=words,
        ref=ref,
        scores=tuple(one.key for one in (mine, its) if one is not None),
    )
    recorded = registry.log.decide(lambda reader: None if _is_told(reader, event) else event)
    seq = recorded.seq if recorded is not None else _last(registry, event)
    return Judgement(str(guard), version, other, mine.value, reference, holds, words, seq)


def _named(registry: Registry, guard: Guard, version: Version | None, source: Version | None) -> Version | None:
    """The version that a guard compares with: the source, the first parent, or any rev. Raises UnknownRev."""
    if guard.other is None:
        return None
    if guard.other == "source":
        return source
    if guard.other == "parent":
        if version is None:
            return None
        parents = registry.log.ask(lambda reader: queries.Lookup(reader).parents(version.digest))
        return registry.log.ask(lambda reader: queries.version(reader, parents[0])) if parents else None
    return registry.version(guard.other)


def question_of(guard: Guard, version: Version, source: Version | None, bench: Bench) -> Question:
    """The question whose answer a guard is held against; `source` is what its metric compares with, if it does."""
    options: dict[str, Any] = dict(guard.options)
    about: Mapping[str, Any] = {
        "seed": bench.seed,
        "threads": bench.threads,
        "device": bench.device,
        "portable": bench.portable,
    }
    if guard.metric == metrics.TASK:
        options.pop("metric", None)
        return Question(version, tasks=(guard.data or "",), options=options, **about)
    against = source if metrics.metric(guard.metric).against else None
    return Question(version, guard.data, (guard.metric,), against=against, options=options, **about)


def score_of(
    registry: Registry, guard: Guard, version: Version, source: Version | None, bench: Bench, report: Report
) -> Score:
    """The score that a guard is held against, measured where the log has none."""
    question = question_of(guard, version, source, bench)
    answers = evaluate(registry, question, fresh=False, message="", report=lambda said: report(_of(said, version)))
    if guard.metric != metrics.TASK:
        return answers.scores[0]
    by_name = {score.metric.partition("/")[2]: score for score in answers.scores}
    wanted = dict(guard.options).get("metric")
    name = wanted or next((one for one in PREFERRED if one in by_name), next(iter(by_name), ""))
    if name not in by_name:
        raise metrics.UnknownMetric(
            f"the task {guard.data} tells no {name!r}", fix=f"it tells {', '.join(by_name) or 'nothing'}"
        )
    return by_name[name]


def _of(said: Any, version: Version) -> Any:
    return replace(said, note=f"measuring {version} {said.note}".strip())


def _is_told(reader: Reader, event: Any) -> bool:
    """Whether the log's last word on this guard is this very verdict."""
    for row in scores.judgements(reader, event.version):
        if (row["guard"], row["source"], row["ref"]) == (event.guard, event.source, event.ref):
            same = (row["value"], row["reference"], row["other"]) == (event.value, event.reference, event.other)
            return same and row["dataset"] == event.dataset
    return False


def _last(registry: Registry, event: Any) -> int:
    asked = (event.guard, event.source, event.ref)
    rows: list[dict[str, Any]] = registry.log.ask(lambda reader: scores.judgements(reader, Digest(event.version)))
    return int(next(row["seq"] for row in rows if asked == (row["guard"], row["source"], row["ref"])))
