"""What the writing commands do, and what they say of it."""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("filled")


def test_init_makes_a_registry_and_says_where(ok: Run, here: Path) -> None:
    made = ok("init", "models")

    assert str(here / "models" / ".mreg") == made["path"]
    assert {"registry", "path"} <= made.keys()


def test_init_takes_the_folder_from_the_registry_option(ok: Run, here: Path) -> None:
    assert str(here / "models" / ".mreg") == ok("--registry", "models", "init")["path"]


def test_import_says_what_came_in(ok: Run, model: Run) -> None:
    ok("init", "x")

    came = ok("--registry", "x", "import", model("m"), "--as", "base", "-m", "new")

    assert {"version", "digest", "weights", "files", "tensors", "bytes_added", "event"} <= came.keys()
    assert ("v1", 2, 5, True) == (came["version"], came["files"], came["tensors"], came["is_new"])


def test_importing_again_adds_nothing(ok: Run, run: Run) -> None:
    again = ok("import", "a")

    assert ("v1", 0, False) == (again["version"], again["bytes_added"], again["is_new"])
    assert "it was there already" in run("import", "a").out


def test_what_an_import_leaves_out_is_said(run: Run, model: Run) -> None:
    model("m").joinpath("notes.bin").write_bytes(b"\x00")

    refused = run("import", "m")
    taken = run("import", "m", "--exclude", "*.bin")

    assert 5 == refused.code
    assert "--exclude notes.bin" in refused.err
    assert "left out: notes.bin" in taken.out


def test_recording_names_the_parents_the_settings_and_the_name(ok: Run, model: Run) -> None:
    model("new", seed=9, changed=1)

    made = ok("record", "--from", "prod", "--with", "teacher=v1", "--output", "new", "--transform", "my-distill",
              "--set", "temperature=2", "--as", "student")  # fmt: skip

    assert {"version", "digest", "weights", "parents", "transform", "params", "facts", "cached", "event"} <= made.keys()
    assert ("v5", ["v2", "v1"], {"temperature": 2}) == (made["version"], made["parents"], made["params"])
    assert "v5" == ok("show", "student")["version"]


def test_recording_the_source_itself_is_said_loudly(run: Run) -> None:
    result = run("record", "--from", "v1", "--output", "a", "--transform", "nothing")

    assert "nothing changed: the weights are those of v1" in result.out


def test_a_dataset_added_twice_is_one(ok: Run, filled: Path) -> None:
    (filled / "same.csv").write_text("text\none\ntwo\n")

    added = ok("data", "add", "same.csv", "--as", "again")

    assert {"dataset", "digest", "rows"} <= added.keys()
    assert 1 == len(ok("data", "list"))
    assert ["again", "lines"] == sorted(added["names"])


def test_a_ref_moves_and_says_from_where_to_where(ok: Run, run: Run) -> None:
    moved = ok("ref", "set", "prod", "v3", "-m", "better")
    again = run("ref", "set", "prod", "v3")

    assert ("prod", "v2", "v3") == (moved["ref"], moved["old"], moved["new"])
    assert "already is v3, nothing was recorded" in again.out


def test_rollback_goes_where_the_ref_was(ok: Run) -> None:
    back = ok("rollback", "prod", "-m", "worse")

    assert ("v2", "v3") == (back["old"], back["new"])
    assert back["event"] == ok("ref", "log", "prod")[0]["event"]


def test_a_deleted_ref_keeps_its_history(ok: Run, run: Run) -> None:
    ok("ref", "delete", "prod")

    assert 4 == run("show", "prod").code
    assert [None, "v2", "v3"] == [move["new"] for move in ok("ref", "log", "prod")]


def test_a_checkout_is_what_went_in(ok: Run, run: Run, filled: Path) -> None:
    out = ok("checkout", "sft", "out")

    same = filecmp.dircmp(filled / "b", filled / "out")
    assert ([], [], ["config.json", "model.safetensors"]) == (same.left_only, same.right_only, sorted(same.same_files))
    assert {"bytes", "objects"} <= out.keys()
    assert 2 == run("checkout", "sft", "out").code


def test_fsck_finds_nothing_in_a_sound_registry(ok: Run) -> None:
    found = ok("fsck")

    assert (True, []) == (found["ok"], found["problems"])


def test_fsck_names_a_damaged_object_and_ends_with_1(run: Run, filled: Path) -> None:
    largest = max((filled / ".mreg" / "objects").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    largest.chmod(0o644)
    damaged = bytearray(largest.read_bytes())
    damaged[-1] ^= 1
    largest.write_bytes(damaged)

    result = run("fsck")

    assert 1 == result.code
    assert largest.parent.name + largest.name in result.out
    assert not run("--json", "fsck").json["ok"]


def test_a_deleted_database_is_made_anew(ok: Run, run: Run, filled: Path) -> None:
    before = run("log").out
    (filled / ".mreg" / "registry.duckdb").unlink()

    after = run("log")

    assert before == after.out
    assert "registry.duckdb is rebuilt from the journal" in after.err
    assert (True, []) == (ok("rebuild")["ok"], ok("rebuild")["problems"])


def test_the_actor_comes_from_the_environment(ok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MREG_ACTOR", "ci@example")

    ok("ref", "set", "prod", "v1")

    assert "ci@example" == ok("ref", "log", "prod")[0]["actor"]
