"""What a step says it did, checked in the weights without running it: the table of who checks what."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mreg.registry.proof.claim import Claim, Made, Verdict
from mreg.registry.proof.claims_adapter import adapter_fits, extract
from mreg.registry.proof.claims_calibrate import calibrate
from mreg.registry.proof.claims_delta import edit, fuse
from mreg.registry.proof.claims_exact import cast
from mreg.registry.proof.claims_grid import quantize
from mreg.registry.proof.claims_merge import merge
from mreg.registry.proof.claims_revert import revert
from mreg.registry.proof.claims_sparse import prune
from mreg.registry.proof.claims_training import distilled, rewarded, trained

STRENGTH: tuple[Verdict, ...] = ("contradicted", "not-checkable", "consistent", "proved")
"""The first of these that a step's claims have is the step's."""

Check = Callable[[Made], Iterator[Claim]]


def check(made: Made) -> list[Claim]:
    """Every claim of a step that can be told from weights; at least one."""
    if made.is_adapter and made.transform != "extract":
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
    "extract": extract,
    "calibrate": calibrate,
    "reward": rewarded,
    "distill": distilled,
    "revert": revert,
    **dict.fromkeys(("finetune", "instruct", "adapt", "prefer", "reinforce", "constitute"), trained),
}
