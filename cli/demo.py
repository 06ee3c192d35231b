"""`mreg demo`: the main job on a real model, every command shown before it is run, all inside one new folder."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import click
from mreg.cli import demo_data, screen, text
from mreg.cli.command import Call, Command
from mreg.cli.demo_walk import WALK, Run, Scene
from mreg.registry.errors import MregError

MARK = ".made-by-mreg-demo"
"""What tells a folder that the demo made, and may replace, from any other."""

ROOM = 4_000_000_000
"""Bytes that the demo takes on disk at most, while it replays, with some to spare."""

ASK = '''\
"""Puts a question to the model in a folder: plain transformers, nothing of mreg."""

import contextlib
import io
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

folder, question = sys.argv[1:]
with contextlib.redirect_stderr(io.StringIO()):  # progress bars
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
chat = [{"role": "user", "content": question}]
tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**tokens, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
'''


_ASSIGNMENT = re.compile(r"[A-Z_]+=")


class DemoThere(MregError):
    """The demo's folder is taken."""

    exit_code = 2


class DemoFailed(MregError):
    """A command of the demo did not end as it should."""

    exit_code = 6


class NoRoom(MregError):
    """The disk has no room for the demo."""

    exit_code = 9


@click.command(cls=Command, example="mreg demo\nmreg demo --into tour --force")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path("mreg-demo"),
    show_default=True,
    metavar="DIR",
    help="The folder to make; nothing outside it is touched.",
)
@click.option("--force", is_flag=True, help="Replace the folder, if an earlier demo made it.")
@click.pass_obj
def demo(call: Call, into: Path, force: bool) -> None:
    """Walk through a real model's life: import, fine-tune, merge, quantize, roll back, replay.

    Takes a few minutes on two cores, 4 GB of memory and 4 GB of disk. Every command is printed before it is run.
    """
    folder = prepare(into, force=force)
    began = time.monotonic()
    _open(folder)
    variables = environment(os.environ, folder)
    for number, scene in enumerate(WALK, start=1):
        _heading(f"{number}  {scene.title}", time.monotonic() - began)
        _play(scene, folder, variables)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    _close(call, folder, time.monotonic() - began)


