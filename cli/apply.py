"""`mreg apply`: a command for every transform, its options made from the transform's params."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import click
from mreg.cli import applied, screen, text
from mreg.cli.command import MESSAGE, Call, Command, Group, suggestion
from mreg.registry.errors import MregError
from mreg.registry.transform import BadParams, Transform

# What Registry.apply calls its own arguments, spelled as options.
_RESERVED = ("--transform", "--source", "--others", "--ref", "--report", "--json", "--help")


class BadConfig(MregError):
    """The file given with --config does not hold params."""

    exit_code = 2


class TransformGroup(Group):
    """The transforms as subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every transform."""
        from mreg.cli import catalog

        return catalog.engine().names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:  # noqa: ARG002
        """The transform's command. Raises UnknownTransform with the nearest name."""
        from mreg.cli import catalog

        return command_of(catalog.engine().find(cmd_name))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does; an option in front of the transform is the likeliest slip."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            slip = f"{error.option_name} stands behind the transform, as in mreg apply quantize {error.option_name} …"
            raise click.UsageError(slip, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The transforms, each with its first line."""
        from mreg.cli import catalog

        with formatter.section("Transforms"):
            formatter.write_dl(list(catalog.summaries()))


class TransformCommand(Command):
    """One transform: its inputs and promises come before the options."""

    def __init__(self, transform: Transform[Any], own: int, **attributes: Any) -> None:
        super().__init__(transform.name, **attributes)
        self.transform = transform
        self.own = own

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The inputs, the options of this transform, and those of every transform."""
        from mreg.cli import catalog

        shown = self.get_params(ctx)
        sections = {
            "Inputs": list(catalog.inputs(self.transform)),
            f"Options of {self.name}": [record for one in shown[: self.own] if (record := one.get_help_record(ctx))],
            "Options of every transform": [record for one in shown[self.own :] if (record := one.get_help_record(ctx))],
        }
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
        formatter.write_paragraph()
        formatter.write_text(f"Determinism: {catalog.determinism(self.transform)}.")


def command_of(transform: Transform[Any]) -> TransformCommand:
    """The command of a transform."""
    from mreg.cli import params

    every = common()
    own = params.options(transform.params, taken=[*(spelled for one in every for spelled in one.opts), *_RESERVED])

    @click.pass_context
    def run(ctx: click.Context, /, **typed: Any) -> None:
        chosen = {
            **(_config(typed["config"]) if typed["config"] else {}),
            **params.settings(typed["set_"]),
            **params.given(ctx, transform.params),
        }
        for name in chosen.keys() - transform.params.model_fields.keys():
            near = suggestion(name, list(transform.params.model_fields))
            raise BadParams(
                f"{transform.name} has no option {name!r}", fix=f"{near}`mreg transforms {transform.name}` lists them"
            )
        for flag, what in params.missing(transform.params, chosen):
            raise BadParams(f"{transform.name} needs {flag}", fix=(what[:1].lower() + what[1:]).rstrip("."))
        carry_out(ctx.obj, transform.name, chosen, typed)

    needs = "".join(
        f" --{name.replace('_', '-')} …" for name, field in transform.params.model_fields.items() if field.is_required()
    )
    others = "".join(" --with v2" for one in transform.inputs[1:] if not one.derived and not one.optional)
    data = " --data rows.jsonl" if transform.datasets == "required" else ""
    return TransformCommand(
        transform,
        len(own),
        callback=run,
        params=[*own, *every],
        help=transform.summary,
        options_metavar="--from REV [OPTIONS]",
        example=f"mreg apply {transform.name} --from prod{others}{data}{needs} --as new/{transform.name}",
    )


@click.group(
    cls=TransformGroup,
    short_help="Run a transform on a version.",
    example="mreg apply quantize --from v3 --method int8 --as chat/int8\nmreg apply merge --from v3 --with v5",
    subcommand_metavar="TRANSFORM --from REV [OPTIONS]",
)
def apply() -> None:
    """Run a transform on a version and record what came of it.

    The work is done in a process of its own. A step that was done before is answered from the log without running it.
    `mreg apply TRANSFORM --help` shows the options.
    """


def carry_out(call: Call, name: str, chosen: dict[str, Any], typed: dict[str, Any]) -> None:
    """Apply a transform, or tell what would be done: `chosen` are its params, `typed` the options of `common`."""
    from mreg.cli import progress

    step = {
        "transform": name,
        "source": typed["from_"],
        "others": [applied.role_and_rev(other) for other in typed["with_"]],
        "data": list(typed["data"]),
        "seed": typed["seed"],
        "threads": typed["threads"],
        "device": typed["device"],
        "portable": typed["portable"],
        **chosen,
    }
    with call.open() as registry:
        if typed["dry_run"]:
            _tell_plan(call, registry.plan(**step))
            return
        with progress.of_run(name) as report:
            done = registry.apply(
                **step, ref=typed["as_"], fresh=typed["fresh"], message=typed["message"], report=report
            )
    applied.tell(call, done, ref=typed["as_"])


def _tell_plan(call: Call, planned: Any) -> None:
    step, answer = planned.step, planned.answer
    document = {
        "transform": step.transform.name,
        "params": step.params,
        "inputs": [{"role": role, "version": version.name, "digest": version.digest} for role, version in step.inputs],
        "data": [{"dataset": one.name, "digest": one.digest, "rows": one.rows} for one in step.datasets],
        "determinism": step.transform.determinism,
        "seed": step.seed,
        "threads": step.threads,
        "device": step.device,
        "portable": step.portable,
        "answer": answer.name if answer else None,
        "first": [
            {
                "transform": before.step.transform.name,
                "source": before.step.source.name,
                "answer": before.answer.name if before.answer else None,
            }
            for before in planned.first
        ],
    }
    if call.json:
        screen.emit(document)
        return
    screen.line(f"would run {screen.ink(step.transform.name, bold=True)}, nothing was done")
    screen.pairs(
        [
            *(("first", _first(before)) for before in planned.first),
            *((role, f"{version.name} {version.digest[:12]}") for role, version in step.inputs),
            *(("data", f"{text.clean(one.name)}, {text.plural(one.rows, 'row')}") for one in step.datasets),
            *((name, text.value(value)) for name, value in step.params.items()),
            ("seed", str(step.seed)),
            ("threads", f"{step.threads}{' (portable)' * step.portable}"),
            ("device", step.device),
            ("promise", step.transform.determinism),
            ("answer", f"{answer.name}, from the log; --fresh would run it" if answer else ""),
        ],
        indent="  ",
    )


def _first(before: Any) -> str:
    adapter = before.step.source.name
    known = f"which the log knows as {before.answer.name}" if before.answer else "in a step of its own"
    return f"{before.step.transform.name} {adapter}, since it is an adapter, {known}"


def common() -> list[click.Option]:
    """The options that every transform has."""
    return [
        click.Option(["--from", "from_"], metavar="REV", required=True, help="The version to work on."),
        click.Option(
            ["--with", "with_"],
            metavar="REV|ROLE=REV",
            multiple=True,
            help="A further input; repeat it for more.",
        ),
        click.Option(
            ["--data"],
            metavar="FILE|NAME",
            multiple=True,
            help="A dataset, or a file that becomes one; repeat it for more.",
        ),
        click.Option(["--as", "as_"], metavar="REF", help="A name to give to the new version."),
        click.Option(["-m", "--message"], **MESSAGE),
        click.Option(
            ["--seed"],
            type=click.IntRange(0),
            default=0,
            metavar="N",
            show_default=True,
            help="For whatever is drawn at random.",
        ),
        click.Option(
            ["--threads"],
            type=click.IntRange(1),
            metavar="N",
            show_default="all cores",
            help="Fixed and recorded, since the bits depend on it.",
        ),
        click.Option(["--portable"], is_flag=True, help="The same bits for any number of threads; slower."),
        click.Option(["--device"], default="auto", show_default=True, metavar="NAME", help="Such as cpu or cuda."),
        click.Option(["--set", "set_"], metavar="KEY=VALUE", multiple=True, help="Any option of the transform."),
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Options from a .json, .toml or .yaml file; --set and options overrule it.",
        ),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, run nothing."),
        click.Option(["--fresh"], is_flag=True, help="Run it even if the log knows the answer."),
    ]


def _config(path: Path) -> dict[str, Any]:
    """The params that a file holds. Raises BadConfig."""
    content = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".toml":
            found: Any = tomllib.loads(content)
        elif path.suffix in (".yaml", ".yml"):
            found = _yaml(content)
        else:
            found = json.loads(content)
    except ValueError as error:
        raise BadConfig(f"{path} cannot be read ({error})", fix="give .json, .toml or .yaml") from error
    if not isinstance(found, dict):
        raise BadConfig(f"{path} does not hold options", fix="write one `option: value` for each")
    return {str(key).replace("-", "_"): value for key, value in found.items()}


def _yaml(content: str) -> Any:
    import importlib

    yaml = importlib.import_module("yaml")
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
