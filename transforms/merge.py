"""Combine models of one architecture into one: their mean, their task vectors, or their layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check, _merging
from mreg.transforms._folder import FLOATS, ModelFolder, Slot, copy_rest, rewrite
from mreg.transforms._mergekit import adopt, check_config, run_config
from mreg.transforms._stacking import check_stack, stack_layers
from pydantic import Field, create_model

if TYPE_CHECKING:
    import torch
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

# With equal tensor shapes, these still say that two models compute different things.
SAME = ("model_type", "architectures", "num_attention_heads", "num_key_value_heads", "hidden_act")

TASKS = ("task-arithmetic", "ties", "dare-linear", "dare-ties")
SPARSE = ("ties", "dare-linear", "dare-ties")
ON_BASE = (*TASKS, "model-stock")

USED_BY: Mapping[str, tuple[str, ...]] = {
    "weights": ("linear", *TASKS),
    "normalize": ("linear", *TASKS),
    "density": SPARSE,
    "lambda": TASKS,
    "t": ("slerp",),
    "slices": ("passthrough",),
    "mergekit": ("mergekit",),
}
"""The options that not every method has a use for."""


class _MergeParams(Params):
    method: Literal[
        "linear",
        "slerp",
        "task-arithmetic",
        "ties",
        "dare-linear",
        "dare-ties",
        "model-stock",
        "passthrough",
        "mergekit",
    ] = "linear"
    """How the models are combined: `linear` is the weighted mean (Wortsman et al. 2022), `slerp` the arc between two
    (Shoemake 1985); `task-arithmetic` (Ilharco et al. 2023), `ties` (Yadav et al. 2023) and `dare-linear`, `dare-ties`
    (Yu et al. 2024) add what each learnt to a base; `model-stock` (Jang et al. 2024) weighs the mean against the base;
    `passthrough` stacks layers; `mergekit` does what a configuration of mergekit says."""

    weights: tuple[float, ...] = ()
    """One weight for the source and one for each other model, in the order given; all equal unless said."""

    normalize: bool | None = None
    """Divide by the sum of the weights; unless said, linear and ties do, as in mergekit."""

    density: tuple[float, ...] = ()
    """The share of each task vector that stays (ties, dare): one for all models, or one for each."""

    t: float = Field(0.5, ge=0, le=1)
    """Where on the arc the result lies (slerp): 0 is the source, 1 the other model."""

    slices: tuple[str, ...] = ()
    """The layers of the result (passthrough), as MODEL:START-END without the end: 0:0-12,1:6-24 puts layers 6 to 23 of
    the first other model on the first 12 of the source, which is model 0."""

    mergekit: dict[str, Any] | None = None
    """The configuration (mergekit), its models called source, base, others[0] …; --config reads it from a file that
    has versions of the registry as models."""


# A keyword of Python, and the name that everybody knows it by.
_LAMBDA: Any = {
    "lambda": (float, Field(1.0, description="What the sum of the task vectors is multiplied by: the λ of TIES."))
}
MergeParams: type[_MergeParams] = create_model("MergeParams", __base__=_MergeParams, __module__=__name__, **_LAMBDA)


@dataclass(frozen=True)
class Settings:
    """The options as the arithmetic takes them: one weight and one density for each model, the base left out."""

    method: str
    weights: list[float]
    densities: list[float]
    normalize: bool
    scale: float
    t: float


def check(params: _MergeParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse parents that differ in architecture, tensors or vocabulary, and options that do not fit them."""
    del rows
    if params.method == "mergekit":
        _fitting(params, len(materials), base=True)
        check_config(params.mergekit or {}, materials)
        return
    for material in materials:
        _check.complete_model(material, "merged")
    bases = [one for one in materials if one.role == "base"]
    settings(params, len(materials) - len(bases), base=bool(bases))
    first = materials[0]
    for other in materials[1:]:
        for key in SAME:
            if first.config.get(key) != other.config.get(key):
                said = f"{key} is {first.config.get(key)} in {first.name} and {other.config.get(key)} in {other.name}"
                raise Refused(said, fix="merge versions that have a common ancestor")
        if params.method != "passthrough":
            _check.same_tensors(first, other, fix="merge versions whose tensors have the same names and shapes")
        _check.same_vocabulary(first, other, fix="merge models that share one tokenizer")
    if params.method == "passthrough":
        check_stack(params.slices, materials)


def settings(params: _MergeParams, models: int, *, base: bool) -> Settings:
    """What the options come to for so many `models`. Raises BadParams where they do not fit the method or those."""
    method, scale = params.method, float(getattr(params, "lambda"))
    _fitting(params, models, base=base)
    weights = list(params.weights or [1.0] * models)
    if len(weights) != models:
        raise BadParams(f"{len(weights)} weights for {models} models", fix="give one for the source, then one a model")
    densities = list(params.density) or [1.0]
    densities = densities * models if len(densities) == 1 else densities
    if len(densities) != models:
        raise BadParams(f"{len(densities)} densities for {models} models", fix="give one for all, or one for each")
    if not all(0 < one <= 1 for one in densities):
        raise BadParams("a density is a share above 0 and at most 1", fix="ties often takes 0.2, dare 0.1 to 0.9")
    normalize = params.normalize if params.normalize is not None else method in ("linear", "ties")
    if normalize and sum(weights) == 0 and method in ("linear", *TASKS):
        raise BadParams(
            "weights that sum to 0 cannot be normalized", fix="give other weights, or switch `normalize` off"
        )
    if normalize and method == "linear":
        weights = [weight / sum(weights) for weight in weights]
    return Settings(method, weights, densities, normalize, scale, params.t)


