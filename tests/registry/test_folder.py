"""What is taken for a model, what is left out, and what is refused with which way out."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from mreg.registry.models.folder import IncompleteModel, NoModel, UnsafeModel, look

from tests.strategies import TINY, TINY_MODEL, write_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", TINY_MODEL)


def paths(model: Path, *, follow_symlinks: bool = False) -> list[str]:
    return [file.path for file in look(model, follow_symlinks=follow_symlinks).files]


def torch_pickle() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/" + "x" * 300 + "/data.pkl", pickle.dumps({}))
    return content.getvalue()


def test_every_file_is_listed_in_order(model: Path):
    listing = look(model)

    assert sorted(TINY_MODEL) == [file.path for file in listing.files]
    assert sum(map(len, TINY_MODEL.values())) == listing.size
    assert () == listing.marks


def test_a_single_file_is_a_model(model: Path):
    assert ["model.safetensors"] == paths(model / "model.safetensors")


def test_caches_and_repositories_are_left_out_and_said(model: Path):
    write_folder(model, {".git/config": b"", "a/__pycache__/x.pyc": b"", ".cache/y": b"", ".mreg/HEAD": b""})

    listing = look(model)

    assert sorted(TINY_MODEL) == [file.path for file in listing.files]
    assert (".cache", ".git", ".mreg", "a/__pycache__") == listing.left_out


def test_excluded_files_are_left_out_by_name_or_by_path(model: Path):
    write_folder(model, {"optimizer.bin": b"", "runs/1/log": b"", "deep/optimizer.bin": b""})

    listing = look(model, exclude=["optimizer.bin", "runs/*"])

    assert sorted(TINY_MODEL) == [file.path for file in listing.files]
    assert ("deep/optimizer.bin", "optimizer.bin", "runs/1") == listing.left_out


def test_empty_folders_are_ignored(model: Path):
    (model / "empty").mkdir()

    assert sorted(TINY_MODEL) == paths(model)


def test_a_path_that_is_not_there_is_no_model(tmp_path: Path):
    with pytest.raises(NoModel, match="does not exist") as refusal:
        look(tmp_path / "nothing")

    assert 5 == refusal.value.exit_code


def test_a_folder_without_weights_is_no_model(tmp_path: Path):
    with pytest.raises(NoModel, match="holds no model"):
        look(write_folder(tmp_path, {"config.json": b"{}"}))


def test_a_file_that_is_no_weights_is_no_model(model: Path):
    with pytest.raises(NoModel, match="holds no model"):
        look(model / "config.json")


def test_a_device_is_no_model():
    with pytest.raises(NoModel, match="neither"):
        look(Path("/dev/null"))


def test_a_link_is_refused_unless_followed(model: Path, tmp_path: Path):
    (tmp_path / "target").write_bytes(b"text")
    (model / "notes").symlink_to(tmp_path / "target")

    with pytest.raises(UnsafeModel, match=r"notes is a symbolic link.*--follow-symlinks"):
        look(model)

    assert "notes" in paths(model, follow_symlinks=True)


def test_the_model_itself_may_be_a_link(model: Path, tmp_path: Path):
    (tmp_path / "latest").symlink_to(model)

    assert sorted(TINY_MODEL) == paths(tmp_path / "latest")


def test_a_dangling_link_is_refused_even_when_followed(model: Path):
    (model / "notes").symlink_to("nowhere")

    with pytest.raises(UnsafeModel, match="link to nothing"):
        look(model, follow_symlinks=True)


def test_a_link_to_itself_is_refused(model: Path):
    (model / "notes").symlink_to("notes")

    with pytest.raises(UnsafeModel, match="link to nothing"):
        look(model, follow_symlinks=True)


def test_a_folder_that_links_into_itself_is_refused(model: Path):
    (model / "tokenizer" / "up").symlink_to(model)

    with pytest.raises(UnsafeModel, match="tokenizer/up is a link to a folder that it lies in"):
        look(model, follow_symlinks=True)


def test_a_pipe_is_refused(model: Path):
    os.mkfifo(model / "pipe")

    with pytest.raises(UnsafeModel, match="pipe is not a regular file"):
        look(model)


@pytest.mark.parametrize("name", [b"a\x1b[2Jb", b"a\nb", "a\u202eb".encode(), b"\xff\xfe", b"a\\b"])
def test_a_name_that_is_not_what_it_seems_is_refused(model: Path, name: bytes):
    Path(os.fsdecode(os.fsencode(model) + b"/" + name)).write_bytes(b"")

    with pytest.raises(UnsafeModel) as refusal:
        look(model)

    assert refusal.value.message.isprintable()


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.ckpt", "x.pkl", "x.pickle", "x.joblib", "a/X.BIN"])
def test_a_pickle_is_known_by_its_name(model: Path, name: str):
    write_folder(model, {name: b""})

    with pytest.raises(UnsafeModel, match=f"{name} is a pickle.*--exclude {name}.*save_pretrained.*--trust pickle"):
        look(model)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_known_by_its_content(model: Path, protocol: int):
    write_folder(model, {"weights": pickle.dumps({"a": 1}, protocol)})

    with pytest.raises(UnsafeModel, match="weights is a pickle by its content"):
        look(model)


def test_a_torch_archive_is_known_by_its_content(model: Path):
    write_folder(model, {"weights": torch_pickle()})

    with pytest.raises(UnsafeModel, match="weights is a pickle by its content"):
        look(model)


def test_an_archive_that_is_no_pickle_is_taken(model: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", "text")
    write_folder(model, {"data.zip": content.getvalue(), "broken.zip": b"PK\x03\x04"})

    assert sorted([*TINY_MODEL, "data.zip", "broken.zip"]) == paths(model)


def test_a_trusted_pickle_leaves_a_mark(model: Path):
    write_folder(model, {"training_args.bin": b"x"})

    listing = look(model, trust={"pickle"})

    assert ("pickle",) == listing.marks
    assert "training_args.bin" in [file.path for file in listing.files]


def test_trust_that_was_not_needed_leaves_no_mark(model: Path):
    assert () == look(model, trust={"pickle", "code"}).marks


def test_a_pickle_is_no_model_even_when_trusted(tmp_path: Path):
    with pytest.raises(NoModel):
        look(write_folder(tmp_path, {"pytorch_model.bin": b"x"}), trust={"pickle"})


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_custom_code_named_by_a_config_is_refused_unless_trusted(model: Path, name: str):
    write_folder(model, {name: json.dumps({"auto_map": {"AutoModel": "modeling.X"}}).encode()})

    with pytest.raises(UnsafeModel, match=f"{name} names custom code.*--trust code"):
        look(model)

    assert ("code",) == look(model, trust={"code"}).marks


def test_python_files_are_refused_unless_trusted(model: Path):
    write_folder(model, {"modeling.py": b""})

    with pytest.raises(UnsafeModel, match=r"modeling\.py is Python code"):
        look(model)

    assert ("code",) == look(model, trust={"code"}).marks


def test_a_config_that_is_not_json_is_refused(model: Path):
    write_folder(model, {"config.json": b"{"})

    with pytest.raises(IncompleteModel, match=r"config\.json is not JSON"):
        look(model)


def test_a_missing_shard_is_named(model: Path):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    write_folder(model, {"model.safetensors.index.json": json.dumps(index).encode()})

    with pytest.raises(IncompleteModel, match=r"the shard model-2\.safetensors"):
        look(model)


def test_an_index_with_all_its_shards_is_taken(model: Path):
    index = {"weight_map": {"a": "w.safetensors"}}
    write_folder(model, {"sub/w.safetensors": TINY, "sub/w.safetensors.index.json": json.dumps(index).encode()})

    assert "sub/w.safetensors.index.json" in paths(model)


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {"a": 1}}', b"{"])
def test_an_index_that_says_nothing_is_refused(model: Path, index: bytes):
    write_folder(model, {"model.safetensors.index.json": index})

    with pytest.raises(IncompleteModel):
        look(model)


def test_a_gguf_file_that_is_none_is_refused(model: Path):
    write_folder(model, {"model.gguf": b"<html>"})

    with pytest.raises(IncompleteModel, match="not a GGUF file"):
        look(model)
