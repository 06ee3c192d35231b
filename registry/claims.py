"""What a step says it did, checked in the weights without running it: the table of who checks what."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mreg.registry.claim import Claim, Made, Verdict
from mreg.registry.claims_delta import adapter_fits, edit, fuse
from mreg.registry.claims_exact import cast, merge
from mreg.registry.claims_grid import quantize
from mreg.registry.claims_sparse import prune
from mreg.registry.claims_training import trained

STRENGTH: tuple[Verdict, ...] = ("contradicted", "not-checkable", "consistent", "proved")
"""The first of these that a step's claims have is the step's."""

Check = Callable[[Made], Iterator[Claim]]


def check(made: Made) -> list[Claim]:
    """Every claim of a step that can be told from weights; at least one."""
    if made.is_adapter:
        return list(adapter_fits(made))
    how = CHECKS.get(made.transform, _nothing_known)
    return list(how(made))


def weakest(claims: list[Claim]) -> Verdict:
    """The verdict of a step with these claims."""
    return next(verdict for verdict in STRENGTH if any(claim.verdict == verdict for claim in claims))


def _nothing_known(made: Made) -> Iterator[Claim]:
    yield Claim(f"{made.transform} did it", "not-checkable", "weights tell nothing of it: replay it")


CHECKS: dict[str, Check] = {
    "cast": cast,
    "prune": prune,
    "quantize": quantize,
    "merge": merge,
    "fuse": fuse,
    "edit": edit,
    **dict.fromkeys(("finetune", "instruct", "adapt", "prefer", "reinforce", "constitute"), trained),
}
