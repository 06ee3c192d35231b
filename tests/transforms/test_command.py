"""A command of somebody's own: what it is told, what is kept of it, and how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mreg.registry.errors import Refused
from mreg.transforms.command import CommandParams, check, surroundings

from tests.transforms.conftest import Run, Stock

TELL = """
import json, os, pathlib, shutil
told = {name: value for name, value in os.environ.items() if name.startswith("MREG_") or name == "COLOUR"}
output = pathlib.Path(told["MREG_OUTPUT"])
shutil.copytree(told["MREG_INPUT"], output, dirs_exist_ok=True)
(output / "training_args.bin").write_bytes(b"pickled")
(output / "checkpoint-3").mkdir()
(output / "checkpoint-3" / "optimizer.pt").write_bytes(b"state")
pathlib.Path(told["MREG_FACTS"]).write_text(json.dumps({"told": told, "cwd": os.getcwd(), "losses": [3, 2, 1]}))
"""


def python(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def test_a_command_is_told_where_everything_is(run: Run, stock: Stock, tmp_path: Path):
    more: dict[str, Path | list[Path]] = {"base": stock.base, "others": [stock.other, stock.sharded]}

    ran = run(
        "command",
        stock.adapter,
        more=more,
        data="text",
        command=python(TELL),
        cwd=str(tmp_path),
        env={"COLOUR": "red"},
    )

    told = ran.outcome.facts["told"]
    assert ran.outcome.error is None
    assert str(tmp_path) == ran.outcome.facts["cwd"]
    assert (str(stock.adapter), str(stock.base)) == (told["MREG_INPUT"], told["MREG_BASE"])
    assert f"{stock.other}:{stock.sharded}" == told["MREG_WITH"]
    assert str(stock.data / "text.jsonl") == told["MREG_DATA"]
    assert ("7", "1", "cpu", "red") == (told["MREG_SEED"], told["MREG_THREADS"], told["MREG_DEVICE"], told["COLOUR"])
    assert [3, 2, 1] == ran.outcome.facts["losses"]


def test_what_a_trainer_leaves_beside_the_model_is_left_out(run: Run, stock: Stock):
    ran = run("command", stock.adapter, command=python(TELL))

    assert ["checkpoint-3", "training_args.bin"] == ran.outcome.facts["left_out"]
    assert {"adapter_config.json", "adapter_model.safetensors"} == {path.name for path in ran.output.iterdir()}


def test_what_it_prints_is_in_the_log(run: Run, stock: Stock):
    ran = run("command", stock.base, command=("sh", "-c", "echo one; echo two >&2; touch $MREG_OUTPUT/a"))

    assert ran.outcome.log is not None
    assert {"one", "two"} == set(ran.outcome.log.read_text().split())


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("sh", "-c", "echo dear; echo me >&2; exit 3"), "sh ended with exit status 3: its last words: me"),
        (("sh", "-c", "kill -9 $$"), "sh was ended by SIGKILL: it said nothing"),
        (("no-such-program",), "no-such-program cannot be run (No such file or directory): check the command"),
        (("true",), "true wrote no model: let it save the model into $MREG_OUTPUT"),
        (("sh", "-c", "touch $MREG_OUTPUT/a; echo 3 > $MREG_FACTS"), "what it wrote into $MREG_FACTS is no object"),
        (("sh", "-c", "touch $MREG_OUTPUT/a; echo x > $MREG_FACTS"), "what it wrote into $MREG_FACTS is not JSON"),
    ],
)
def test_a_command_that_fails_is_told_in_one_line(run: Run, stock: Stock, command: tuple[str, ...], why: str):
    ran = run("command", stock.base, command=command)

    assert ran.outcome.error is not None
    assert ran.outcome.error.startswith(why)
    assert "\n" not in ran.outcome.error


def test_a_folder_that_is_gone_is_refused_before_anything_runs(tmp_path: Path):
    with pytest.raises(Refused, match=r"there is no folder .*gone to run the command in"):
        check(CommandParams(command=("true",), cwd=str(tmp_path / "gone")), (), ())


def test_the_environment_of_a_run_has_the_state_of_the_code(run: Run, stock: Stock, tmp_path: Path):
    (tmp_path / "train.sh").write_text('cp "$MREG_INPUT"/* "$MREG_OUTPUT"')

    ran = run("command", stock.base, command=("sh", "train.sh"), cwd=str(tmp_path))
    (tmp_path / "train.sh").write_text("true")
    now = surroundings(CommandParams(command=("sh", "train.sh"), cwd=str(tmp_path)))

    then = ran.outcome.environment["code"]
    assert "torch" in ran.outcome.environment
    assert ["train.sh"] == list(then["files"])
    assert then["files"] != now["code"]["files"]
    assert {} == surroundings(CommandParams(command=("true",)))
    json.dumps(then)
