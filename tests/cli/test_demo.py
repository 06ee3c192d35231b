"""What can be known of the demo without running it: its commands exist, its data is real, its folder is its own."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import click
import pytest
from mreg.cli import demo, demo_data
from mreg.cli.command import Call
from mreg.cli.demo_walk import WALK, Run
from mreg.cli.main import root

COMMANDS = [part for scene in WALK for part in scene.parts if isinstance(part, Run)]
OURS = [each for each in COMMANDS if "mreg.cli.main" in demo.words_of(each)[1]]


@pytest.mark.parametrize("run", OURS, ids=lambda run: run.line)
def test_every_command_of_the_walk_is_one_that_mreg_takes(run: Run) -> None:
    command: click.Command = root
    context = click.Context(root, info_name="mreg", obj=Call())
    _, executed = demo.words_of(run)
    words = executed[executed.index("mreg.cli.main") + 1 :]
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None
        command = found

    made = command.make_context(command.name, words, parent=context)

    assert [] == made.args


def test_the_walk_shows_the_main_job() -> None:
    shown = "\n".join(run.line for run in OURS)
    steps = [f"apply {name}" for name in ("finetune", "fuse", "prune", "quantize", "merge")]

    assert [] == [
        each for each in (*steps, "import", "log", "diff", "rollback", "checkout") if f"mreg {each} " not in shown
    ]
    assert "mreg replay prod --from-base" in shown


def test_the_data_is_what_the_standard_library_says_of_itself() -> None:
    rows = {row["prompt"][0]["content"]: row["completion"][0]["content"] for row in demo_data.rows(["json", "shutil"])}

    assert "Serialize obj to a JSON formatted str." == rows["What does json.dumps do?"]
    assert list(demo_data.rows(["json"])) == list(demo_data.rows(["json"]))


def test_there_is_enough_data_for_every_step() -> None:
    rows = list(islice(demo_data.rows(), 200))

    assert 200 == len(rows)
    assert len(rows) == len({json.dumps(row) for row in rows})


def test_the_folder_is_ready_for_the_walk(tmp_path: Path) -> None:
    folder = demo.prepare(tmp_path / "tour", force=False)

    assert {demo.MARK, "ask.py", "data.jsonl", "tmp"} == {path.name for path in folder.iterdir()}
    compile((folder / "ask.py").read_text(encoding="utf-8"), "ask.py", "exec")


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mreg-demo"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")

    for force in (False, True):
        with pytest.raises(demo.DemoThere):
            demo.prepare(mine, force=force)

    assert ["thesis.txt"] == [path.name for path in mine.iterdir()]


def test_an_earlier_demo_is_replaced_only_when_asked_to(tmp_path: Path) -> None:
    earlier = demo.prepare(tmp_path / "tour", force=False)
    (earlier / "old").touch()
    with pytest.raises(demo.DemoThere, match="already there"):
        demo.prepare(earlier, force=False)

    anew = demo.prepare(earlier, force=True)

    assert not (anew / "old").exists()


def test_commands_cannot_reach_another_registry_or_cache(tmp_path: Path) -> None:
    variables = demo.environment(
        {"MREG_REGISTRY": "/precious", "HF_HOME": "/home/ann/.cache", "PATH": "/bin"}, tmp_path
    )

    assert "MREG_REGISTRY" not in variables
    assert "/bin" == variables["PATH"]
    assert {str(tmp_path / "tmp")} == {variables[name] for name in ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME")}


def test_a_step_that_fails_ends_the_walk(tmp_path: Path) -> None:
    with pytest.raises(demo.DemoFailed, match="exit code 3"):
        demo.perform(Run("python -c 'raise SystemExit(3)'"), tmp_path, {})

    demo.perform(Run("python -c 'raise SystemExit(1)'", exits=(1,)), tmp_path, {})
