"""Measures a version: the job behind `mreg eval`. What comes out is scores and no model, so no version is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.measures import metrics
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._rows import CHAT, CLASSIFIED, COMPLETED, TAGGED, TEXT, Format, check_rows
from mreg.transforms._training import TOKENIZERS
from pydantic import Field

FORMATS = [CHAT, COMPLETED, TEXT]
_TOLD = {
    CLASSIFIED: "a row has a `text` and its `label`, spelled as in the model's id2label",
    TAGGED: "a row has `tokens`, a list of words, and as many `labels`, spelled as in the model's id2label",
}


class EvaluationParams(Params):
    """What is measured, and the settings that it depends on."""

    metrics: tuple[str, ...] = ()
    """Of those in registry/measures/metrics.py."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""

    max_length: int = Field(512, ge=2)
    """Tokens at which a row is cut; a model that takes fewer cuts earlier."""

    max_rows: int | None = Field(None, ge=1)
    """Only the first so many rows, or of a task, examples."""

    batch_size: int = Field(4, ge=1)
    """Rows that are computed at once."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What is computed in; `auto` is the dtype that the version is stored in."""

    bins: int = Field(15, ge=2)
    """Bins of the expected calibration error."""

    repeats: int = Field(10, ge=2)
    """How often latency and throughput are taken."""

    samples: int = Field(0, ge=0)
    """Let it go on from the first so many rows, and keep what it says as a dataset."""

    differences: int = Field(0, ge=0)
    """Keep the so many rows on which two versions differ most, side by side, as a dataset."""

    max_new_tokens: int = Field(32, ge=1)
    """How far samples and differences go on."""

    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question of a task; by default what the task says."""

    apply_chat_template: bool = False
    """Ask the questions of a task as turns of a conversation."""

    include_path: str | None = None
    """A folder with .yaml files of tasks; paths in them are relative to it."""

    task_files: str | None = None
    """The digest of what is in that folder."""


def check(params: EvaluationParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be measured: of this kind of model, on these rows, against that version."""
    roles = {material.role: material for material in materials}
    source, against = roles["source"], roles.get("against")
    kind = kind_of(source, roles.get("base"))
    if kind == "other":
        named = ", ".join(_config(source, roles.get("base")).get("architectures") or []) or "of no known kind"
        raise Refused(
            f"{source.name} is {named}, which cannot be measured yet",
            fix="give a causal language model, or a classifier of texts or words; size and parameters work for any",
        )
    for name in params.metrics:
        if kind not in metrics.METRICS[name].of:
            fitting = ", ".join(other for other, one in metrics.METRICS.items() if kind in one.of)
            raise Refused(f"{name} is not defined for {source.name}, a {kind} model", fix=f"there are: {fitting}")
    if params.samples and (kind != "causal" or not rows):
        raise BadParams("samples need a language model, and rows to go on from", fix="add --data, or leave samples out")
    if params.tasks:
        if kind != "causal":
            raise Refused(f"{source.name} is a {kind} model, and tasks are put to language models", fix="drop --task")
        _check.needs("lm_eval", "evaluate", "a task")
    for material in (source, against):
        if material is not None and is_gguf(material):
            _check.needs("gguf", "gguf", f"measuring {material.name}, which is GGUF,")
    if rows:
        _check_rows(kind, source, roles.get("base"), rows)
    if against is not None:
        _check_pair(kind, roles)


def kind_of(material: Material, base: Material | None) -> str:
    """What kind of model an input is: an adapter is what its config says, or else its base."""
    tasks = {"CAUSAL_LM": "causal", "SEQ_CLS": "classifier", "TOKEN_CLS": "token classifier"}
    told = tasks.get(str(material.config.get("task_type")))
    if material.adapter and told is not None:
        return told
    if is_gguf(material):
        return "causal"
    architectures = _config(material, base).get("architectures") or [""]
    return metrics.kind_of(architectures[0])


def is_gguf(material: Material) -> bool:
    """Whether its weights are in a GGUF file."""
    suffixes = {path.rpartition(".")[2] for path in material.files}
    return "gguf" in suffixes and "safetensors" not in suffixes


