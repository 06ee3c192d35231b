"""One field of a params model is one option."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from mreg.cli import params
from mreg.cli.apply import command_of
from mreg.registry.transform import BadParams, Facts, FileText, Input, Job, Params, Report, Transform
from pydantic import BaseModel, Field


class Inner(BaseModel):
    depth: int = 1


class Many(Params):
    """One field of every kind."""

    method: Literal["full", "lora"] = "lora"
    """What is trained."""

    bits: Literal[4, 8] = 8
    """Bits a weight."""

    learning_rate: float | None = Field(None, gt=0)
    """The peak."""

    max_steps: int = Field(ge=1)
    """When to stop."""

    symmetric: bool = True
    """Whether zero is the centre."""

    target_modules: tuple[str, ...] = ("all-linear",)
    """The layers."""

    weights: list[float] = Field(default_factory=list)
    """The shares."""

    inner: Inner = Inner()
    """Something deep."""

    rewards: Annotated[str | None, FileText()] = None
    """Some code."""


def _run(job: Job, params: Many, report: Report) -> Facts:
    del job, params, report
    return {}


MANY = Transform(params=Many, inputs=(Input("source", "the model"),), determinism="exact", version=1, run=_run)


def given(*arguments: str) -> dict[str, Any]:
    """What is handed on for these arguments."""
    found: dict[str, Any] = {}

    @click.pass_context
    def note(ctx: click.Context, /, **_: Any) -> None:
        found.update(params.given(ctx, Many))

    command = click.Command("many", params=list(params.options(Many, taken=[])), callback=note)
    command.main(list(arguments), standalone_mode=False)
    return found


def test_what_is_not_typed_is_left_to_the_model() -> None:
    assert {} == given()


def test_every_kind_of_field_is_read() -> None:
    numbers = ["--bits", "4", "--learning-rate", "1e-4", "--max-steps", "3"]
    arguments = ["--method", "full", *numbers, "--no-symmetric", "--inner", '{"depth": 2}']

    assert {
        "method": "full",
        "bits": 4,
        "learning_rate": 1e-4,
        "max_steps": 3,
        "symmetric": False,
        "inner": {"depth": 2},
    } == given(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--target-modules", "q_proj,v_proj"],
        ["--target-modules", "q_proj", "--target-modules", "v_proj"],
        ["--target-modules", '["q_proj", "v_proj"]'],
    ],
)
def test_a_list_is_comma_separated_repeated_or_json(arguments: list[str]) -> None:
    assert {"target_modules": ["q_proj", "v_proj"]} == given(*arguments)


def test_a_list_of_numbers_is_one_of_numbers() -> None:
    assert {"weights": [0.3, 0.7]} == given("--weights", "0.3,0.7")


def test_a_file_is_handed_on_as_its_text(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def reward(): ...  # é\n", encoding="utf-8")

    assert {"rewards": "def reward(): ...  # é\n"} == given("--rewards", str(tmp_path / "rewards.py"))


@pytest.mark.parametrize(("content", "told"), [(None, "No such file"), (b"\xff\xfe\x00", "holds no UTF-8 text")])
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / "rewards.py").write_bytes(content)

    with pytest.raises(click.BadParameter, match=told):
        given("--rewards", str(tmp_path / "rewards.py"))


@pytest.mark.parametrize(
    "arguments", [["--method", "none"], ["--learning-rate", "0"], ["--max-steps", "0"], ["--weights", "a,b"]]
)
def test_a_value_out_of_range_is_refused_before_anything_starts(arguments: list[str]) -> None:
    with pytest.raises(click.BadParameter):
        given(*arguments)


def test_settings_are_json_where_they_can_be() -> None:
    typed = ["learning-rate=1e-4", "ignore=[]", "dtype=bfloat16", "flag=true", "expression=a=b"]

    assert {"learning_rate": 1e-4, "ignore": [], "dtype": "bfloat16", "flag": True, "expression": "a=b"} == (
        params.settings(typed)
    )


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(BadParams, match="is not of the form key=value"):
        params.settings(["learning_rate"])


def test_the_help_shows_choices_ranges_defaults_and_what_is_required() -> None:
    command = command_of(MANY)
    page = command.get_help(click.Context(command, terminal_width=200))

    lines = " ".join(page.split())
    assert "--method [full|lora] What is trained. [default: lora]" in lines
    assert "--max-steps INTEGER When to stop. [x>=1; required]" in lines
    assert "--learning-rate FLOAT The peak. [x>0]" in lines
    assert "--symmetric / --no-symmetric Whether zero is the centre. [default: symmetric]" in lines
    assert "--target-modules TEXT,… The layers. [default: all-linear]" in lines
    assert "--rewards FILE Some code." in lines


def test_a_field_may_not_take_the_name_of_an_option_that_every_transform_has() -> None:
    class Clashing(Params):
        seed: int = 0

    with pytest.raises(BadParams, match="--seed"):
        params.options(Clashing, taken=["--seed"])


def test_the_description_for_json_has_every_field() -> None:
    described = {one["name"]: one for one in params.describe(Many)}

    assert list(Many.model_fields) == list(described)
    assert ["full", "lora"] == described["method"]["enum"]
    assert described["max_steps"]["required"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", '{"group-size": 16, "method": "int4"}'),
        ("c.toml", 'group-size = 16\nmethod = "int4"\n'),
        ("c.yaml", "group-size: 16\nmethod: int4\n"),
    ],
)
def test_an_option_overrules_a_setting_overrules_the_file_overrules_the_default(
    name: str, content: str, filled: Path, ok: Any
) -> None:
    (filled / name).write_text(content)
    step = ["apply", "quantize", "--from", "base", "--dry-run", "--config", name, "--set", "ignore=[]"]

    from_file = ok(*step)["params"]
    set_ = ok(*step, "--set", "group_size=8")["params"]
    typed = ok(*step, "--set", "group_size=8", "--group-size", "4")["params"]

    assert [(16, "int4"), (8, "int4"), (4, "int4")] == [
        (one["group_size"], one["method"]) for one in (from_file, set_, typed)
    ]
    assert from_file["symmetric"]
