"""Bisect: the first version that is broken, found by testing as few as possible.

Answers are kept on disk until the search is over, so that one that was stopped goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mreg.registry import digests, files
from mreg.registry.chains import bisection
from mreg.registry.chains.bisection import Answer
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.chains.opinions import Opinion, Said
    from mreg.registry.registry import Registry

Judge = Callable[[Version, Path], Answer]
"""Tests one version once, of which it is given a checkout. Raises what ends the search; the answers so far are kept."""


@dataclass(frozen=True)
class Tested:
    """What came of a version: how often each answer was given, and what was believed.

    `words` say what it rests on, where it was measured; `from_log` that the log knew it.
    """

    version: Version
    answer: Answer
    good: int
    bad: int
    words: str = ""
    from_log: bool = False


@dataclass(frozen=True)
class Bisected:
    """`first_bad` are the culprits: one, or several where those that could tell them apart were skipped.

    `confidence` that no wrong answer was believed; 1 where answers are taken to be never wrong. `resumed` counts the
    versions that an earlier call tested.
    """

    first_bad: tuple[Version, ...]
    tested: tuple[Tested, ...]
    confidence: float
    resumed: int


@dataclass(frozen=True)
class ToTest:
    """Before a test: what is asked, and how many suspects and how many more tests there are at least."""

    version: Version
    suspects: int
    at_least: int


def bisect(
    registry: Registry,
    good: Sequence[Version],
    bad: Version,
    judge: Judge | Opinion,
    *,
    asked: str,
    error_rate: float = 0.0,
    confidence: float = 0.95,
    fresh: bool = False,
    report: Callable[[ToTest | Tested], None] = lambda said: None,
) -> Bisected:
    """Search between `good` and `bad`. `asked` says what `judge` asks: answers are kept for the same question.

    With an `error_rate`, how often one answer is wrong, a version is tested until its answer can be believed. An
    opinion needs no checkout and asks by itself; what the log knows is taken first, since it costs nothing. Raises
    Refused where good and bad do not enclose anything or are known to be otherwise, and what `judge` raises.
    """
    if not callable(judge):
        asked, error_rate = judge.asked, 0.0
    versions = {version.digest: version for version in registry.versions()}
    # Along recipes, not along all edges: a version that was made twice would inherit from what it did not come from.
    inputs = {step.version: step.inputs for one in (bad, *good) for step in registry.recipe(one)}
    search = bisection.begin(
        [one.digest for one in good], bad.digest, lambda one: [parent for _, parent in inputs[one]]
    )
    lead = bisection.lead_for(confidence, error_rate, search.least_tests + 1)
    question = [sorted(one.digest for one in good), bad.digest, asked, error_rate, confidence]
    notes = _Notes(registry.root / "bisect", question)
    if fresh:
        notes.forget()
    known = notes.read(versions)
    noted = set(known)
    if not callable(judge):
        known = _from_log(judge, [versions[one] for one in search.suspects], good, bad) | known
    tested: list[Tested] = []
    resumed = 0
    while (digest := search.next(known) or search.next()) is not None:
        found = known.get(digest)
        if found is None:
            report(ToTest(versions[digest], len(search.suspects), search.least_tests))
            if callable(judge):
                with registry.scratch(registry.log.new_id()) as folder:
                    registry.check_out(versions[digest], folder / "model")
                    found = _ask(versions[digest], folder / "model", judge, lead)
            else:
                found = _measured(judge, versions[digest])
            notes.add(found)
        else:
            resumed += digest in noted
        tested.append(found)
        report(found)
        search = search.told(digest, found.answer)
    notes.forget()
    return Bisected(
        first_bad=tuple(sorted((versions[one] for one in search.culprits), key=lambda version: version.number)),
        tested=tuple(tested),
        confidence=confidence if error_rate > 0 else 1.0,
        resumed=resumed,
    )


def _ask(version: Version, folder: Path, judge: Judge, lead: int) -> Tested:
    counts: dict[Answer, int] = {"good": 0, "bad": 0, "skip": 0}
    while abs(counts["good"] - counts["bad"]) < lead:
        answer = judge(version, folder)
        counts[answer] += 1
        if answer == "skip":
            return Tested(version, "skip", counts["good"], counts["bad"])
    return Tested(version, "good" if counts["good"] > counts["bad"] else "bad", counts["good"], counts["bad"])


def _measured(opinion: Opinion, version: Version) -> Tested:
    """What is thought of a version; one that cannot be measured is skipped."""
    try:
        return _tested(version, opinion.of(version))
    except Refused as error:
        return Tested(version, "skip", 0, 0, error.message)


def _tested(version: Version, said: Said, *, from_log: bool = False) -> Tested:
    return Tested(version, said.answer, int(said.answer == "good"), int(said.answer == "bad"), said.words, from_log)


def _from_log(
    opinion: Opinion, suspects: Sequence[Version], good: Sequence[Version], bad: Version
) -> dict[Digest, Tested]:
    """What the log knows of the suspects. Raises Refused where it knows that the good or the bad is none."""
    from mreg.registry.chains.opinions import guess

    opinion.check(bad)
    for version, wanted in [*((one, "good") for one in good), (bad, "bad")]:
        said = guess(opinion, version)
        if said is not None and said.answer not in (wanted, "skip"):
            was = f"{version} is said to be {wanted}, and is {said.answer}"
            raise Refused(f"{was}: {said.words}", fix="check --good and --bad, and what is asked")
    found = {version: guess(opinion, version) for version in suspects}
    return {version.digest: _tested(version, said, from_log=True) for version, said in found.items() if said}


class _Notes:
    """The answers to one question, on disk: one JSON object a line."""

    def __init__(self, folder: Path, question: object) -> None:
        self.path = folder / f"{digests.of_bytes(json.dumps(question).encode())[:24]}.jsonl"

    def read(self, versions: Mapping[Digest, Version]) -> dict[Digest, Tested]:
        """What is known from a search that was stopped; half a line, which a crash left, is none."""
        if not self.path.exists():
            return {}
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]
        rows = [json.loads(line) for line in whole.splitlines()]
        return {
            row["version"]: Tested(
                versions[row["version"]], row["answer"], row["good"], row["bad"], row.get("words", "")
            )
            for row in rows
        }

    def add(self, tested: Tested) -> None:
        """Keep an answer."""
        counts = {"answer": tested.answer, "good": tested.good, "bad": tested.bad}
        row = {"version": tested.version.digest, **counts, "words": tested.words}
        with files.disk_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def forget(self) -> None:
        """The question is answered."""
        self.path.unlink(missing_ok=True)