def _config(material: Material, base: Material | None) -> dict[str, Any]:
    """The config.json that holds: the model's own, or of an adapter the one that it brings, or its base's."""
    if not material.adapter:
        return dict(material.config)
    if "config.json" in material.files:
        parsed: dict[str, Any] = json.loads(material.read("config.json"))
        return parsed
    return dict(base.config) if base is not None else {}


def _check_rows(kind: str, source: Material, base: Material | None, rows: Sequence[Rows]) -> None:
    speller = next((one for one in (source, base) if one is not None and TOKENIZERS & set(one.files)), None)
    if speller is None:
        raise Refused(f"{source.name} has no tokenizer", fix="add its tokenizer files and import it again")
    if kind == "causal":
        check_rows(speller, rows, FORMATS)
        return
    if kind == "token classifier" and not {"tokenizer.json", "vocab.txt"} & set(speller.files):
        raise Refused(f"{speller.name} has no fast tokenizer", fix="save its tokenizer with a tokenizer.json")
    config = _config(source, base)
    _check_labels(source.name, config.get("id2label") or {}, CLASSIFIED if kind == "classifier" else TAGGED, rows)


def _check_labels(model: str, numbered: Mapping[str, Any], columns: Format, rows: Sequence[Rows]) -> None:
    """Refuse rows without what is to be labelled, and labels that a model does not know."""
    names = [str(name) for name in numbered.values()]
    for dataset in rows:
        if not set(columns) <= set(dataset.columns):
            raise Refused(f"{dataset.name} has the columns {', '.join(dataset.columns)}", fix=_TOLD[columns])
        for number, row in enumerate(dataset, start=1):
            given: Any = row.get(columns[0])
            labels: Any = row.get(columns[1])
            if columns == CLASSIFIED:
                given, labels = [given], [labels]
            for column, values, kinds in zip(columns, (given, labels), ((str,), (str, int)), strict=True):
                if not isinstance(values, list) or not values or not all(_is_one(value, kinds) for value in values):
                    raise Refused(f"row {number} of {dataset.name} has no usable {column}", fix=_TOLD[columns])
            if len(given) != len(labels):
                said = f"row {number} of {dataset.name} has {len(given)} tokens and {len(labels)} labels"
                raise Refused(said, fix=_TOLD[columns])
            for label in labels:
                if names and str(label) not in names and str(label) not in numbered:
                    raise Refused(
                        f"row {number} of {dataset.name} has the label {label!r}, which {model} does not know",
                        fix=f"it knows {', '.join(sorted(names)[:8])}",
                    )


def _is_one(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value != ""


def _check_pair(kind: str, roles: dict[str, Material]) -> None:
    source, against = roles["source"], roles["against"]
    theirs = kind_of(against, roles.get("against_base"))
    if theirs != kind:
        raise Refused(f"{source.name} is a {kind} model and {against.name} a {theirs}", fix="compare two of one kind")
    wholes = [(roles.get(f"{role}base", one)) for role, one in (("", source), ("against_", against))]
    if kind != "causal":
        first, other = (
            (_config(one, roles.get(f"{role}base")).get("id2label") or {})
            for role, one in (("", source), ("against_", against))
        )
        if list(first.values()) != list(other.values()):
            raise Refused(f"{source.name} and {against.name} tell different labels apart", fix="compare others")
        return
    _check.same_vocabulary(wholes[0], wholes[1], "only versions with the same vocabulary can be compared")


def run(job: Job, params: EvaluationParams, report: Report) -> Facts:
    """Measure, and leave the scores in a file and in the facts."""
    from mreg.transforms import _scoring

    found = _scoring.measure(job, params, report)
    facts: Facts = {"scores": found}
    (job.output / "scores.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def gguf_file(folder: Path) -> str | None:
    """The name of the GGUF file of a folder that has no safetensors."""
    if any(folder.glob("*.safetensors")):
        return None
    return next((path.name for path in sorted(folder.glob("*.gguf"))), None)


TRANSFORM = Transform(
    params=EvaluationParams,
    inputs=(
        Input("source", "the version to measure", takes="any"),
        Input("base", "the version that it fits, where it is an adapter", optional=True),
        Input("against", "the version to compare it with", takes="any", optional=True),
        Input("against_base", "the version that the other fits, where it is an adapter", optional=True),
    ),
    determinism="same-machine",
    version=1,
    run=run,
    datasets="optional",
    check=check,
)
