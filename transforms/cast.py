"""Store the weights in another floating-point dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._folder import FLOATS, ModelFolder, Slot, change_config, copy_rest, rewrite

if TYPE_CHECKING:
    import torch
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class CastParams(Params):
    """The options of `cast`."""

    dtype: Literal["float32", "bfloat16", "float16"]
    """What floating-point tensors become; integer tensors stay as they are."""


def check(params: CastParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse an adapter and a quantized model."""
    del params, rows
    _check.complete_model(materials[0], "cast")


def run(job: Job, params: CastParams, report: Report) -> Facts:
    """Round every element to the nearest, ties to even; a finite number that would become infinite is refused."""
    import torch

    dtype: torch.dtype = getattr(torch, params.dtype)
    cast = underflowed = 0

    def plan(slot: Slot) -> list[Slot]:
        return [Slot(slot.name, NAMES[params.dtype] if slot.dtype in FLOATS else slot.dtype, slot.shape)]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        nonlocal cast, underflowed
        before = source.tensor(slot.name)
        after = before.to(dtype) if slot.dtype in FLOATS else before
        if slot.dtype in FLOATS and bool((after.isinf() & ~before.isinf()).any()):
            raise Refused(
                f"{slot.name} holds {before.abs().max():.4g}, too large for {params.dtype}",
                fix="cast to bfloat16, which has the range of float32",
            )
        cast += after.dtype != before.dtype
        underflowed += int(((after == 0) & (before != 0)).sum())
        yield after

    with ModelFolder(job.path("source")) as source:
        left_out = copy_rest(source.path, job.output)
        rewrite(source, job.output, plan, make, report)
        change_config(source.path, job.output, **_with_dtype(source.config, params.dtype))
        return {"tensors": len(source.slots), "cast": cast, "underflowed": underflowed, "left_out": left_out}


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    # Composite models say it again in `text_config` and its like; older transformers wrote `torch_dtype`.
    said: dict[str, Any] = {key: dtype for key in ("dtype", "torch_dtype") if key in config} or {"dtype": dtype}
    parts = {
        key: _with_dtype(value, dtype)
        for key, value in config.items()
        if key.endswith("_config") and isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)
    }
    return {**config, **said, **parts}


def predict(params: CastParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """Every tensor that has another dtype than before."""
    from mreg.transforms._predicting import prediction, shared

    del params
    source = made.inputs["source"][0]
    for name in shared(made.output, [source], known=FLOATS):
        if source.layout(name) != made.output.layout(name):
            yield name, prediction("cast", [(source, name)], {})


TRANSFORM = Transform(
    params=CastParams,
    inputs=(Input("source", "the model to cast"),),
    determinism="exact",
    version=1,
    run=run,
    check=check,
    predict=predict,
)
