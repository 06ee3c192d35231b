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
from mreg.registry.transform import LAUNCHERS, Asked, BadParams, Transform

# What Registry.apply calls its own arguments, spelled as options.
_RESERVED = ("--transform", "--source", "--others", "--ref", "--report", "--json", "--help")


_GOING_ON = ("save_steps", "resume")
_SHARING = ("processes", "launcher")


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
        going_on = [one for one in shown[self.own :] if one.name in (*_GOING_ON, *_SHARING)]
        everywhere = [one for one in shown[self.own :] if one not in going_on]
        sections = {
            "Inputs": list(catalog.inputs(self.transform)),
            f"Options of {self.name}": [record for one in shown[: self.own] if (record := one.get_help_record(ctx))],
            "Options of every training": [record for one in going_on if (record := one.get_help_record(ctx))],
            "Options of every transform": [record for one in everywhere if (record := one.get_help_record(ctx))],
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

    every = [*common(), *(_of_trainings() if transform.resumes else ())]
    for one in every:
        # It still is an option elsewhere, so that what is said of it there is why it cannot be.
        one.hidden = one.name in _SHARING and not transform.distributed
    if transform.adopt is not None:
        # A configuration may name it.
        next(one for one in every if one.name == "from_").required = False
    own = params.options(transform.params, taken=[*(spelled for one in every for spelled in one.opts), *_RESERVED])

    @click.pass_context
    def run(ctx: click.Context, /, **typed: Any) -> int:
        config = _config(typed["config"]) if typed["config"] else {}
        asked = transform.adopt(config) if transform.adopt is not None else None
        if asked is not None:
            config, typed = dict(asked.params), _with_inputs(asked, typed)
        if not typed["from_"]:
            raise click.MissingParameter(ctx=ctx, param_type="option", param_hint="'--from'")
        chosen = {
            **config,
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
        return carry_out(ctx.obj, transform.name, chosen, typed)

    needs = "".join(
        f" --{name.replace('_', '-')} …" for name, field in transform.params.model_fields.items() if field.is_required()
    )
    asked_for = [one for one in transform.inputs[1:] if not one.derived]
    others = "".join(" --with v2" for one in asked_for if one.role == "others" or not one.optional)
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


def carry_out(call: Call, name: str, chosen: dict[str, Any], typed: dict[str, Any]) -> int:
    """Apply a transform, or tell what would be done: `chosen` are its params, `typed` the options of `common`.

    The exit code is 1 where a guard fails.
    """
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
        "on": typed.get("on"),
        **{name: typed[name] for name in (*_GOING_ON, *_SHARING) if name in typed},
        **chosen,
    }
    guards = typed.get("guards", ())
    with call.open() as registry:
        if typed["dry_run"]:
            planned = registry.plan(**step)
            registry.check_guards(guards, source=planned.step.source)
            _tell_plan(call, planned)
            return 0
        with progress.of_run(name) as report:
            done = registry.apply(
                **step,
                ref=typed["as_"],
                guards=guards,
                force=typed.get("force", False),
                fresh=typed["fresh"],
                message=typed["message"],
                report=report,
            )
    applied.tell(call, done, ref=typed["as_"])
    return int(done.refused is not None or not all(one.holds for one in done.judged))


def _with_inputs(asked: Asked, typed: dict[str, Any]) -> dict[str, Any]:
    """What was typed, with the inputs that a configuration names. Raises BadConfig where both name some."""
    if typed["from_"] or typed["with_"]:
        raise BadConfig(f"{typed['config']} names its models itself", fix="leave --from and --with out")
    return {**typed, "from_": asked.source, "with_": [f"{role}={rev}" for role, rev in asked.others]}


def _tell_plan(call: Call, planned: Any) -> None:
    step, answer, left = planned.step, planned.answer, planned.checkpoint
    document = {
        "transform": step.transform.name,
        "params": step.params,
        "inputs": [{"role": role, "version": version.name, "digest": version.digest} for role, version in step.inputs],
        "data": [{"dataset": one.name, "digest": one.digest, "rows": one.rows} for one in step.datasets],
        "determinism": step.transform.promised(step.params),
        "seed": step.seed,
        "threads": step.threads,
        "device": step.device,
        "portable": step.portable,
        "processes": step.processes,
        "launcher": step.launcher,
        "on": step.place,
        "answer": answer.name if answer else None,
        "checkpoint": {"step": left.step, "steps": left.steps, "run": left.run} if left else None,
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
            *((name, "" if value is None else text.value(value)) for name, value in step.params.items()),
            ("seed", str(step.seed)),
            ("threads", f"{step.threads}{' (portable)' * step.portable}"),
            ("device", step.device),
            ("processes", f"{step.processes}, started by {step.launcher}" if step.processes > 1 else ""),
            ("on", text.clean(step.place or "")),
            ("promise", step.transform.promised(step.params)),
            ("answer", f"{answer.name}, from the log; --fresh would run it" if answer else ""),
            ("checkpoint", _left(left, going_on=step.resume) if left else ""),
        ],
        indent="  ",
    )


def _left(checkpoint: Any, *, going_on: bool) -> str:
    where = f"step {checkpoint.step} of {checkpoint.steps}"
    return f"goes on from {where}" if going_on else f"{where}; --resume would go on from there"


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
        click.Option(
            ["--processes"],
            type=click.IntRange(1),
            default=1,
            show_default=True,
            metavar="N",
            help="Share a training between so many processes; each step then takes N times the rows.",
        ),
        click.Option(["--launcher"], type=click.Choice(LAUNCHERS), help="What starts several processes."),
        click.Option(
            ["--on"], metavar="PLACE", help="Where to run it: ray here, or ray://host:port for a cluster of Ray."
        ),
        click.Option(["--set", "set_"], metavar="KEY=VALUE", multiple=True, help="Any option of the transform."),
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Options from a .json, .toml or .yaml file; --set and options overrule it.",
        ),
        click.Option(
            ["--guard", "guards"],
            metavar="GUARD",
            multiple=True,
            help="What comes of it must hold this, such as 'perplexity(general) <= 1.05 * source'; repeat it for more.",
        ),
        click.Option(["--force"], is_flag=True, help="Give it the name even if it fails a guard; that is recorded."),
        click.Option(["--dry-run"], is_flag=True, help="Check everything, run nothing."),
        click.Option(["--fresh"], is_flag=True, help="Run it even if the log knows the answer."),
    ]


def _of_trainings() -> list[click.Option]:
    """The options of the transforms that write checkpoints."""
    return [
        click.Option(
            ["--save-steps"],
            type=click.IntRange(1),
            metavar="N",
            help="Write a checkpoint every so many steps; Ctrl-C writes one anyway.",
        ),
        click.Option(
            ["--resume"], is_flag=True, help="Go on from the checkpoint that this very step left when it was stopped."
        ),
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
