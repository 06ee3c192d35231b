"""Set the least important weights of every linear layer to zero, or cut whole heads, channels or layers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Determinism, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._activations import check_samples
from mreg.transforms._architecture import is_match
from mreg.transforms._folder import ModelFolder
from mreg.transforms._layers import LAYER, shortened
from mreg.transforms._shrinking import shrink
from mreg.transforms._sparse import Pattern, divides
from mreg.transforms._structured import TRANSPOSED, Structure, plan_of
from mreg.transforms._thinning import CALIBRATED, thin_out
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction


class PruneParams(Params):
    """The options of `prune`, by the names that the papers and llmcompressor give them."""

    method: Literal["magnitude", "wanda", "sparsegpt", "structured"] = "magnitude"
    """How a weight's importance is judged. magnitude: by its absolute value (Han et al. 2015); wanda: times the norm of
    what it reads on the data (Sun et al. 2023); sparsegpt: by what its loss costs there, and the others make up for it
    (Frantar and Alistarh 2023). structured: whole parts go, and the model gets smaller."""

    sparsity: float | None = Field(None, ge=0, lt=1)
    """The fraction that becomes zero, or of the parts that go. Must be said, unless a pattern says it."""

    scope: Literal["per-tensor", "per-row", "global"] = "per-tensor"
    """magnitude: where weights compete with each other: within a matrix, within one output of it, or all of them."""

    pattern: str | None = None
    """N:M, as in 2:4: of every M neighbours in a row, N stay. For magnitude, wanda and sparsegpt."""

    structure: Structure | None = None
    """structured: what goes: attention heads (a key-value head with all that share it), MLP channels, whole layers."""

    importance: Literal["magnitude", "activations"] = "magnitude"
    """structured: the parts that go are those with the smallest weights, or those that do least on the data."""

    ignore: tuple[str, ...] = ("lm_head",)
    """Linear layers to leave alone: module names, or `re:` and a regular expression."""

    num_calibration_samples: int = Field(128, ge=1)
    """How many rows of the data are measured on: the first."""

    max_seq_length: int = Field(2048, ge=2)
    """Tokens at which such a row is cut."""

    block_size: int = Field(128, ge=1)
    """sparsegpt: columns that are decided on together."""

    dampening_frac: float = Field(0.01, gt=0)
    """sparsegpt: what is added to the diagonal of the Hessian, as a fraction of its mean."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # The event records what was used, so what the pattern implies is filled in here.
        if given.get("pattern") is None:
            return dict(given)
        implied = Pattern.parse(str(given["pattern"])).sparsity
        asked = given.get("sparsity")
        if asked is not None and float(asked) != implied:
            raise ValueError(f"the pattern {given['pattern']} means a sparsity of {implied:g}, not of {asked}")
        return {**given, "sparsity": implied}

    @model_validator(mode="after")
    def _fit_the_method(self) -> PruneParams:
        if self.sparsity is None:
            raise ValueError("how much is to go is not said: give a sparsity such as 0.5, or a pattern such as 2:4")
        if self.method == "structured" and self.structure is None:
            raise ValueError("structured needs a structure: heads, channels or layers")
        used: dict[str, bool] = {
            "structure": self.method == "structured",
            "pattern": self.method != "structured",
            "scope": self.method == "magnitude" and self.pattern is None,
            "importance": self.method == "structured",
            "ignore": self.method != "structured",
            "block_size": self.method == "sparsegpt",
            "dampening_frac": self.method == "sparsegpt",
        }
        for name, does in used.items():
            if not does and getattr(self, name) != type(self).model_fields[name].default:
                beside = "a pattern" if name == "scope" and self.pattern else self.method
                raise ValueError(f"{name} does nothing with {beside}")
        if self.pattern is not None and self.method == "sparsegpt" and self.block_size % self.n_of_m.group:
            raise ValueError(f"blocks of {self.block_size} columns do not hold whole groups of {self.pattern}")
        return self

    @property
    def reads_data(self) -> bool:
        """Whether it is measured what goes through the model."""
        return self.method in CALIBRATED or self.importance == "activations"

    @property
    def fraction(self) -> float:
        """The sparsity asked for."""
        assert self.sparsity is not None, "validated"
        return self.sparsity

    @property
    def n_of_m(self) -> Pattern:
        """The pattern asked for."""
        assert self.pattern is not None, "asked before"
        return Pattern.parse(self.pattern)


