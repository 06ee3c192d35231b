"""Bisection over a lineage graph: which version to test next, and what the answers leave as the culprit. Pure.

The law: one step broke it, and every version made from a broken one is broken. So a bad answer leaves the tested
version and its ancestors, a good one takes them away. Each test is chosen to halve what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mreg.registry.chains.graph import reach
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused

Answer = Literal["good", "bad", "skip"]
"""What a test says of a version; `skip` where it cannot be tested."""

Parents = Callable[[Digest], Iterable[Digest]]


@dataclass(frozen=True)
class Search:
    """What is left. `suspects` maps each version that may be the culprit to its ancestors among them, and itself."""

    suspects: Mapping[Digest, frozenset[Digest]]
    skipped: frozenset[Digest] = frozenset()

    @property
    def culprits(self) -> frozenset[Digest]:
        """The one that broke it, once there is nothing more to test; several where the others could not be tested."""
        return frozenset(self.suspects)

    def next(self, among: Collection[Digest] | None = None) -> Digest | None:
        """The version whose answer tells most; None when no test can tell more. `among` leaves a choice of these only.

        The newest suspect, from which all others descend to nothing, is known to be bad and is not asked for.
        """
        count = len(self.suspects)
        halves = {
            version: min(len(behind), count - len(behind))
            for version, behind in self.suspects.items()
            if version not in self.skipped and len(behind) < count and (among is None or version in among)
        }
        return max(sorted(halves), key=lambda version: halves[version]) if halves else None

    def told(self, version: Digest, answer: Answer) -> Search:
        """The search after an answer."""
        if answer == "skip":
            return Search(self.suspects, self.skipped | {version})
        behind = self.suspects[version]
        left = behind if answer == "bad" else self.suspects.keys() - behind
        return Search({one: self.suspects[one] & left for one in left}, self.skipped & left)

    @property
    def least_tests(self) -> int:
        """No way of asking can do with fewer tests than this, whatever the answers are."""
        return math.ceil(math.log2(len(self.suspects)))


def begin(good: Collection[Digest], bad: Digest, parents: Parents) -> Search:
    """The search between good versions and a bad one. Raises Refused where it can find nothing."""
    if bad in good:
        raise Refused("the same version is said to be good and bad", fix="give two versions")
    fine = {*good, *(ancestor for one in good for ancestor in reach(one, parents))}
    if bad in fine:
        raise Refused("the bad version is one that a good one was made from", fix="is it the other way round?")
    suspects = [one for one in (bad, *reach(bad, parents)) if one not in fine]
    behind = {one: frozenset({one, *reach(one, parents)}) for one in suspects}
    return Search({one: behind[one] & set(suspects) for one in suspects})


def lead_for(confidence: float, error_rate: float, tests: int) -> int:
    """How far one answer must be ahead of the other before it is believed: Wald's sequential test.

    `error_rate` < 0.5 is how often a single answer is wrong; all of the `tests` together are right with at least
    `confidence`. 1 when answers are never wrong.
    """
    if error_rate <= 0:
        return 1
    wrong = (1 - confidence) / max(tests, 1)
    return math.ceil(math.log((1 - wrong) / wrong) / math.log((1 - error_rate) / error_rate))
