"""The README's Python runs as it stands, and the files that it links to are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a tiny model in place of the real one."""
    monkeypatch.chdir(tmp_path)
    tiny.make_model(tmp_path / "SmolLM2-135M-Instruct")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    found: dict[str, object] = {}

    exec(compile(example, "README.md", "exec"), found)  # noqa: S102  it is ours

    printed = capsys.readouterr().out.splitlines()
    assert ["['v2', 'v1']", "bytes ['bytes', 'bytes']"] == printed[1:]
    assert printed[0].startswith("v3 ")
    assert "LlamaForCausalLM" == type(found["model"]).__name__


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).is_file()


def test_the_first_commands_are_the_demo_and_the_tests() -> None:
    commands = re.findall(r"^(?:\$ )?((?:make|mreg|pip) \S+)", README, re.MULTILINE)

    assert ["make demo", "make test"] == commands[:2]
