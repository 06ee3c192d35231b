"""Revert from the command line: which way it goes, and why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

Run = Callable[..., Any]

LAYERS = [f"model.layers.{layer}.mlp.weight" for layer in range(3)]


@pytest.fixture
def chain(filled: Path, run: Run) -> None:  # noqa: ARG001  its models are in the working directory
    """v5, v6 and v7, each from the one before and the first from v1, change layers 0, 1 and 0 again."""
    for number, (source, layer) in enumerate((("a", 0), ("5", 1), ("6", 0)), start=5):
        shutil.copytree(source, str(number))
        tensors = load_file(Path(source, "model.safetensors"))
        save_file({**tensors, LAYERS[layer]: tensors[LAYERS[layer]] + 1}, f"{number}/model.safetensors")
        parent = "v1" if number == 5 else f"v{number - 1}"
        assert 0 == run("record", "--from", parent, "--output", str(number), "--transform", "tweak").code


@pytest.mark.usefixtures("chain")
def test_a_step_is_taken_out_by_weights(run: Run, ok: Run) -> None:
    planned = ok("revert", "v5", "--from", "v6", "--dry-run")
    told = run("revert", "v5", "--from", "v6", "--as", "fixed", "-m", "wrong")
    again = ok("revert", "v5", "--from", "v6")

    assert ("weights", [LAYERS[0]], None) == (planned["way"], planned["tensors"], planned["version"])
    assert 0 == told.code, told.err
    assert "by weights: v6 holds what v5 changed as v5 left it" in told.out
    assert "v8 (fixed) is v6 without v5" in told.out
    assert ("v8", True, ["reuse"]) == (again["version"], again["cached"], [one["action"] for one in again["steps"]])
    changed = [run("diff", rev, "fixed", "--json").json["tensors"]["changed"] for rev in ("v6", "v1")]
    assert [[LAYERS[0]], [LAYERS[1]]] == [[one["name"] for one in names] for names in changed]
    assert ["v6", "v5", "v1"] == ok("show", "fixed")["parents"]


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["v5", "--from", "v7"],
            11,
            f"not by weights, since {LAYERS[0]} was changed again by v7 (tweak); not by rebase",
        ),
        (["v5", "--from", "v7", "--way", "weights"], 11, f"by weights: {LAYERS[0]} was changed again by v7"),
        (["v6", "--from", "v7", "--way", "rebase"], 11, "made elsewhere"),
        (["v1", "--from", "v7"], 11, "v1 was imported"),
        (["v2", "--from", "v7"], 11, "v2 is not on the way to v7"),
        (["v5"], 2, "missing option '--from'"),
        (["v99", "--from", "v7"], 4, "no version is called 'v99'"),
    ],
)
def test_what_cannot_be_taken_out_is_said_in_one_line(run: Run, arguments: list[str], code: int, said: str) -> None:
    result = run("revert", *arguments)

    assert (code, 1) == (result.code, len(result.err.splitlines())), result.err
    assert said in result.err
