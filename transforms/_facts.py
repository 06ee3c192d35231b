"""Facts to be edited into a model: the rows that state them, checked, and how well a model knows them.

The columns follow CounterFact (Meng et al. 2022): what is asked as the edit, in other words, and of neighbours, which
the edit must leave alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Rows

if TYPE_CHECKING:
    from mreg.transforms._answers import Likelihood, Speaker

NEEDED = ("subject", "prompt", "target")
COLUMNS = (*NEEDED, "old", "paraphrases", "neighbourhood")
TOLD = (
    "a row has `subject`, `prompt` (with {} for the subject) and `target`, and it may have `old`, `paraphrases` "
    "(prompts) and `neighbourhood` (prompts, or prompt and answer)"
)
SLOT = "{}"


@dataclass(frozen=True)
class Fact:
    """What a model is to answer to a prompt about a subject, which ends at the character `end` of the prompt.

    `neighbourhood` has prompts about other subjects, each with its true answer where that is told.
    """

    subject: str
    prompt: str
    end: int
    target: str
    old: str | None
    paraphrases: tuple[str, ...]
    neighbourhood: tuple[tuple[str, str | None], ...]


def is_facts(columns: Iterable[str]) -> bool:
    """Whether a dataset has facts to edit; others are text."""
    return set(NEEDED) <= set(columns)


def fact(row: Mapping[str, Any]) -> Fact:
    """The fact of a row. Raises Refused, saying what is missing of it."""
    for column in NEEDED:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise Refused(f"has no usable {column}", fix=TOLD)
    subject, prompt = row["subject"].strip(), row["prompt"]
    start = prompt.find(SLOT) if SLOT in prompt else prompt.rfind(subject)
    if start < 0:
        raise Refused(f"does not name its subject, {subject!r}, in the prompt {prompt!r}", fix="write {} in its place")
    old = row.get("old")
    if old is not None and (not isinstance(old, str) or not old.strip()):
        raise Refused("has no usable old", fix=TOLD)
    return Fact(
        subject=subject,
        prompt=prompt.replace(SLOT, subject),
        end=start + len(subject),
        target=row["target"],
        old=old,
        paraphrases=tuple(_prompt(each, "paraphrases").replace(SLOT, subject) for each in row.get("paraphrases") or ()),
        neighbourhood=tuple(_neighbour(each) for each in row.get("neighbourhood") or ()),
    )


def _prompt(given: Any, column: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise Refused(f"has no usable {column}", fix=TOLD)
    return given


def _neighbour(given: Any) -> tuple[str, str | None]:
    if not isinstance(given, Mapping):
        return _prompt(given, "neighbourhood"), None
    answer = given.get("answer")
    return _prompt(given.get("prompt"), "neighbourhood"), None if answer is None else _prompt(answer, "neighbourhood")


def read(path: Path) -> list[Fact]:
    """The facts of a dataset in their recorded order."""
    with open(path, encoding="utf-8") as lines:
        return [fact(json.loads(line)) for line in lines]


def check_facts(rows: Rows) -> int:
    """How many facts a dataset has. Raises Refused, naming the first row that is none or contradicts another."""
    targets: dict[str, tuple[int, str]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            found = fact(row)
        except Refused as error:
            raise Refused(f"row {number} of {rows.name} {error.message}", fix=error.fix) from error
        before, target = targets.setdefault(found.prompt, (number, found.target))
        if target.strip() != found.target.strip():
            raise Refused(
                f"rows {before} and {number} of {rows.name} ask for two answers to {found.prompt!r}", fix="drop one"
            )
    if not targets:
        raise Refused(f"{rows.name} has no rows", fix=TOLD)
    return len(targets)


@dataclass(frozen=True)
class Known:
    """What a model answers to a fact's prompts; `said` are its own next tokens at the neighbourhood's prompts.

    The likelihoods of the target and, where it is told, of the old answer: `asked` at the prompt of the edit,
    `rephrased` at its paraphrases. `near` has those of the true answer and the target at the neighbours that have one.
    """

    asked: tuple[Likelihood, Likelihood | None]
    rephrased: tuple[tuple[Likelihood, Likelihood | None], ...]
    near: tuple[tuple[Likelihood, Likelihood], ...]
    said: tuple[tuple[int, ...], ...]


def known(speaker: Speaker, facts: Sequence[Fact]) -> list[Known]:
    """Ask a model for facts; neighbours are asked for as many tokens as the target has."""
    from mreg.transforms._answers import continuations, likelihoods, spell

    pairs = list(dict.fromkeys(pair for fact in facts for pair in _pairs(fact)))
    likely = dict(zip(pairs, likelihoods(speaker, pairs), strict=True))
    spelled = [spell(speaker.tokenizer, fact.prompt, fact.target) for fact in facts]
    counts = [len(each.ids) - each.start for each in spelled]
    asked = [(prompt, count) for fact, count in zip(facts, counts, strict=True) for prompt, _ in fact.neighbourhood]
    said = iter(continuations(speaker, asked))
    found = []
    for fact in facts:
        both = [
            (likely[prompt, fact.target], likely[prompt, fact.old] if fact.old else None)
            for prompt in (fact.prompt, *fact.paraphrases)
        ]
        near = [
            (likely[prompt, answer], likely[prompt, fact.target]) for prompt, answer in fact.neighbourhood if answer
        ]
        found.append(Known(both[0], tuple(both[1:]), tuple(near), tuple(next(said) for _ in fact.neighbourhood)))
    return found


def _pairs(fact: Fact) -> Iterator[tuple[str, str]]:
    """Every prompt with an answer whose likelihood tells how well a fact is known."""
    for answer in (fact.target, *([fact.old] if fact.old else [])):
        yield from ((prompt, answer) for prompt in (fact.prompt, *fact.paraphrases))
    for prompt, true in fact.neighbourhood:
        if true is not None:
            yield from ((prompt, true), (prompt, fact.target))


def scores(before: Sequence[Known], after: Sequence[Known]) -> Facts:
    """How well an edit went: each score after it, from 0 to 1; in `before` what it was, in `n` how many prompts it has.

    `efficacy`: the model, always taking the likeliest token, says the target; `efficacy_score`: the target is likelier
    than the old answer; `paraphrase` and `paraphrase_score` are the same in other words. `neighbourhood`: the model
    says there what it said before; `neighbourhood_score`: the true answer is likelier than the target. Likelihoods are
    means over the tokens. `each` has, fact by fact, whether the target is said, and its likelihood before and after.
    """
    was = {name: part(before) for name, part in _PARTS.items()}
    now = {name: part(after) for name, part in _PARTS.items()}
    pairs = [(b.said, a.said) for b, a in zip(before, after, strict=True)]
    now["neighbourhood"] = [x == y for b, a in pairs for x, y in zip(b, a, strict=True)]
    return {
        **{name: _share(held) for name, held in now.items() if held},
        "before": {name: _share(held) for name, held in was.items() if held},
        "n": {name: len(held) for name, held in now.items() if held},
        "each": {
            "said": [one.asked[0].is_said for one in after],
            "before": [round(one.asked[0].mean, 3) for one in before],
            "after": [round(one.asked[0].mean, 3) for one in after],
        },
    }


_PARTS: dict[str, Callable[[Sequence[Known]], list[bool]]] = {
    "efficacy": lambda all_: [one.asked[0].is_said for one in all_],
    "efficacy_score": lambda all_: [_likelier(*one.asked) for one in all_ if one.asked[1]],
    "paraphrase": lambda all_: [new.is_said for one in all_ for new, _ in one.rephrased],
    "paraphrase_score": lambda all_: [_likelier(*pair) for one in all_ for pair in one.rephrased if pair[1]],
    "neighbourhood_score": lambda all_: [_likelier(*pair) for one in all_ for pair in one.near],
}


def _likelier(one: Likelihood, other: Likelihood | None) -> bool:
    assert other is not None
    return one.mean > other.mean


def _share(held: Sequence[bool]) -> float:
    return round(sum(held) / len(held), 6)
