"""`mreg replay` from the command line: plans, verdicts, and reports for people."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mreg.cli import replay_report, replayed
from mreg.registry import Registry
from mreg.registry.log.events import StepJudged
from mreg.registry.replay.replaying import Replay

from tests.cli.conftest import make_model

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def made(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock with a merge, v8, of two casts, v5 and v7, of two models."""
    folder = shutil.copytree(stock, tmp_path_factory.mktemp("made"), dirs_exist_ok=True)
    make_model(folder / "e", seed=4, changed=4)

    with Registry.open(folder) as registry:
        one = registry.apply("cast", "base", dtype="bfloat16", threads=1).version
        imported = registry.import_model(folder / "e").version
        other = registry.apply("cast", imported, dtype="bfloat16", threads=1).version
        registry.apply("merge", one, others=[other], threads=1, ref="merged")
    return folder


@pytest.fixture
def chain(made: Path, here: Path) -> Path:
    """A working directory with a copy of that."""
    return shutil.copytree(made, here, dirs_exist_ok=True)


@pytest.mark.usefixtures("chain")
def test_a_dry_run_tells_the_steps_what_is_there_and_how_long_it_takes(run: Run, ok: Run) -> None:
    before = len(run("events").out.splitlines())

    told = ok("replay", "merged", "--from-base", "--dry-run", "--jobs", "2")
    shown = run("replay", "merged", "--from-base", "--dry-run", "--jobs", "2").out

    assert ["v5", "v7", "v8"] == [step["version"] for step in told["steps"]]
    assert [("v1", None), ("v6", None)] == [(one["version"], one["missing"]) for one in told["inputs"]]
    assert (2, 0) == (told["jobs"], told["kept"])
    took = [step["wall_s"] for step in told["steps"]]
    assert pytest.approx(max(took[:2]) + took[2]) == told["estimated_s"]
    assert re.search(r"^v1 +[0-9.]+ kB, there$", shown, re.MULTILINE)
    assert re.search(r"would start from v1, v6 and take about .* with 2 jobs; nothing was done", shown)
    assert before == len(run("events").out.splitlines())


def test_a_dry_run_names_what_is_missing(run: Run, ok: Run, chain: Path) -> None:
    gone = ok("show", "v6")["manifest"]
    path = chain / ".mreg" / "objects" / gone[:2] / gone[2:]
    path.chmod(0o644)
    path.unlink()

    told = ok("replay", "merged", "--from-base", "--dry-run")
    shown = run("replay", "merged", "--from-base", "--dry-run").out

    assert [False, True, False] == [step["missing"] is not None for step in told["steps"]]
    assert f"object {gone[:12]}" in told["steps"][1]["missing"]
    assert [None, told["steps"][1]["missing"], "comes after v7"] == [step["blocked"] for step in told["steps"]]
    assert "1 of 3 steps can be done" in shown


