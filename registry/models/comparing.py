"""Diff: what changed from one version to another, in the recipe, in the files and in the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.chains import recipe
from mreg.registry.chains.recipe import StepChange
from mreg.registry.models.manifest import Manifest
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.models.weight_sources import WeightsChange
    from mreg.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class FilesChange:
    """Files other than weights, by relative path; sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    identical: int


@dataclass(frozen=True, slots=True)
class Difference:
    """From `a` to `b`. `tensors` is None when weights were not asked for; `same` when every byte of both is."""

    a: Version
    b: Version
    recipe: tuple[StepChange, ...]
    files: FilesChange
    tensors: WeightsChange | None

    @property
    def is_same(self) -> bool:
        """Whether the two are one version."""
        return self.a.digest == self.b.digest


def diff(
    registry: Registry, a: Version, b: Version, *, weights: bool, report: Callable[[int, int], None]
) -> Difference:
    """Compare two versions; with `weights`, tensor by tensor with numbers, which reads those that differ."""
    before, after = registry.manifest(a), registry.manifest(b)
    tensors = None
    if weights:
        from mreg.registry.models.weight_sources import StoredTensors, compare

        store = registry.store
        tensors = compare(StoredTensors(before, store), StoredTensors(after, store), report=report)
    return Difference(
        a=a,
        b=b,
        recipe=tuple(recipe.compare(registry.recipe(a), registry.recipe(b))),
        files=compare_files(before, after),
        tensors=tensors,
    )


def compare_files(before: Manifest, after: Manifest) -> FilesChange:
    """Which files that hold no tensors were added, removed or changed."""
    ours = {file.path: file.digest for file in before.files if not file.tensors}
    theirs = {file.path: file.digest for file in after.files if not file.tensors}
    common = ours.keys() & theirs.keys()
    changed = sorted(path for path in common if ours[path] != theirs[path])
    return FilesChange(
        added=tuple(sorted(theirs.keys() - ours.keys())),
        removed=tuple(sorted(ours.keys() - theirs.keys())),
        changed=tuple(changed),
        identical=len(common) - len(changed),
    )
