"""repack: names become quick, the rest small, and no bit changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.store.choosing import DEEPEST
from mreg.registry.store.objects import DamagedObject
from mreg.registry.store.spans import Held
from mreg.registry.versions import Version

from tests.registry.storing import model_of, weights
from tests.strategies import read_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and three trained from one another, of which the first was named and is no more: a folder to copy."""
    folder = tmp_path_factory.mktemp("trained")
    registry = Registry.init(folder)
    registry.import_model(model_of(folder / "0", weights(0), weights(9)))
    for step in (1, 2, 3):
        output = model_of(folder / str(step), weights(0, steps=step), weights(9))
        ref = "first" if step == 1 else None
        registry.record_version(output, transform="sft", source=f"v{step}", ref=ref)
    registry.delete_ref("first")
    return folder


@pytest.fixture
def registry(trained: Path, tmp_path: Path) -> Registry:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Registry.open(tmp_path)


@pytest.fixture
def chain(registry: Registry) -> list[Version]:
    return registry.versions()


def encodings(registry: Registry, versions: list[Version]) -> list[str]:
    """How the tensor is stored that each version has alone."""
    digests = [next(registry.manifest(version).tensors()).digest for version in versions]
    return [registry.store.envelope(digest).encoding for digest in digests]


def check(registry: Registry, versions: list[Version], tmp_path: Path, name: str) -> None:
    """Everything comes out as it went in, and nothing lies too deep."""
    for place, version in enumerate(versions):
        folder = tmp_path / f"{name}-{place}"
        registry.check_out(version, folder)
        assert read_folder(tmp_path / str(place)) == read_folder(folder)
    assert () == registry.fsck().problems
    assert all(registry.store.depth(digest) <= DEEPEST for digest in registry.store.names())


def test_what_a_name_points_at_is_stored_by_itself_and_the_rest_small(
    registry: Registry, chain: list[Version], tmp_path: Path
):
    assert ["solo", "solo", "residual", "residual"] == encodings(registry, chain)
    registry.set_ref("prod", chain[3])
    done = registry.repack()

    assert ["solo", "residual", "residual", "solo"] == encodings(registry, chain)
    assert {("residual", "solo"): 1, ("solo", "residual"): 1} == done.changes
    check(registry, chain, tmp_path, "named")
    again = registry.repack()
    assert (0, 5, again.before) == (again.objects, again.left, again.after)
    registry.delete_ref("prod")
    done = registry.repack()
    assert ["solo", "residual", "residual", "residual"] == encodings(registry, chain)
    assert done.after is not None
    assert done.after < done.before
    check(registry, chain, tmp_path, "unnamed")


def test_nothing_comes_to_lie_too_deep_below_what_becomes_a_residual(
    registry: Registry, chain: list[Version], tmp_path: Path
):
    registry.repack()

    assert ["solo", "solo", "residual", "residual"] == encodings(registry, chain), "two rest on the second"
    check(registry, chain, tmp_path, "deep")


def test_what_one_version_needs_quick_and_another_small_is_quick(registry: Registry, chain: list[Version]):
    shared = list(registry.manifest(chain[0]).tensors())[1].digest
    registry.repack()

    assert "solo" == registry.store.envelope(shared).encoding


def test_objects_from_before_there_were_encodings_become_small(
    registry: Registry, chain: list[Version], tmp_path: Path
):
    for tensor in {tensor.digest for version in chain for tensor in registry.manifest(version).tensors()}:
        opened = registry.store.open(tensor)
        with registry.store.batch() as batch:
            batch.put(opened.envelope.encoded("raw"), Held(bytes(opened.payload)), tensor, again=True)
    assert ["raw"] * 4 == encodings(registry, chain)
    registry.repack()

    assert ["solo", "residual", "residual", "residual"] == encodings(registry, chain)
    check(registry, chain, tmp_path, "old")


def test_a_dry_run_changes_nothing(registry: Registry, chain: list[Version]):
    registry.set_ref("prod", chain[3])
    before = encodings(registry, chain)
    planned = registry.repack(dry_run=True)

    assert before == encodings(registry, chain)
    assert (1, None) == (planned.changes["residual", "solo"], planned.after)


def test_a_damaged_object_is_left_as_it_is(registry: Registry, chain: list[Version]):
    registry.set_ref("prod", chain[3])
    path = registry.store.path(next(registry.manifest(chain[3]).tensors()).digest)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)

    with pytest.raises(DamagedObject):
        registry.repack()
    assert bytes(content) == path.read_bytes()


def test_progress_ends_with_all_of_it(registry: Registry, chain: list[Version]):
    heard: list[tuple[int, int]] = []
    registry.repack(report=lambda done, total: heard.append((done, total)))

    assert chain
    assert heard == sorted(heard)
    assert 1 == len({total for _, total in heard})
    assert heard[-1][0] == heard[-1][1]


def test_what_a_version_takes_is_told_by_how_it_is_stored(registry: Registry, chain: list[Version]):
    costs = registry.costs()
    base, first, second, third = costs.versions

    assert (2, 1) == (base.encodings["solo"].objects, second.encodings["delta"].objects)
    assert [("v2", 1), ("v3", 1), ("v4", 1)] == list(base.shared_with)
    assert second.own.bytes < first.own.bytes < base.own.bytes
    assert 2 == third.shared.objects, "the tensor and the config that all have"
    assert costs.store.bytes == sum(map(registry.store.disk_size, registry.store.names()))
    assert costs.store.bytes == sum(cost.own.bytes for cost in costs.versions)
    assert sum(version.bytes for version in chain) == costs.logical
    assert (third,) == registry.costs("v4").versions
