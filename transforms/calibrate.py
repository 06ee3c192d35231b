"""Make a model as sure of its answers as it is right, on rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._folder import ModelFolder
from mreg.transforms._last_layer import AFFINE, FILE, classifier_of, label_names, number_of, output_of
from mreg.transforms._rows import CLASSIFIED, TEXT, check_rows
from mreg.transforms._training import has_tokenizer
from pydantic import Field

if TYPE_CHECKING:
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

ROW = "a row has a `text` and its `label`, which is one of the labels that the model knows"
FEWEST = 20
CLASSIFIER = "ForSequenceClassification"


class CalibrateParams(Params):
    """The options of `calibrate`."""

    method: Literal["temperature", "vector", "matrix", "platt", "isotonic", "histogram"] = "temperature"
    """What is fitted: one `temperature` for all logits, a scale and bias for each label (`vector`), or a linear map
    (`matrix`; Guo et al. 2017); `platt` for two labels (Platt 1999); these go into the weights. `isotonic` and
    `histogram` (Zadrozny and Elkan 2001, 2002) map probabilities, and are written beside the weights."""

    eval_fraction: float = Field(0.5, gt=0, lt=1)
    """The share of the rows of each label, picked by the seed, that nothing is fitted on."""

    bins: int = Field(15, ge=2)
    """Bins of equal width, for the expected calibration error and for `histogram`."""

    l2: float = Field(0.001, ge=0)
    """How strongly vector and matrix are held to changing nothing: without it, labels that are easily told apart would
    make the model ever surer."""

    max_length: int = Field(512, ge=2)
    """Tokens at which a row is cut."""

    max_tokens: int = Field(2048, ge=100)
    """Tokens of each half that are used (language models); the memory for them grows with the vocabulary."""

    batch_size: int = Field(8, ge=1)
    """Rows computed at once (classifiers)."""


def check(params: CalibrateParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be calibrated, rows without known labels, and too few of them."""
    (source,) = materials
    _check.complete_model(source, "calibrated")
    has_tokenizer(source)
    if FILE in source.files:
        raise Refused(f"{source.name} has a {FILE} already", fix="start from the version it was calibrated from")
    if len(rows) != 1:
        raise BadParams(f"calibrate takes one dataset, not {len(rows)}", fix="name one with --data")
    if _classifies(source.config):
        _check_classifier(params, source, rows[0])
        return
    _check.causal_model(source)
    if params.method != "temperature":
        raise BadParams(f"{params.method} is for classifiers", fix="a language model takes --method temperature")
    check_rows(source, rows, [TEXT])
    if rows[0].count < FEWEST:
        raise Refused(f"{rows[0].name} has {rows[0].count} rows, too few to split", fix=f"give {FEWEST} or more")
    output_of(source.name, source.config, source.tensors)


def _check_classifier(params: CalibrateParams, source: Material, rows: Rows) -> None:
    names = label_names(source.config)
    if source.config.get("problem_type") in ("regression", "multi_label_classification") or len(names) < 2:
        raise Refused(f"{source.name} does not choose one label of several", fix="give a classifier that does")
    if params.method == "platt" and len(names) != 2:
        raise BadParams(f"platt is for two labels, {source.name} has {len(names)}", fix="use vector or matrix")
    if params.method == "isotonic":
        _check.needs("sklearn", "calibrate", "isotonic regression")
    if params.method in AFFINE:
        layer = classifier_of(source.name, source.tensors, len(names))
        if params.method != "temperature" and not layer.bias:
            fix = "use temperature, isotonic or histogram"
            raise Refused(f"{layer.name} of {source.name} has no bias, which {params.method} needs", fix=fix)
    if not set(CLASSIFIED) <= set(rows.columns):
        raise Refused(f"{rows.name} has the columns {', '.join(rows.columns)}", fix=ROW)
    seen: dict[int, int] = {}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["text"], str) or not row["text"]:
            raise Refused(f"row {number} of {rows.name} has no usable text", fix=ROW)
        label = number_of(row["label"], names)
        if label is None:
            said = f"row {number} of {rows.name} has the label {row['label']!r}"
            raise Refused(f"{said}, which {source.name} does not know", fix=f"it knows {', '.join(names[:20])}")
        seen[label] = seen.get(label, 0) + 1
    if sum(seen.values()) < FEWEST:
        raise Refused(f"{rows.name} has {rows.count} rows, too few to split", fix=f"give {FEWEST} or more")
    if len(seen) < 2:
        raise Refused(f"all rows of {rows.name} have one label", fix="give rows of two labels or more")


def _classifies(config: Any) -> bool:
    return any(name.endswith(CLASSIFIER) for name in config.get("architectures") or [])


def run(job: Job, params: CalibrateParams, report: Report) -> Facts:
    """Fit on one part of the rows; then measure what was written, on that part and on the rest."""
    from mreg.transforms._calibrating import calibrate_causal, calibrate_classifier

    with ModelFolder(job.path("source")) as source:
        config, tensors = source.config, {slot.name: (slot.dtype, slot.shape) for slot in source.slots.values()}
    if _classifies(config):
        return calibrate_classifier(job, params, config, tensors, report)
    return calibrate_causal(job, params, config, tensors, report)


def predict(params: CalibrateParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """The last layer of a language model, by its temperature; that of a classifier is small."""
    from mreg.transforms._predicting import prediction, shared

    layer, temperature = made.facts.get("layer"), made.facts.get("temperature")
    if params.method != "temperature" or not isinstance(layer, str) or not isinstance(temperature, (int, float)):
        return
    source = made.inputs["source"][0]
    for name in shared(made.output, [source]):
        if temperature > 0 and name in (f"{layer}.weight", f"{layer}.bias"):
            yield name, prediction("linear", [(source, name)], {"arithmetic": "F64", "weights": [1 / temperature]})


TRANSFORM = Transform(
    params=CalibrateParams,
    inputs=(Input("source", "a classifier of texts, or a causal language model (temperature only)"),),
    determinism="same-machine",
    version=1,
    run=run,
    datasets="required",
    check=check,
    predict=predict,
)
