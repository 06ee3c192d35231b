"""Run a command of your own on a version; what it writes becomes the new one.

The command finds everything in its environment: `MREG_INPUT`, the folder of the version; `MREG_BASE`, that of the base
when the version is an adapter; `MREG_WITH`, the folders of the other versions; `MREG_DATA`, JSON Lines files;
`MREG_OUTPUT`, an empty folder to write the model into; `MREG_FACTS`, a JSON file that it may write what it measured
into; `MREG_MADE`, a folder for datasets that it makes; `MREG_SEED`, `MREG_THREADS`, `MREG_DEVICE`. Where there are
several paths, `os.pathsep` stands between them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError, Refused
from mreg.registry.models.folder import TRAINERS_LEAVE
from mreg.registry.replay import code_restoring
from mreg.registry.runs import code_state
from mreg.registry.transform import Facts, Input, Job, Material, Params, Progress, Report, Rows, Transform
from pydantic import Field

NOT_THEIRS = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE")
"""What our own transforms run under, and somebody's command need not."""


class CommandFailed(MregError):
    """The command ended badly, or wrote no model."""

    exit_code = 6


class CommandParams(Params):
    """The options of `command`; `mreg run` fills them in."""

    name: str = ""
    """What to call what it does, such as my-sft."""

    command: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments."""

    cwd: str = ""
    """The folder to run it in; a new one unless said."""

    commit: str = ""
    """The git commit of that folder."""

    diff: str = Field(default="", max_length=code_state.LONGEST)
    """What was changed there since the commit."""

    files: dict[str, str] = Field(default_factory=dict)
    """Files of that folder that matter and are not in the commit, with the BLAKE3 of their bytes."""

    env: dict[str, str] = Field(default_factory=dict)
    """Further variables for its environment. They are kept in the log, so no secrets."""

    exclude: tuple[str, ...] = TRAINERS_LEAVE
    """Globs of what is left out of its output."""


def check(params: CommandParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse a working directory that is not there."""
    del materials, rows
    if params.cwd and not Path(params.cwd).is_dir():
        raise Refused(f"there is no folder {params.cwd} to run the command in", fix="put it back, or run it elsewhere")


def surroundings(params: CommandParams) -> dict[str, Any]:
    """The state of the code now, which a replay compares with that of the run."""
    return {"code": code_state.look(Path(params.cwd), params.command).described()} if params.cwd else {}


def restore(params: CommandParams, folder: Path | None) -> tuple[CommandParams, str]:
    """The command in a copy of the code that it was recorded with. Raises Refused where there is none any more."""
    if not params.cwd:
        return params, ""
    state = code_state.CodeState(Path(params.cwd), params.commit, params.diff, params.files)
    place = code_restoring.restore(state, params.command, folder)
    if not params.commit:
        return params, f"in {params.cwd} as it is now, which is in no git commit"
    changes = " with the changes that were not committed" if params.diff else ""
    return params.model_copy(update={"cwd": str(place)}), f"in a checkout of commit {params.commit[:12]}{changes}"


def run(job: Job, params: CommandParams, report: Report) -> Facts:
    """Run the command to its end. What it prints goes to the log, its last line to whoever waits."""
    facts = job.output.with_name("facts.json")
    # It stays in this process group, and so it ends when the run is ended.
    try:
        process = subprocess.Popen(  # noqa: S603  running it is what was asked for
            params.command,
            cwd=params.cwd or None,
            env=environment(job, params, facts),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise CommandFailed(f"{params.command[0]} cannot be run ({error.strerror})", fix="check the command") from error
    last = _pass_on(process, report)
    if status := process.wait():
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        raise CommandFailed(f"{params.command[0]} {how}", fix=f"its last words: {last}" if last else "it said nothing")
    left_out = _leave_out(job.output, params.exclude)
    if not any(path.is_file() for path in job.output.rglob("*")):
        raise CommandFailed(f"{params.command[0]} wrote no model", fix="let it save the model into $MREG_OUTPUT")
    return {**_facts(facts), "left_out": left_out}


def environment(job: Job, params: CommandParams, facts: Path) -> dict[str, str]:
    """The variables that the command gets: ours, those of the job, and those that were asked for."""
    job.made.mkdir(exist_ok=True)
    ours = {name: value for name, value in os.environ.items() if name not in NOT_THEIRS}
    told = {
        "MREG_INPUT": str(job.path("source")),
        "MREG_WITH": _joined(job.paths("others")),
        "MREG_BASE": _joined(job.paths("base")),
        "MREG_DATA": _joined([dataset.path for dataset in job.datasets]),
        "MREG_OUTPUT": str(job.output),
        "MREG_MADE": str(job.made),
        "MREG_FACTS": str(facts),
        "MREG_SEED": str(job.seed),
        "MREG_THREADS": str(job.threads),
        "MREG_DEVICE": job.device,
    }
    return {**ours, **told, **params.env}


def _joined(paths: list[Path]) -> str:
    return os.pathsep.join(map(str, paths))


def _pass_on(process: subprocess.Popen[bytes], report: Report) -> str:
    """Copy what it prints to the log while it runs; return its last line."""
    assert process.stdout is not None
    last, told = "", 0.0
    while printed := os.read(process.stdout.fileno(), 65536):
        left = printed
        while left:
            left = left[os.write(1, left) :]
        # A progress bar begins its line anew with a carriage return.
        lines = [line.strip() for line in printed.decode(errors="replace").replace("\r", "\n").split("\n")]
        last = next((line for line in reversed(lines) if line), last)
        if time.monotonic() - told > 0.2:
            told = time.monotonic()
            report(Progress(0, 0, last[-100:]))
    return last[-300:]


def _leave_out(output: Path, globs: tuple[str, ...]) -> list[str]:
    """Remove what the globs name, by relative path or by name; return what that was."""
    removed = []
    for path in sorted(output.rglob("*")):
        relative = path.relative_to(output).as_posix()
        if path.exists() and any(fnmatchcase(relative, glob) or fnmatchcase(path.name, glob) for glob in globs):
            removed.append(relative)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return removed


def _facts(path: Path) -> Facts:
    """What the command says that it measured."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CommandFailed(f"what it wrote into $MREG_FACTS is not JSON ({error})", fix="write one object") from error
    if not isinstance(found, dict):
        raise CommandFailed("what it wrote into $MREG_FACTS is no object", fix='write such as {"tokens": 1000}')
    return found


TRANSFORM = Transform(
    params=CommandParams,
    inputs=(
        Input("source", "the version to work on", takes="any"),
        Input("others", "further versions", takes="any", many=True, optional=True),
        Input("base", "the base, when the source is an adapter", derived=True, optional=True),
    ),
    datasets="optional",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    surroundings=surroundings,
    restore=restore,
)