def check(params: PruneParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse an adapter, a quantized model, a pattern or a fraction that it has no place for, and unfit data."""
    (source,) = materials
    _check.complete_model(source, "pruned")
    shapes = {name: shape for name, (_, shape) in source.tensors.items()}
    if params.method == "structured":
        assert params.structure is not None, "validated"
        plan = plan_of(source.name, source.config, shapes, params.structure, params.fraction)
        if params.structure == "layers":
            shortened(source.config, range(plan.stay), plan.layers)
    else:
        _check_matrices(params, source, shapes)
    if params.method in CALIBRATED:
        _check.needs("llmcompressor", "compress", params.method)
        _check.causal_model(source)
        if source.config.get("model_type") in TRANSPOSED:
            raise Refused(
                f"{params.method} prunes linear layers, and those of {source.name} are Conv1D", fix="use magnitude"
            )
    _check_data(params, source, rows)


def _check_data(params: PruneParams, source: Material, rows: tuple[Rows, ...]) -> None:
    way = params.method if params.method != "structured" else f"importance by {params.importance}"
    if params.reads_data and not rows:
        raise BadParams(f"{way} needs data to measure on", fix="name rows of text with --data")
    if rows and not params.reads_data:
        raise BadParams(
            f"{way} looks at no data",
            fix="leave --data out, or use wanda, sparsegpt or --importance activations",
        )
    if rows:
        check_samples(source, rows, params.num_calibration_samples)


def _check_matrices(params: PruneParams, source: Material, shapes: Mapping[str, tuple[int, ...]]) -> None:
    matrices = {name: shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    inside = {name: shape for name, shape in matrices.items() if LAYER.search(name)}
    if not inside and params.method in CALIBRATED:
        raise Refused(f"{source.name} has no numbered layers to go through one by one", fix="use method magnitude")
    if inside and all(_is_ignored(name, params) for name in inside):
        outside = [name for name in matrices if name not in inside and "emb" not in name and ".wte" not in name]
        if params.method in CALIBRATED or all(_is_ignored(name, params) for name in outside):
            raise Refused(f"every layer of {source.name} is ignored, none is left to prune", fix="ignore fewer layers")
    if params.pattern is None:
        return
    for name, shape in inside.items():
        if not _is_ignored(name, params):
            divides(params.n_of_m, name, shape[0 if source.config.get("model_type") in TRANSPOSED else 1])


def _is_ignored(weight: str, params: PruneParams) -> bool:
    return any(is_match(weight.removesuffix(".weight"), pattern) for pattern in params.ignore)


def run(job: Job, params: PruneParams, report: Report) -> Facts:
    """Prune; of equal weights or parts the first go. Without data the result is the same on every machine."""
    with ModelFolder(job.path("source")) as source:
        if params.method == "structured":
            return shrink(job, params, source, report)
        return thin_out(job, params, source, report)


def promise(params: PruneParams) -> Determinism:
    """What is measured has been rounded by the machine that did it; the rest is whole numbers and comparisons."""
    return "same-machine" if params.reads_data else "exact"


def predict(params: PruneParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """Zeros below a magnitude, and parts that were left as they are; what data decided on cannot be told."""
    from mreg.transforms._predict_prune import predictions

    return predictions(params, made)


TRANSFORM = Transform(
    params=PruneParams,
    inputs=(Input("source", "the model to prune"),),
    datasets="optional",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    promise=promise,
    predict=predict,
)