def _fitting(params: _MergeParams, models: int, *, base: bool) -> None:
    method = params.method
    for name, methods in USED_BY.items():
        if method not in methods and getattr(params, name) != type(params).model_fields[name].default:
            raise BadParams(f"--{name} has no effect on {method}", fix=f"it is for {', '.join(methods)}")
    if method == "mergekit":
        if params.mergekit is None:
            raise BadParams("mergekit needs a configuration", fix="name its file with --config, and no --method")
        return
    if models < 2 and method not in ("passthrough", *TASKS):
        raise BadParams("a merge needs two models or more", fix="name the others with `--with`")
    if models > 2 and method == "slerp":
        raise BadParams(
            f"slerp merges two models, not {models}", fix="merge two of them, then the next with the result"
        )
    if base and method not in ON_BASE:
        raise BadParams(f"{method} has no use for a base", fix=f"leave it out; {', '.join(ON_BASE)} need one")
    if not base and method in ON_BASE:
        raise BadParams(
            f"{method} needs the base that the models were tuned from", fix="name it with `--with base=REV`"
        )
    if method in SPARSE and not params.density:
        raise BadParams(f"{method} needs --density", fix="say what share of each task vector stays, such as 0.2")


def run(job: Job, params: _MergeParams, report: Report) -> Facts:
    """Merge tensor by tensor in float32, and round once to the dtype of the source."""
    if params.method == "mergekit":
        assert params.mergekit is not None
        return run_config(job, params.mergekit, report)
    folders = [job.path("source"), *job.paths("others")]
    with ExitStack() as stack:
        models = [stack.enter_context(ModelFolder(folder)) for folder in folders]
        bases = [stack.enter_context(ModelFolder(folder)) for folder in job.paths("base")]
        left_out = copy_rest(folders[0], job.output)
        if params.method == "passthrough":
            layers = stack_layers(models, params.slices, job.output, report)
            return {"layers": len(layers), "left_out": left_out}
        chosen = settings(params, len(models), base=bool(bases))
        ratios: list[float] = []

        def make(slot: Slot) -> Iterator[torch.Tensor]:
            tensors = [model.tensor(slot.name) for model in models]
            if slot.dtype in FLOATS:
                base = bases[0].tensor(slot.name) if bases else None
                yield merged(chosen, base, tensors, job.seed, slot.name, ratios).to(tensors[0].dtype)
            else:
                yield tensors[0]

        rewrite(models[0], job.output, lambda slot: [slot], make, report)
        told: Facts = {"tensors": len(models[0].slots), "left_out": left_out}
    if chosen.method in USED_BY["weights"]:
        told["weights"] = chosen.weights
    if ratios:
        told |= {"ratio_mean": sum(ratios) / len(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    return told


def merged(
    chosen: Settings,
    base: torch.Tensor | None,
    tensors: Sequence[torch.Tensor],
    seed: int,
    name: str,
    ratios: list[float],
) -> torch.Tensor:
    """The tensor called `name` in float32. `ratios` is told how far model-stock went from the base."""
    weights, densities, scale, normalize = chosen.weights, chosen.densities, chosen.scale, chosen.normalize
    if chosen.method == "linear":
        return _merging.linear(tensors, weights)
    if chosen.method == "slerp":
        return _merging.slerp(tensors[0], tensors[1], chosen.t)
    assert base is not None, chosen.method
    if chosen.method == "task-arithmetic":
        return _merging.task_arithmetic(base, tensors, weights, scale, normalize=normalize)
    if chosen.method == "ties":
        return _merging.ties(base, tensors, weights, densities, scale, normalize=normalize)
    if chosen.method == "model-stock":
        result, ratio = _merging.model_stock(base, tensors)
        ratios.append(ratio)
        return result

    def mask(place: int) -> torch.Tensor:
        return _merging.drawn(seed, name, place, densities[place], base.shape)

    elect = chosen.method == "dare-ties"
    return _merging.dare(base, tensors, weights, densities, scale, mask, elect=elect, normalize=normalize)


def predict(params: _MergeParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """Every method but mergekit's, whose arithmetic is its own; stacked layers are stored once as it is."""
    from mreg.transforms._predict_merge import predictions

    if params.method in ("mergekit", "passthrough"):
        return ()
    return predictions(settings(params, 1 + len(made.inputs.get("others", ())), base="base" in made.inputs), made)


def surroundings(params: _MergeParams) -> dict[str, Any]:
    """The version of mergekit, where it does the work."""
    from importlib.metadata import version

    return {"mergekit": version("mergekit")} if params.method == "mergekit" else {}


TRANSFORM = Transform(
    params=MergeParams,
    inputs=(
        Input("source", "the first model; the result has its files and dtype"),
        Input("others", "the rest", many=True, optional=True),
        Input("base", f"what the models were tuned from ({', '.join(ON_BASE)})", optional=True),
    ),
    determinism="same-machine",
    promise=lambda params: "same-machine" if params.method == "mergekit" else "exact",
    version=1,
    run=run,
    check=check,
    surroundings=surroundings,
    adopt=adopt,
    predict=predict,
)
