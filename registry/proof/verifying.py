"""Verify: a version's objects against their digests, and what its steps claim against the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.chains.recipe import Step
from mreg.registry.errors import MregError
from mreg.registry.files import disk_errors
from mreg.registry.log import queries
from mreg.registry.models.weight_sources import StoredTensors
from mreg.registry.proof import claims
from mreg.registry.proof.claim import Beside, Claim, Made, Verdict
from mreg.registry.store.absence import refuse_evicted
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry


@dataclass(frozen=True)
class StepClaims:
    """The claims of the step that made `version`, and the weakest of their verdicts."""

    version: Version
    transform: str
    mode: str
    inputs: tuple[Version, ...]
    claims: tuple[Claim, ...]

    @property
    def verdict(self) -> Verdict:
        """The first of contradicted, not-checkable, consistent and proved that a claim has."""
        return claims.weakest(list(self.claims))


@dataclass(frozen=True)
class Verified:
    """What verifying came to. `problems` are objects missing or damaged; `steps` are empty unless asked for."""

    version: Version
    objects: int
    problems: tuple[str, ...]
    steps: tuple[StepClaims, ...]

    @property
    def ok(self) -> bool:
        """Whether every object is whole and no claim is contradicted."""
        return not self.problems and all(step.verdict != "contradicted" for step in self.steps)


def verify(registry: Registry, version: Version, *, with_claims: bool, report: Callable[[int, int], None]) -> Verified:
    """Check every object of a version; with claims, also each step that led to it, without running any."""
    refuse_evicted(registry, version)
    manifest = registry.manifest(version)
    tensors = {tensor.digest for tensor in manifest.tensors()}
    wanted = sorted({*(file.digest for file in manifest.files if not file.tensors), *tensors})
    steps = [step for step in registry.recipe(version) if step.inputs] if with_claims else []
    problems = []
    for count, digest in enumerate(wanted, start=1):
        if (wrong := registry.store.verify(digest)) is not None:
            problems.append(wrong)
        report(count, len(wanted) + len(steps))
    found = []
    for count, step in enumerate(steps, start=1):
        found.append(_of_step(registry, step))
        report(len(wanted) + count, len(wanted) + len(steps))
    return Verified(version, len(wanted), tuple(problems), tuple(found))


def _of_step(registry: Registry, step: Step) -> StepClaims:
    versions = {
        digest: registry.log.ask(partial(queries.version, digest=digest))
        for digest in (step.version, *(digest for _, digest in step.inputs))
    }
    inputs: dict[str, tuple[StoredTensors, ...]] = {}
    configs: dict[str, dict[str, Any]] = {}
    beside: dict[str, tuple[Beside, ...]] = {"output": (_beside(registry, versions[step.version]),)}
    for role, digest in step.inputs:
        inputs[role] = (*inputs.get(role, ()), _weights(registry, versions[digest]))
        beside[role] = (*beside.get(role, ()), _beside(registry, versions[digest]))
        if versions[digest].adapter:
            configs[role] = _config(registry, versions[digest])
    made = Made(
        transform=step.transform,
        params=step.params,
        facts=step.facts,
        inputs=inputs,
        configs=configs,
        output=_weights(registry, versions[step.version]),
        config=_config(registry, versions[step.version]),
        is_adapter=versions[step.version].adapter,
        seed=step.seed,
        beside=beside,
    )
    with _gguf(registry, versions[step.version]) as gguf:
        try:
            found = claims.check(replace(made, gguf=gguf))
        except MregError as error:
            found = [Claim("it can be checked", "not-checkable", str(error))]
    return StepClaims(
        version=versions[step.version],
        transform=step.transform,
        mode=step.mode,
        inputs=tuple(versions[digest] for _, digest in step.inputs),
        claims=tuple(found),
    )


@contextmanager
def _gguf(registry: Registry, version: Version) -> Iterator[Path | None]:
    """The GGUF file that a version holds instead of tensors, as a file while inside; None where it has none."""
    manifest = registry.manifest(version)
    held = [file for file in manifest.files if file.path.endswith(".gguf")]
    if not held or any(manifest.tensors()):
        yield None
        return
    with registry.scratch(registry.log.new_id()) as folder:
        path = folder / "model.gguf"
        with disk_errors(path), open(path, "wb") as out:
            registry.store.copy_to(held[0].digest, out.write)
        yield path


def _beside(registry: Registry, version: Version) -> Beside:
    files = {file.path: file.digest for file in registry.manifest(version).files if not file.tensors}
    config: Any = json.loads(registry.store.read_bytes(files["config.json"])) if "config.json" in files else {}
    return Beside(
        config=config if isinstance(config, dict) else {},
        files=files,
        read=lambda path: registry.store.read_bytes(files[path]),
    )


def _weights(registry: Registry, version: Version) -> StoredTensors:
    return StoredTensors(registry.manifest(version), registry.store)


def _config(registry: Registry, version: Version) -> dict[str, Any]:
    manifest = registry.manifest(version)
    file = manifest.file("adapter_config.json") or manifest.file("config.json")
    parsed: Any = json.loads(registry.store.read_bytes(file.digest)) if file else {}
    return parsed if isinstance(parsed, dict) else {}
