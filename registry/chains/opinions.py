"""What makes a version good or bad without a program of one's own: a bound on a metric, or what it says to a prompt.

Both are measured as `mreg eval` measures, so what the log knows is not measured again, and what is measured is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mreg.registry.chains.bisection import Answer
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.measures import guards
from mreg.registry.measures.evaluating import Evaluated, Question, evaluate, from_log, prepare_question
from mreg.registry.measures.guards import Guard, MalformedGuard
from mreg.registry.measures.judging import Bench, question_of, score_of
from mreg.registry.models import datasets
from mreg.registry.transform import BadParams, Report
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


@dataclass(frozen=True)
class Said:
    """An opinion of one version, and the number or the text on which it rests."""

    answer: Answer
    words: str


@dataclass(frozen=True)
class ByMetric:
    """Good is what holds the bound. `source` is what metrics that compare two versions compare with."""

    registry: Registry
    guard: Guard
    source: Version
    reference: float | None
    named: str
    bench: Bench
    report: Report

    @property
    def asked(self) -> str:
        """What is asked, for notes."""
        return f"metric {self.guard}"

    def check(self, version: Version) -> None:
        """Raise what is wrong with the question, as far as it can be known before measuring."""
        prepare_question(self.registry, self._question(version))

    def known(self, version: Version) -> Said | None:
        """The opinion that the log has already."""
        if from_log(self.registry, self._question(version)) is None:
            return None
        return self.of(version)

    def of(self, version: Version) -> Said:
        """The opinion, measured if need be."""
        value = score_of(self.registry, self.guard, version, self.source, self.bench, self.report).value
        answer: Answer = "good" if self.guard.holds(value, self.reference) else "bad"
        return Said(answer, self.guard.words(value, self.reference, self.named))

    def _question(self, version: Version) -> Question:
        return question_of(self.guard, version, self.source, self.bench)


@dataclass(frozen=True)
class ByPrompt:
    """Good is what says `expect` and does not say `reject`, taking the likeliest token each time."""

    registry: Registry
    prompt: str
    expect: str | None
    reject: str | None
    dataset: Digest
    most: int
    bench: Bench
    report: Report

    @property
    def asked(self) -> str:
        """What is asked, for notes."""
        return f"prompt {json.dumps([self.dataset, self.expect, self.reject, self.most])}"

    def check(self, version: Version) -> None:
        """Raise what is wrong with the question, as far as it can be known before measuring."""
        prepare_question(self.registry, self._question(version))

    def known(self, version: Version) -> Said | None:
        """The opinion that the log has already."""
        found = from_log(self.registry, self._question(version))
        return None if found is None else self._judged(found)

    def of(self, version: Version) -> Said:
        """The opinion, measured if need be."""

        def report(said: Any) -> None:
            self.report(replace(said, note=f"asking {version} {said.note}".strip()))

        return self._judged(evaluate(self.registry, self._question(version), fresh=False, message="", report=report))

    def _question(self, version: Version) -> Question:
        options = {"samples": 1, "max_new_tokens": self.most}
        about = (self.bench.seed, self.bench.threads, self.bench.device, self.bench.portable)
        return Question(version, self.dataset, (), (), None, options, *about)

    def _judged(self, found: Evaluated) -> Said:
        rows = [row for one in found.made for row in datasets.rows(self.registry, one.digest) if "generated" in row]
        said = str(rows[0]["generated"])
        is_good = (self.expect is None or self.expect in said) and (self.reject is None or self.reject not in said)
        return Said("good" if is_good else "bad", f"it says {json.dumps(said, ensure_ascii=False)}")


Opinion = ByMetric | ByPrompt


def by_metric(
    registry: Registry,
    metric: str,
    *,
    below: str | float | None,
    above: str | float | None,
    good: Sequence[Version],
    bench: Bench | None = None,
    report: Report = lambda progress: None,
) -> ByMetric:
    """Good is what has `metric`, such as `perplexity(general)`, below or above a number, or a multiple of a version's.

    The bound may be a number or `1.1 * REV`, which is measured now if need be. Raises what is wrong with it.
    """
    if (below is None) == (above is None):
        raise BadParams("a metric needs one bound", fix="give --below or --above")
    text = f"{metric} < {below}" if above is None else f"{metric} > {above}"
    guard = guards.parse(text)
    if guard.other in ("source", "parent"):
        raise MalformedGuard(f"{guard.other} is another version at each step", fix="name one, as in 1.1 * v1")
    on = bench or Bench()
    reference, named = None, ""
    if guard.other is not None:
        other = registry.version(guard.other)
        reference, named = score_of(registry, guard, other, good[0], on, report).value, other.name
    return ByMetric(registry, guard, good[0], reference, named, on, report)


def by_prompt(
    registry: Registry,
    prompt: str,
    *,
    expect: str | None,
    reject: str | None,
    is_chat: bool = False,
    max_new_tokens: int = 32,
    bench: Bench | None = None,
    report: Report = lambda progress: None,
) -> ByPrompt:
    """Good is what goes on from `prompt` with a text that has `expect` in it and not `reject`.

    With `is_chat` it is asked as a turn of a conversation. The question becomes a dataset of one row.
    """
    if not prompt.strip():
        raise BadParams("the prompt is empty", fix="give a text to go on from")
    if not expect and not reject:
        raise BadParams("nothing says what a good answer is", fix="give --expect or --reject")
    # What a row has after the prompt is not read where only a sample is asked for.
    shown = expect or "..."
    space = "" if prompt[-1].isspace() or shown[0].isspace() else " "
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": shown}]
    row: dict[str, Any] = {"messages": turns} if is_chat else {"prompt": prompt, "completion": f"{space}{shown}"}
    with registry.scratch(f"prompt-{registry.log.new_id()}") as folder:
        path = folder / "prompt.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        added = datasets.add(registry, path, name="", message="", source="a prompt to bisect by")
    on = bench or Bench()
    return ByPrompt(registry, prompt, expect, reject, added.digest, max_new_tokens, on, report)


def guess(opinion: Opinion, version: Version) -> Said | None:
    """What is known of a version without measuring; one that cannot be measured is to be skipped."""
    try:
        return opinion.known(version)
    except Refused as error:
        return Said("skip", error.message)
