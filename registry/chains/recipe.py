"""Recipes: the steps that lead to a version, and how two of them differ. Pure.

A version's recipe follows the run that first made it. Its inputs were there before it, so a recipe has no cycle even
where the lineage graph has one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mreg.registry import canonical
from mreg.registry.digests import Digest


@dataclass(frozen=True)
class Step:
    """One version and how it was made. An import has no inputs and the transform `import`."""

    version: Digest
    transform: str
    mode: str = "import"
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[tuple[str, Digest], ...] = ()
    datasets: tuple[Digest, ...] = ()
    seed: int | None = None
    threads: int | None = None
    device: str | None = None
    portable: bool = False
    processes: int = 1
    transform_version: int | None = None
    code: str | None = None
    determinism: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    wall_s: float | None = None
    run: str | None = None

    def signature(self) -> bytes:
        """What a step does, without which versions it does it to: equal steps have equal signatures."""
        roles = [role for role, _ in self.inputs]
        what = [self.transform, self.params, list(self.datasets), self.seed, roles, self.processes]
        return canonical.dumps([*what, self.version] if self.mode == "import" else what)


def chain(
    target: Digest,
    step_of: Callable[[Digest], Step],
    *,
    stop: Callable[[Step], bool] = lambda _: False,
    besides: Callable[[Step], Sequence[Digest]] = lambda _: (),
) -> list[Step]:
    """Every step on the way to `target`, each after its inputs, the target's last.

    Ancestors for which `stop` holds are listed but not looked behind. `besides` gives what a step comes after, besides
    its inputs.
    """
    done: dict[Digest, Step] = {}
    waiting = [(target, False)]
    while waiting:
        digest, inputs_done = waiting.pop()
        if digest in done:
            continue
        step = step_of(digest)
        if inputs_done or not step.inputs or (stop(step) and digest != target):
            done[digest] = step
            continue
        waiting.append((digest, True))
        waiting.extend((before, False) for before in reversed(besides(step)))
        waiting.extend((parent, False) for _, parent in reversed(step.inputs))
    return list(done.values())


@dataclass(frozen=True)
class StepChange:
    """One line of a recipe diff: `kind` is same, added, removed or changed; `params` maps what changed to (a, b)."""

    kind: str
    transform: str
    a: Digest | None
    b: Digest | None
    params: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def compare(a: Sequence[Step], b: Sequence[Step]) -> list[StepChange]:
    """How the recipe `b` differs from `a`, in order; steps of one transform that meet are one change."""
    matcher = difflib.SequenceMatcher(None, [s.signature() for s in a], [s.signature() for s in b], autojunk=False)
    found: list[StepChange] = []
    for tag, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        gone, come = list(a[a_from:a_to]), list(b[b_from:b_to])
        if tag == "equal":
            found += [StepChange("same", x.transform, x.version, y.version) for x, y in zip(gone, come, strict=True)]
            continue
        for old in gone:
            new = next((step for step in come if step.transform == old.transform), None)
            if new is None:
                found.append(StepChange("removed", old.transform, old.version, None))
                continue
            for earlier in come[: come.index(new)]:
                found.append(StepChange("added", earlier.transform, None, earlier.version))
            come = come[come.index(new) + 1 :]
            found.append(StepChange("changed", old.transform, old.version, new.version, _changed(old, new)))
        found += [StepChange("added", step.transform, None, step.version) for step in come]
    return found


def _changed(old: Step, new: Step) -> dict[str, tuple[Any, Any]]:
    """Where two steps of one transform differ, by param; seed and datasets count as such."""
    before = {**old.params, "seed": old.seed, "data": list(old.datasets), "processes": old.processes}
    after = {**new.params, "seed": new.seed, "data": list(new.datasets), "processes": new.processes}
    if old.mode == "import" or new.mode == "import":
        before["content"], after["content"] = old.version, new.version
    names = sorted({*before, *after})
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
