"""What is listed, and what is said where an object is missing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from mreg.registry import Registry
from mreg.registry.models.folder import look
from mreg.registry.models.intake import store_folder
from mreg.registry.store.listed import listed
from mreg.registry.store.objects import MissingObject, ObjectStore

from tests.registry.storing import model_of, weights
from tests.strategies import model_folders, write_folder


@given(model_folders())
def test_what_is_listed_is_what_a_checkout_reads(files: dict[str, bytes]):
    with TemporaryDirectory() as folder:
        store = ObjectStore(Path(folder, "objects"))
        with store.batch() as batch:
            manifest = store_folder(look(write_folder(Path(folder, "model"), files)), batch)
        found = listed(store, manifest.object_digest)

    plain = {file.digest for file in manifest.files if file.header is None and not file.path.endswith(".gguf")}
    assert manifest.objects() == found.all
    assert plain == found.others
    assert not found.weights & found.others


def test_a_missing_object_is_named_with_the_version_that_it_belongs_to(registry: Registry, tmp_path: Path):
    registry.import_model(model_of(tmp_path / "a", weights(1)))
    second = registry.import_model(model_of(tmp_path / "b", weights(2), weights(1))).version
    gone = next(registry.manifest(second).tensors()).digest
    registry.store.path(gone).unlink()

    with pytest.raises(MissingObject, match=f"object {gone[:12]} of v2 is not in the store: import the model again"):
        registry.check_out("v2", tmp_path / "out")


def test_where_all_manifests_are_missing_one_is_named(registry: Registry, tmp_path: Path):
    versions = [registry.import_model(model_of(tmp_path / str(seed), weights(seed))).version for seed in (1, 2)]
    for version in versions:
        registry.store.path(version.manifest).unlink()

    with pytest.raises(MissingObject, match=f"object {versions[0].manifest[:12]} of v1 is not in the store"):
        registry.manifest("v1")
    assert 2 == len(registry.fsck().problems)


def test_an_object_of_no_version_is_just_missing(registry: Registry):
    with pytest.raises(MissingObject, match="object aaaaaaaaaaaa is not in the store"):
        registry.store.read_bytes("a" * 64)
