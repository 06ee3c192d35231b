"""Models in and out again: byte for byte, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from mreg.registry.models import intake
from mreg.registry.models.checkout import DestinationTaken, check_out
from mreg.registry.models.folder import FolderListing, look
from mreg.registry.models.intake import ModelChanged, store_folder
from mreg.registry.models.manifest import Manifest
from mreg.registry.models.safetensors_header import MalformedSafetensors
from mreg.registry.store.objects import DamagedObject, MissingObject, ObjectStore

from tests.strategies import TINY, TINY_MODEL, model_folders, read_folder, write_folder


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", TINY_MODEL)


def take_in(source: Path, store: ObjectStore) -> Manifest:
    with store.batch() as batch:
        return store_folder(look(source), batch)


@given(model_folders())
@settings(max_examples=25)
def test_any_model_comes_back_byte_for_byte(files: dict[str, bytes]):
    with tempfile.TemporaryDirectory() as folder:
        store = ObjectStore(Path(folder) / "objects")
        manifest = take_in(write_folder(Path(folder) / "in", files), store)
        check_out(manifest, store, Path(folder) / "out")

        assert files == read_folder(Path(folder) / "out")
        assert manifest.objects() | {manifest.object_digest} == set(store.names())


def test_the_manifest_is_stored_with_the_model(store: ObjectStore, model: Path):
    manifest = take_in(model, store)

    assert manifest == Manifest.from_bytes(store.read_bytes(manifest.object_digest))


def test_judging_a_folder_gives_the_same_manifest_and_stores_nothing(store: ObjectStore, model: Path):
    judged = store_folder(look(model), None)

    assert not store.root.exists()
    assert take_in(model, store) == judged


def test_a_model_taken_in_twice_adds_nothing(store: ObjectStore, model: Path):
    take_in(model, store)

    with store.batch() as batch:
        store_folder(look(model), batch)

    assert (0, 0) == (batch.objects_added, batch.bytes_added)


def test_tensors_are_shared_whatever_file_holds_them(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)
    other = write_folder(tmp_path / "other", {"renamed.safetensors": TINY})

    with store.batch() as batch:
        again = store_folder(look(other), batch)

    assert manifest.weights_digest == again.weights_digest
    assert 1 == batch.objects_added, "its manifest"


def test_a_file_of_known_parts_is_not_hashed_again(store: ObjectStore, model: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = take_in(model, store)
    asked: list[str] = []

    def twin(weights: str) -> Manifest | None:
        asked.append(weights)
        return manifest

    with store.batch() as batch:
        monkeypatch.setattr(intake, "_hash_whole", lambda content: pytest.fail("it was hashed whole"))
        again = store_folder(look(model), batch, twin=twin)

    assert manifest == again
    assert [manifest.weights_digest] == asked


@pytest.mark.parametrize("what", ["another header", "other tensors", "no known model"])
def test_a_file_is_hashed_where_it_is_not_the_known_one(store: ObjectStore, model: Path, tmp_path: Path, what: str):
    manifest = take_in(model, store)
    other = {
        "another header": TINY.replace(b'"pt"', b'"tf"'),
        "other tensors": TINY[:-1] + b"x",
        "no known model": TINY,
    }[what]
    folder = write_folder(tmp_path / "other", {**TINY_MODEL, "model.safetensors": other})

    with store.batch() as batch:
        again = store_folder(look(folder), batch, twin=lambda _: None if what == "no known model" else manifest)

    assert again == store_folder(look(folder), None)
    assert (what == "no known model") == (again == manifest)


def test_progress_ends_at_the_size_of_the_model(store: ObjectStore, model: Path, tmp_path: Path):
    into: list[tuple[int, int]] = []
    out: list[tuple[int, int]] = []

    with store.batch() as batch:
        manifest = store_folder(look(model), batch, lambda done, total: into.append((done, total)))
    check_out(manifest, store, tmp_path / "out", lambda done, total: out.append((done, total)))

    size = sum(map(len, TINY_MODEL.values()))
    assert (size, size) == into[-1] == out[-1]
    assert sorted(into) == into


def test_a_malformed_file_stores_nothing(store: ObjectStore, tmp_path: Path):
    source = write_folder(tmp_path / "m", {"a.safetensors": TINY, "b.safetensors": TINY[:-1]})

    with pytest.raises(MalformedSafetensors, match=r"b\.safetensors"):
        take_in(source, store)

    assert [] == list(store.names())


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [append, shorten, touch])
@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_file_that_changes_after_it_was_listed_is_refused(
    store: ObjectStore, model: Path, path: str, change: Callable[[Path], None]
):
    listing = look(model)
    change(model / path)

    with pytest.raises(ModelChanged, match=path), store.batch() as batch:
        store_folder(listing, batch)

    assert [] == list(store.names())


def test_a_file_that_changes_while_it_is_read_is_refused(store: ObjectStore, model: Path):
    listing = look(model)

    def interfere(_done: int, _total: int) -> None:
        (model / "model.safetensors").write_bytes(TINY + b"x")

    with pytest.raises(ModelChanged), store.batch() as batch:
        store_folder(FolderListing(model, listing.files[1:2], (), ()), batch, interfere)


def test_a_checkout_goes_into_an_empty_folder(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)
    (tmp_path / "out").mkdir()

    check_out(manifest, store, tmp_path / "out")

    assert dict(TINY_MODEL) == read_folder(tmp_path / "out")


def test_a_checkout_makes_the_folders_above_it(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)

    check_out(manifest, store, tmp_path / "a" / "b")

    assert dict(TINY_MODEL) == read_folder(tmp_path / "a" / "b")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_checkout_overwrites_nothing(store: ObjectStore, model: Path, tmp_path: Path, kind: str):
    manifest = take_in(model, store)
    destination = tmp_path / "out"
    if kind == "file":
        destination.write_bytes(b"mine")
    elif kind == "folder":
        write_folder(destination, {"mine": b""})
    else:
        (tmp_path / "empty").mkdir()
        destination.symlink_to(tmp_path / "empty")

    with pytest.raises(DestinationTaken) as refusal:
        check_out(manifest, store, destination)

    assert 2 == refusal.value.exit_code


@pytest.mark.parametrize("which", range(5))
def test_a_damaged_object_leaves_no_folder(store: ObjectStore, model: Path, tmp_path: Path, which: int):
    manifest = take_in(model, store)
    path = store.path(sorted(manifest.objects())[which])
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")

    with pytest.raises(DamagedObject):
        check_out(manifest, store, tmp_path / "out")

    assert {"model", "objects"} == {entry.name for entry in tmp_path.iterdir()}


def test_a_missing_object_leaves_no_folder(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)
    store.path(min(manifest.objects())).unlink()

    with pytest.raises(MissingObject):
        check_out(manifest, store, tmp_path / "out")

    assert {"model", "objects"} == {entry.name for entry in tmp_path.iterdir()}


def test_a_file_that_its_parts_do_not_make_is_refused(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)
    text = manifest.to_bytes().replace(manifest.files[1].digest.encode(), b"0" * 64)

    with pytest.raises(DamagedObject, match=r"the parts of model\.safetensors"):
        check_out(Manifest.from_bytes(text), store, tmp_path / "out")


def test_an_object_that_became_a_pipe_is_told_and_not_waited_for(store: ObjectStore, model: Path, tmp_path: Path):
    manifest = take_in(model, store)
    path = store.path(next(manifest.tensors()).digest)
    path.unlink()
    os.mkfifo(path)

    with pytest.raises(DamagedObject, match="not a regular file"):
        check_out(manifest, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
