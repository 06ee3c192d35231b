"""Options made from a params model: one field, one option, so that a transform is described in one place only.

An option that is not given stays out of what is handed on; the default is the model's business. A field marked with
FileText takes a file (`-` for standard input), and its text is handed on.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from mreg.cli import text
from mreg.registry.transform import BadParams, FileText, Params
from pydantic.fields import FieldInfo


class CommaSeparated(click.ParamType[list[Any]]):
    """A list given as `a,b` or as JSON; the option may be repeated as well."""

    def __init__(self, item: click.ParamType[Any]) -> None:
        self.item = item
        self.name = f"{item.name},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[Any]:
        """Every item, converted as the item's own type does."""
        parts = _json_list(value) if value.startswith("[") else [part for part in value.split(",") if part]
        return [self.item.convert(part, param, ctx) for part in parts]


class Json(click.ParamType[Any]):
    """Whatever no simpler type covers, as JSON; text that is no JSON stands for itself."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """The parsed value."""
        return parsed(value)


class TextOfFile(click.File):
    """A file of which the text is handed on."""

    name = "file"

    def __init__(self) -> None:
        super().__init__("r", encoding="utf-8")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text of the file."""
        try:
            return super().convert(value, param, ctx).read()
        except UnicodeDecodeError:
            self.fail(f"{value!r} holds no UTF-8 text.", param, ctx)


class FieldOption(click.Option):
    """An option whose default is the model's: it is shown in the help, and left to the model."""

    def __init__(self, names: Sequence[str], *, field: FieldInfo, **attributes: Any) -> None:
        super().__init__(names, help=field.description, default=None, **attributes)
        self.field = field

    def get_help_extra(self, ctx: click.Context) -> Any:
        """As click does, with the default of the field."""
        extra = super().get_help_extra(ctx)
        if self.field.is_required():
            extra["required"] = "required"
        elif shown := default(self.name or "", self.field):
            extra["default"] = shown
        return extra


def options(params: type[Params], *, taken: Sequence[str]) -> list[click.Option]:
    """An option for every field. Raises BadParams when one is already `taken` by what every transform has."""
    made = [option(name, field) for name, field in params.model_fields.items()]
    for one in made:
        for spelled in (*one.opts, *one.secondary_opts):
            if spelled in taken:
                raise BadParams(
                    f"{params.__name__} has a field for {spelled}, an option that every transform has",
                    fix="rename the field",
                )
    return made


def option(name: str, field: FieldInfo) -> click.Option:
    """The option of one field."""
    annotation, metadata = _bare(field.annotation, list(field.metadata))
    flag = f"--{name.replace('_', '-')}"
    if annotation is bool:
        return FieldOption([f"{flag}/--no-{flag[2:]}", name], field=field)
    item = _item_of(annotation)
    if item is not None:
        many = CommaSeparated(_type(*_bare(item, [])))
        return FieldOption([flag, name], field=field, type=many, metavar=many.name.upper(), multiple=True)
    chosen = _type(annotation, metadata)
    metavar = {"integer range": "INTEGER", "float range": "FLOAT"}.get(chosen.name)
    return FieldOption([flag, name], field=field, type=chosen, metavar=metavar)


def default(name: str, field: FieldInfo) -> str | None:
    """A field's default as a person would type it; None when there is none to speak of."""
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, bool):
        return name.replace("_", "-") if value else f"no-{name.replace('_', '-')}"
    if value is None or value == () or value == [] or value == "":
        return None
    return text.value(value)


def given(ctx: click.Context, params: type[Params]) -> dict[str, Any]:
    """The fields that were typed as options."""
    found: dict[str, Any] = {}
    for name, field in params.model_fields.items():
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value: Any = ctx.params[name]
        annotation, _ = _bare(field.annotation, [])
        found[name] = [item for part in value for item in part] if _item_of(annotation) is not None else value
    return found


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs; a value is read as JSON where it is some. Raises BadParams."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise BadParams(f"--set {pair} is not of the form key=value", fix="write --set learning_rate=1e-4")
        found[key.strip().replace("-", "_")] = parsed(value)
    return found


def parsed(value: str) -> Any:
    """A value typed by a person: JSON if it is some, otherwise the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def missing(params: type[Params], chosen: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options that must be given and are not, each with its help."""
    fields = params.model_fields.items()
    return [
        (f"--{name.replace('_', '-')}", field.description or "")
        for name, field in fields
        if field.is_required() and name not in chosen
    ]


def describe(params: type[Params]) -> list[dict[str, Any]]:
    """Every field for `--json`: name, option, type, default, help and what JSON schema says of its limits."""
    schema = params.model_json_schema()
    described = []
    for name, field in params.model_fields.items():
        about = schema["properties"][name]
        limits = {key: about[key] for key in _LIMITS if key in about}
        described.append(
            {
                "name": name,
                "option": f"--{name.replace('_', '-')}",
                "type": _word(about),
                "required": field.is_required(),
                "default": about.get("default"),
                "help": field.description or "",
                **limits,
            }
        )
    return described


_LIMITS = ("enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "items")


def _word(about: Mapping[str, Any]) -> str:
    if "type" in about:
        return str(about["type"])
    parts = [_word(part) for part in about.get("anyOf", ())]
    return " or ".join(parts) if parts else "any"


def _bare(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:
    """An annotation without Annotated and without `| None`, and the limits found on the way."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *more = get_args(annotation)
            for one in more:
                metadata += one.metadata if isinstance(one, FieldInfo) else [one]
        elif origin in (Union, types.UnionType):
            inner = [part for part in get_args(annotation) if part is not type(None)]
            if len(inner) != 1:
                return annotation, metadata
            (annotation,) = inner
        else:
            return annotation, metadata


def _item_of(annotation: Any) -> Any | None:
    """What a list-like annotation holds; None when it is no list."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (list, set, frozenset) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if origin is tuple and inner[1:] != (...,):
            return None
        return inner[0]
    return None


def _type(annotation: Any, metadata: Sequence[Any]) -> click.ParamType[Any]:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if any(isinstance(one, FileText) for one in metadata):
        return TextOfFile()
    if annotation in (int, float):
        limits: dict[str, Any] = {}
        for one in metadata:
            for bound, key, is_open in (("ge", "min", 0), ("gt", "min", 1), ("le", "max", 0), ("lt", "max", 1)):
                if getattr(one, bound, None) is not None:
                    limits[key] = getattr(one, bound)
                    limits[f"{key}_open"] = bool(is_open)
        if not limits:
            return click.INT if annotation is int else click.FLOAT
        return click.IntRange(**limits) if annotation is int else click.FloatRange(**limits)
    return click.STRING if annotation is str else Json()


def _json_list(value: str) -> list[str]:
    found = parsed(value)
    if not isinstance(found, list):
        return [value]
    return [item if isinstance(item, str) else json.dumps(item) for item in found]
