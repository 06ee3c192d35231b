"""Quantizing by what goes through a model: GPTQ, AWQ and SmoothQuant as llmcompressor has them, layer by layer.

The library works on the model in float32, with scales that are exact in the dtype they will be stored in; what comes
out is handed back tensor by tensor, so that the files are written as those of the other methods are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Job, Material, Progress, Report
from mreg.transforms._activations import load
from mreg.transforms._architecture import Linears
from mreg.transforms._compressed import Format, State
from mreg.transforms._llmcompressor import NotCalibrated, kept_on

if TYPE_CHECKING:
    import torch

SMOOTHED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Models of which is known which norm feeds which layers: a scale taken out of one is put into the others."""

MOST_MEASURED = 16
"""Samples on which the error of the outputs is measured."""


@dataclass(frozen=True)
class Settings:
    """What the methods may be told, by the names of the params."""

    method: str
    damp_percent: float = 0.01
    act_order: bool = True
    n_grid: int = 20
    smoothing_strength: float = 0.5


@dataclass(frozen=True)
class Calibrated:
    """A model with chosen scales. `unsolved` are matrices whose Hessian could not be inverted: rounded to nearest."""

    model: Any
    tensors: Mapping[str, torch.Tensor]
    unsolved: tuple[str, ...]

    def state(self, weight: str, dtype: torch.dtype) -> State:
        """A chosen weight with its scales, which are stored as `dtype`."""
        module = weight.removesuffix("weight")
        held = {name: self.tensors[module + name] for name in ("weight", "weight_scale", "weight_zero_point")}
        return {**held, "weight_scale": held["weight_scale"].to(dtype)}


def check_smoothed(source: Material, method: str) -> None:
    """Refuse a model of which is not known where its layers get their inputs from."""
    names = source.config.get("architectures") or ["no known model"]
    if names[0] not in SMOOTHED:
        raise Refused(
            f"{source.name} is {names[0]}, and {method} knows the layers of {', '.join(SMOOTHED)} only",
            fix="use gptq, which takes any causal language model",
        )


def calibrate(
    job: Job,
    config: Mapping[str, Any],
    linears: Linears,
    stored: Format,
    dtype: torch.dtype,
    samples: Sequence[Sequence[int]],
    report: Report,
    settings: Settings,
) -> Calibrated:
    """Choose weights and scales for the linear layers, one decoder layer after the other, on what comes out before it.

    `gptq` (Frantar et al. 2022) rounds column by column and makes up for the error in the columns that follow, by the
    inverse of XᵀX + damp_percent·mean(diag); with `act_order` those come first that carry most. `awq` (Lin et al. 2023)
    and `smoothquant` (Xiao et al. 2022) scale inputs and weights against each other, then round to the nearest: AWQ by
    the best of `n_grid` scales, SmoothQuant by max|X|^s / max|W|^(1-s). `samples` are token ids, run one at a time.
    """
    import torch
    from llmcompressor.entrypoints.oneshot import oneshot
    from torch.utils.data import DataLoader

    model = load(job.path("source"), config, job.device)
    scheme = stored.scheme.model_copy(deep=True)
    scheme.weights.scale_dtype = dtype
    recipe = _recipe(settings, scheme, linears)
    tokens = [torch.tensor([ids]) for ids in samples]
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tokens]
    with kept_on(job.device), _following(report, len(model.get_decoder().layers)) as last:
        oneshot(
            model=model,
            dataset=DataLoader(rows, batch_size=1, shuffle=False, collate_fn=lambda batch: batch[0]),  # type: ignore[arg-type]
            recipe=[*recipe, last],
            num_calibration_samples=len(rows),
            max_seq_length=max(map(len, samples)),
            shuffle_calibration_samples=False,
        )
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for name in linears.chosen:
        if f"{name}.weight_scale" not in tensors or not tensors[f"{name}.weight"].isfinite().all():
            raise NotCalibrated(f"no scale was found for {name}", fix="give more samples, or ignore it")
    return Calibrated(model, tensors, tuple(getattr(recipe[-1], "_rtn_fallback_module_names", ())))


def output_errors(
    found: Calibrated,
    linears: Linears,
    original: Callable[[str], torch.Tensor],
    samples: Sequence[Sequence[int]],
    report: Report,
) -> dict[str, float]:
    """For every weight ‖XŴᵀ - XWᵀ‖ / ‖XWᵀ‖, where X is what reaches its layer in the quantized model on the samples.

    `original` gives W by name. What a method does to the inputs of a layer while it runs is part of the error.
    """
    import torch

    given = samples[:MOST_MEASURED]
    sums: dict[str, list[float]] = {}

    def measure(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            x = inputs[0].float()
            exact = torch.nn.functional.linear(x, original(f"{name}.weight").float().to(x.device), module.bias)
            off = [float((output - exact).square().sum()), float(exact.square().sum())]
            sums[f"{name}.weight"] = [a + b for a, b in zip(sums.get(f"{name}.weight", [0.0, 0.0]), off, strict=True)]

        return hook

    modules = dict(found.model.named_modules())
    hooks = [modules[name].register_forward_hook(measure(name)) for name in linears.chosen]
    with torch.no_grad():
        for done, ids in enumerate(given, start=1):
            found.model(torch.tensor([ids], device=found.model.device))
            report(Progress(done, len(given), "measuring what comes out"))
    for hook in hooks:
        hook.remove()
    return {name: float(f"{(off / max(whole, 1e-30)) ** 0.5:.4g}") for name, (off, whole) in sums.items()}


def _recipe(settings: Settings, scheme: Any, linears: Linears) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    where: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": list(linears.ignored)}
    if settings.method == "gptq":
        order = "static" if settings.act_order else None
        return [GPTQModifier(**where, dampening_frac=settings.damp_percent, actorder=order)]
    if settings.method == "awq":
        return [AWQModifier(n_grid=settings.n_grid), QuantizationModifier(**where)]
    return [SmoothQuantModifier(smoothing_strength=settings.smoothing_strength), QuantizationModifier(**where)]


@contextlib.contextmanager
def _following(report: Report, layers: int) -> Iterator[Any]:
    """A last modifier that changes nothing and reports each decoder layer when it is done."""
    from llmcompressor.modifiers import Modifier

    done = 0

    class Following(Modifier):
        def on_initialize(self, state: Any, **kwargs: Any) -> bool:
            del state, kwargs
            return True

        def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any = (), **kwargs: Any) -> None:
            del state, event, modules, kwargs
            nonlocal done
            done += 1
            report(Progress(min(done, layers), layers, "layers"))

    yield Following()
