"""Checkpoints on the disk: whole or not there, and the newest alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mreg.registry import signals
from mreg.registry.runs import checkpoints
from mreg.registry.runs.checkpoints import Checkpoint

KEY = "a" * 64

WRITER = """
import itertools, os, sys
from pathlib import Path
from mreg.registry.runs import checkpoints
root = Path(sys.argv[1])
print("ready", flush=True)
for step in itertools.count(int(sys.argv[2])):
    made = root / "tmp" / f"{os.getpid()}-{step}"
    made.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt"):
        (made / name).write_bytes(bytes([step % 251]) * 300_000)
    about = {"run": "r", "step": step, "steps": 10**9, "code": "c", "environment": {}, "more": {}}
    checkpoints.seal(made, checkpoints.home(root, sys.argv[3]), **about)
"""


def seal(root: Path, step: int, *, code: str = "c") -> Checkpoint:
    made = root / "tmp" / f"checkpoint-{step}"
    (made / "sub").mkdir(parents=True)
    (made / "optimizer.pt").write_bytes(bytes([step]) * 100)
    (made / "sub" / "model.safetensors").write_bytes(b"m" * 50)
    home = checkpoints.home(root, KEY)
    return checkpoints.seal(made, home, run="r", step=step, steps=9, code=code, environment={}, more={"stage": ""})


def test_the_newest_checkpoint_takes_the_place_of_all_others(tmp_path: Path):
    seal(tmp_path, 2)
    seal(tmp_path, 5)
    third = seal(tmp_path, 3)

    assert [third] == list(checkpoints.kept(tmp_path))
    assert third == checkpoints.newest(tmp_path, KEY)
    assert (150, True) == (third.bytes, third.is_sound())


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    seal(tmp_path, 2, code="before")

    assert [seal(tmp_path, 2, code="now")] == list(checkpoints.kept(tmp_path))


def test_what_is_not_sealed_is_no_checkpoint(tmp_path: Path):
    left = seal(tmp_path, 2)
    (left.path / checkpoints.SEAL).unlink()

    assert checkpoints.newest(tmp_path, KEY) is None


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_file_is_noticed(harm: str, tmp_path: Path):
    left = seal(tmp_path, 2)
    file = left.path / "optimizer.pt"
    data = file.read_bytes()
    file.unlink() if harm == "remove" else file.write_bytes(data[:-1] if harm == "cut" else b"x" + data[1:])

    assert not left.is_sound()


def test_a_step_that_has_finished_keeps_none(tmp_path: Path):
    seal(tmp_path, 2)
    checkpoints.forget(tmp_path, KEY)

    assert [] == list(checkpoints.kept(tmp_path))


def test_a_writer_that_is_killed_leaves_a_whole_checkpoint_or_none(tmp_path: Path, is_thorough: bool):
    draw, came_to = random.Random(0), 0
    for _ in range(60 if is_thorough else 6):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(came_to + 1), KEY], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(draw.uniform(0.02, 0.15))
            process.send_signal(signal.SIGKILL)
        found = checkpoints.newest(tmp_path, KEY)
        if found is not None:
            assert found.is_sound()
            assert came_to <= found.step
            came_to = found.step

    assert came_to


def test_the_first_ctrl_c_is_answered_and_raised_at_the_end_the_second_at_once():
    said: list[str] = []

    def press(times: int) -> None:
        with signals.once(lambda: said.append("answered")):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                said.append("went on")

    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            press(times)

    assert ["answered", "went on"] * 2 == said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