def prepare(into: Path, *, force: bool) -> Path:
    """Make the folder with what the walk needs in it. Raises DemoThere and NoRoom, before anything is changed."""
    folder = into.absolute()
    ours = (folder / MARK).is_file()
    if os.path.lexists(folder) and not (force and ours):
        fix = "look around in it, or make it anew with --force" if ours else "name another folder with --into"
        raise DemoThere(f"{into} is already there", fix=fix)
    above = next(place for place in folder.parents if place.exists())
    if shutil.disk_usage(above).free < ROOM:
        raise NoRoom(f"there is less than {text.size(ROOM)} free in {above}", fix="free some, or name another --into")
    if ours:
        shutil.rmtree(folder)
    (folder / "tmp").mkdir(parents=True)
    (folder / MARK).touch()
    (folder / "ask.py").write_text(ASK, encoding="utf-8")
    with open(folder / "data.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in demo_data.rows())
    return folder


def environment(outer: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What the commands run with: caches and temporary files in the folder, and no other registry in sight."""
    kept = {name: value for name, value in outer.items() if name != "MREG_REGISTRY"}
    inside = {name: str(folder / "tmp") for name in ("TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    # Threads that wait sleep: on a machine that is busy besides, spinning ones make everything several times slower.
    calm = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **inside, **quiet, **calm}


def words_of(run: Run) -> tuple[dict[str, str], list[str]]:
    """The variables set in front of a command, and what is executed; `mreg` and `python` are this installation's."""
    words = shlex.split(run.line)
    count = next(place for place, word in enumerate(words) if not _ASSIGNMENT.match(word))
    program, *rest = words[count:]
    own = {"mreg": [sys.executable, "-P", "-m", "mreg.cli.main"], "python": [sys.executable, "-P"]}
    return dict(word.split("=", 1) for word in words[:count]), [*own.get(program, [program]), *rest]


def _play(scene: Scene, folder: Path, variables: Mapping[str, str]) -> None:
    for is_said, parts in groupby(scene.parts, key=lambda part: isinstance(part, str)):
        if is_said:
            screen.line()
            for line in textwrap.wrap(" ".join(map(str, parts)), _columns()):
                screen.line(screen.ink(line, dim=True))
        for part in parts:
            assert isinstance(part, Run)
            perform(part, folder, variables)


def perform(run: Run, folder: Path, variables: Mapping[str, str]) -> None:
    """Show a command, then run it in the folder. Raises DemoFailed when it ends otherwise than it should."""
    screen.line(f"\n{screen.ink('$', 'green', bold=True)} {screen.ink(run.command, bold=True)}")
    sys.stdout.flush()
    assigned, words = words_of(run)
    process = subprocess.Popen(words, cwd=folder, env={**variables, **assigned})  # noqa: S603  the walk's own commands
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # Ctrl-C went to it too, and it has to wind up.
        raise
    if code not in run.exits:
        raise DemoFailed(f"`{run.line}` ended with exit code {code}", fix="what it said stands above")


def _open(folder: Path) -> None:
    screen.line(screen.ink("mreg demo", bold=True) + ": what happens to a model, recorded, undone and proved")
    said = f"Everything happens in {folder}, on {text.plural(os.cpu_count() or 1, 'core')}; it takes some minutes."
    screen.line(screen.ink(text.clean(said), dim=True))


def _heading(title: str, elapsed: float) -> None:
    at = f"{int(elapsed) // 60}:{int(elapsed) % 60:02}"
    rule = "─" * max(3, _columns() - len(title) - len(at) - 5)
    screen.line(
        "\n\n" + screen.ink("─ ", "cyan") + screen.ink(title, "cyan", bold=True) + screen.ink(f" {rule} {at}", "cyan")
    )


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _close(call: Call, folder: Path, took: float) -> None:
    """What was seen, told from what the registry now says."""
    from mreg.registry.registry import Registry

    with Registry.open(folder, **call.services()) as registry:
        versions, events = len(registry.versions()), len(registry.events())
        replay = registry.show("prod")["replays"][-1]
        stored = sum(registry.store.disk_size(name) for name in registry.store.names())
        held = sum(version.bytes for version in registry.versions())
    verdicts = Counter(step["verdict"] for step in replay["steps"])
    proved = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))
    _heading("What you saw", took)
    screen.pairs(
        [
            ("recorded", f"{versions} versions in {events} events: who, when, from what, with what, on what machine"),
            ("rolled back", "prod, from a model that babbles to the one before it, in one event"),
            ("replayed", f"prod from its base, {text.plural(len(replay['steps']), 'step')}: {proved}"),
            ("stored", f"{text.size(held)} of versions in {text.size(stored)} of objects"),
            ("took", f"{text.seconds(took)}, and {text.size(peak * 1024)} of memory in the largest process"),
        ],
        indent="  ",
    )
    beside = Path(sys.executable).parent / "mreg"
    mreg = "mreg" if shutil.which("mreg") else shlex.quote(os.path.relpath(beside, folder))
    screen.line(f"\n{screen.ink('Where to go on', bold=True)}\n")
    screen.line(f"  cd {shlex.quote(os.path.relpath(folder))}")
    for command, about in _NEXT:
        screen.line(f"  {mreg} {command.ljust(34)}  {screen.ink(f'# {about}', dim=True)}")


_NEXT = (
    ("show prod", "one version whole: params, data, environment, losses"),
    ("transforms", "what can be done to a model"),
    ("lineage base --format mermaid", "the graph for a README"),
    ("apply prune --from base --help", "every transform explains itself"),
)