class Page(HTMLParser):
    """The tags, attributes and words of a page, and whether its tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert [] == self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_replay_is_written_up_as_one_page_that_asks_for_nothing(run: Run, chain: Path) -> None:
    shown = run("replay", "merged", "--from-base", "--report", "out.html").out

    assert shown.endswith("written up in out.html\n\nv8: bytes, every file came out again, byte for byte\n")
    page = Page((chain / "out.html").read_text())
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & {*page.tags}
    assert not {"src", "href", "srcset", "action", "style"} & {name for name, _ in page.attributes}
    assert [] == [value for _, value in page.attributes if value and "//" in value and "w3.org/2000/svg" not in value]
    assert {"svg", "table", "pre"} <= {*page.tags}
    for words in ("Replay of v8 (merged)", "bytes: every file came out again", "Of 3 steps: 3 bytes", "taken as it is"):
        assert words in page.words
    command = next(line for line in page.words.splitlines() if line.startswith("mreg replay"))
    assert 0 == run(*shlex.split(command)[1:], "--dry-run").code


@pytest.mark.usefixtures("chain")
def test_names_from_strangers_cannot_act_in_a_report(run: Run, ok: Run, model: Run) -> None:
    bad = "<script>alert(1)</script>|`x`"
    made = model("f", seed=7, changed=3)
    ok("record", "--from", "base", "--output", made, "--transform", "x", "--set", f"name={bad}", "--as", "odd")

    assert 1 == run("replay", "odd", "--report", "out.html").code
    told = run("replay", "odd", "--report", "out.md", "--json").json

    assert ("out.md", "not-attempted", 1, 0, os.uname().nodename) == tuple(
        told[name] for name in ("report", "verdict", "jobs", "resumed", "host")
    )
    page = Page(Path("out.html").read_text())
    assert "script" not in page.tags
    assert bad in page.words
    written = Path("out.md").read_text()
    assert "```mermaid\ngraph TD\n" in written
    assert '<br/>not-attempted"]:::bad\n' in written
    assert "<script>" not in written
    assert r"\|\`x\`" in written


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--report", "out.pdf"], "--report out.pdf must end in .html or .md"),
        (["--report", "nowhere/out.md"], "there is no folder nowhere"),
        (["--report", "out.md", "--dry-run"], "leave --dry-run out"),
        (["--jobs", "0"], "0 is not in the range x>=1"),
    ],
)
@pytest.mark.usefixtures("filled")
def test_a_report_that_cannot_be_written_is_told_before_the_work(run: Run, more: list[str], said: str) -> None:
    result = run("replay", "v2", *more)

    assert 2 == result.code
    assert said in result.err
    assert 1 == result.err.count("\n")


@pytest.mark.usefixtures("filled")
def test_behaviour_is_asked_on_rows_that_are_there(run: Run) -> None:
    result = run("replay", "v2", "--behaviour", "nothing")

    assert 4 == result.code
    assert "no dataset is called 'nothing'" in result.err


INTERVAL = {"low": 0.1, "high": 0.2, "n": 40, "unit": "nats", "unit_of_n": "tokens"}

DIFFERENT = {
    "verdict": "different",
    "max_abs": 0.25,
    "max_rel": 0.5,
    "max_ulps": 1024,
    "rel_l2": 0.0125,
    "first_tensor": "model.embed_tokens.weight",
    "worst_tensor": "lm_head.weight",
    "changed_tensors": 3,
    "behaviour": {"dataset": "0" * 64, "kl": {"value": 0.125, **INTERVAL}, "agreement": {"value": 0.5, **INTERVAL}},
    "environment": {"threads": (1, 2), "torch": ("2.8.0", "2.9.0")},
    "wall_s": 2.0,
}


@pytest.mark.usefixtures("filled")
def test_a_report_tells_where_a_step_differs_and_under_what(capsys: pytest.CaptureFixture[str]) -> None:
    with Registry.open() as registry:
        planned = registry.replay_plan("v3", from_base=True)
        first, second = (step.version for step in planned.steps)
        steps = (
            StepJudged(version=first, transform="my-sft", **DIFFERENT),
            StepJudged(version=second, transform="my-prune", **{**DIFFERENT, "verdict": "close"}, inherited=(first,)),
        )
        about = {"tolerance": 1e-3, "environment": {"torch": "2.9.0"}, "host": "lab", "at": "2026-11-23T10:00:00.000Z"}
        done = Replay(planned, "different", steps, 9, **about)  # type: ignore[arg-type]  # fields by name
        replay_report.write(Path("out.md"), registry, done, threads=2)
        replayed.tell(done)

    page = Path("out.md").read_text()
    shown = capsys.readouterr().out
    for line in (
        "**different: other weights came out. Of 2 steps: 1 close, 1 different.**",
        "v2, made by my-sft, is the first that differs.",
        "| first tensor | model.embed\\_tokens.weight |",
        "| at most | 0.25 absolute, 0.5 relative, 1,024 ulps |",
        "| replayed | 2026-11-23 10:00:00 UTC on lab |",
        "| v3 | KL 0.125 nats a token, 50.0 % agreement |",
        "| torch | 2.8.0 | 2.9.0 | all |",
        "| lines | dataset, 2 rows |",
        "mreg replay v3 --from-base --tolerance 0.001 --threads 2 --behaviour 000000000000",
    ):
        assert line in page
    assert "every step ran otherwise than recorded: threads 1 → 2, torch 2.8.0 → 2.9.0" in shown
    assert "v2 my-sft is the first to differ" in shown
    assert "worked on v2, which came out otherwise" in shown
    assert "KL 0.125 nats a token, 50.0 % agreement" in shown
