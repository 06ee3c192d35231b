"""Manifests: identity, its laws, and what is refused when one is read back."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from mreg.registry import canonical
from mreg.registry.models.folder import look
from mreg.registry.models.intake import store_folder
from mreg.registry.models.manifest import FileEntry, MalformedManifest, Manifest

from tests.strategies import TINY_MODEL, MadeTensor, model_folders, safetensors, write_folder

GOLDEN = Path(__file__).parent.parent / "golden" / "identity.json"

A = MadeTensor("a", "BF16", (2,), b"\x01\x02\x03\x04")
B = MadeTensor("b", "F32", (1,), b"\x05\x06\x07\x08")


def manifest_of(files: dict[str, bytes]) -> Manifest:
    with tempfile.TemporaryDirectory() as folder:
        return store_folder(look(write_folder(Path(folder), files)), None)


@given(model_folders())
@settings(max_examples=30)
def test_a_manifest_is_read_back_as_it_was(files: dict[str, bytes]):
    manifest = manifest_of(files)

    assert manifest == Manifest.from_bytes(manifest.to_bytes())


def test_the_digests_of_a_known_folder_never_change():
    manifest = manifest_of(dict(TINY_MODEL))
    digests = {
        "files": {file.path: file.digest for file in manifest.files},
        "manifest": manifest.object_digest,
        "tensors": {tensor.name: tensor.digest for tensor in manifest.tensors()},
        "version": manifest.version_digest,
        "weights": manifest.weights_digest,
    }
    if os.environ.get("MREG_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n")

    assert json.loads(GOLDEN.read_text()) == digests


def test_weights_are_the_same_when_resharded_reordered_or_annotated():
    whole = manifest_of({"model.safetensors": safetensors([A, B], {"format": "pt"})})
    reordered = manifest_of({"model.safetensors": safetensors([B, A], padding=3)})
    sharded = manifest_of({"m-1.safetensors": safetensors([B]), "m-2.safetensors": safetensors([A]), "x.txt": b""})

    assert whole.weights_digest == reordered.weights_digest == sharded.weights_digest
    assert 3 == len({whole.version_digest, reordered.version_digest, sharded.version_digest})


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(A, name="c"),
        dataclasses.replace(A, dtype="F16"),
        dataclasses.replace(A, shape=(1, 2)),
        dataclasses.replace(A, data=b"\x01\x02\x03\x05"),
    ],
)
def test_weights_differ_when_a_name_a_dtype_a_shape_or_a_byte_does(other: MadeTensor):
    ours, theirs = (manifest_of({"model.safetensors": safetensors([tensor, B])}) for tensor in (A, other))

    assert ours.weights_digest != theirs.weights_digest


def test_a_gguf_file_counts_as_weights():
    one, other = (manifest_of({"m.gguf": b"GGUF" + content}) for content in (b"1", b"2"))

    assert one.weights_digest != other.weights_digest


def test_objects_are_the_tensors_and_the_other_files():
    manifest = manifest_of({"model.safetensors": safetensors([A, B]), "config.json": b"{}"})

    config = manifest.file("config.json")
    assert config is not None
    assert {config.digest} | {tensor.digest for tensor in manifest.tensors()} == manifest.objects()


def test_an_adapter_is_known_by_its_config():
    files = {"adapter_model.safetensors": safetensors([A])}

    assert not manifest_of(files).is_adapter
    assert manifest_of(files | {"adapter_config.json": b"{}"}).is_adapter


def changed(change: Callable[[Any], object]) -> bytes:
    value = json.loads(manifest_of({"model.safetensors": safetensors([A, B]), "config.json": b"{}"}).to_bytes())
    change(value)
    return canonical.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"files":[],"format":"mreg-manifest/2"}',
        b'{"files":{},"format":"mreg-manifest/1"}',
        b'{"files": [],"format":"mreg-manifest/1"}',
        b'{"files":[],"files":[],"format":"mreg-manifest/1"}',
        changed(lambda m: m.update(more=1)),
        changed(lambda m: m["files"].reverse()),
        changed(lambda m: m["files"].append(m["files"][1])),
        changed(lambda m: m["files"][0].update(path="../config.json")),
        changed(lambda m: m["files"][0].update(path="/config.json")),
        changed(lambda m: m["files"][0].update(path="a//b")),
        changed(lambda m: m["files"][0].update(path="a\\b")),
        changed(lambda m: m["files"][0].update(path="")),
        changed(lambda m: m["files"][0].update(path="a\x1bb")),
        changed(lambda m: m["files"].insert(1, m["files"][0] | {"path": "config.json/x"})),
        changed(lambda m: m["files"][0].update(size=-1)),
        changed(lambda m: m["files"][0].update(size="2")),
        changed(lambda m: m["files"][0].update(digest="ab")),
        changed(lambda m: m["files"][0].update(digest="A" * 64)),
        changed(lambda m: m["files"][0].update(more=1)),
        changed(lambda m: m["files"][0].update(header="{}")),
        changed(lambda m: m["files"][1].update(header="{")),
        changed(lambda m: m["files"][1].update(header=1)),
        changed(lambda m: m["files"][1].update(size=m["files"][1]["size"] + 1)),
        changed(lambda m: m["files"][1]["tensors"].pop()),
        changed(lambda m: m["files"][1]["tensors"].reverse()),
        changed(lambda m: m["files"][1]["tensors"][0].update(dtype="F16")),
        changed(lambda m: m["files"][1]["tensors"][0].update(digest="x")),
        changed(lambda m: m["files"][1]["tensors"][0].pop("digest")),
    ],
)
def test_a_malformed_manifest_is_refused(data: bytes):
    with pytest.raises(MalformedManifest) as refusal:
        Manifest.from_bytes(data)

    assert 7 == refusal.value.exit_code


def test_a_file_that_is_a_manifest_is_no_version():
    manifest = Manifest((FileEntry("x.gguf", 4, manifest_of({"x.gguf": b"GGUF"}).files[0].digest),))

    assert manifest.object_digest != manifest.version_digest
