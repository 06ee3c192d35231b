"""Turn the difference of two versions into a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import MregError, Refused
from mreg.registry.transform import Facts, Input, Job, Material, Params, Progress, Report, Rows, Transform
from mreg.transforms import _check
from mreg.transforms._adapter import WEIGHTS, write_config
from mreg.transforms._architecture import skeleton
from mreg.transforms._folder import FLOATS, ModelFolder
from pydantic import Field

if TYPE_CHECKING:
    import torch

ALL_LINEAR = "all-linear"


class NothingToExtract(MregError):
    """Two versions do not differ in any matrix that the adapter is to change."""

    exit_code = 6


class ExtractParams(Params):
    """The options of `extract`."""

    rank: int = Field(16, ge=1)
    """The rank of the adapter: so many singular directions of each difference are kept."""

    target_modules: tuple[str, ...] = Field((ALL_LINEAR,), min_length=1)
    """The layers to look at, by the end of their names; `all-linear` is all linear layers but the head."""


def check(params: ExtractParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse a model and itself, tensors that differ in name or shape, and names that no layer has."""
    del rows
    source, base = materials
    for material in materials:
        _check.complete_model(material, "compared")
    if source.name == base.name:
        raise Refused(f"{base.name} does not differ from itself", fix="give the version that it was trained from")
    _check.same_tensors(source, base, fix="give the version that the other one was trained from")
    for target in params.target_modules:
        if target != ALL_LINEAR and not any(_ends(name, f"{target}.weight") for name in base.tensors):
            raise Refused(f"no layer of {base.name} is called {target}", fix="give the end of a name, such as q_proj")


def run(job: Job, params: ExtractParams, report: Report) -> Facts:
    """`W' - W = U·S·Vᵀ` in float64, cut to the rank: `B = U·√S` and `A = √S·Vᵀ` (Eckart and Young 1936).

    Law: a difference of no higher rank comes back whole, but for the rounding of A and B to float32.
    """
    from safetensors.torch import save_file

    factors: dict[str, torch.Tensor] = {}
    energies: dict[str, tuple[float, float]] = {}
    not_captured = []
    with ModelFolder(job.path("source")) as source, ModelFolder(job.path("base")) as base:
        linear = linear_layers(base)
        looked_at = {f"{name}.weight": name for name in chosen(linear, params.target_modules)}
        for done, (name, slot) in enumerate(base.slots.items(), start=1):
            report(Progress(done, len(base.slots), name))
            delta = source.tensor(name).double() - base.tensor(name).double()
            if not delta.any():
                continue
            if name not in looked_at or slot.dtype not in FLOATS:
                not_captured.append(name)
                continue
            b, a = low_rank(delta, params.rank)
            module = looked_at[name]
            factors[f"base_model.model.{module}.lora_A.weight"] = a
            factors[f"base_model.model.{module}.lora_B.weight"] = b
            energies[module] = float((b.double() @ a.double()).square().sum()), float(delta.square().sum())
        architectures = base.config.get("architectures") or [""]
    if not factors:
        raise NothingToExtract("no matrix differs that the adapter is to change", fix="name more layers, or two others")
    save_file(factors, job.output / WEIGHTS, metadata={"format": "pt"})
    _write_config(job, params.rank, shortest(energies, linear), architectures[0])
    shares = {module: share(kept, whole) for module, (kept, whole) in energies.items()}
    worst = min(shares, key=lambda module: (shares[module], module))
    return {
        "rank": params.rank,
        "matrices": len(shares),
        "captured_energy": share(*map(sum, zip(*energies.values(), strict=True))),
        "captured": shares,
        "worst": {"module": worst, "captured_energy": shares[worst]},
        "not_captured": not_captured,
    }


def share(kept: float, whole: float) -> float:
    """How much of a squared Frobenius norm is kept."""
    return round(min(1.0, kept / whole), 6)


def low_rank(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best B and A of this rank for a float64 matrix, in float32; both end in zeros where it has less.

    Singular vectors have no sign of their own: the largest entry of each of U is made positive.
    """
    import torch

    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    smallest = s[0] * max(delta.shape) * torch.finfo(s.dtype).eps
    kept = min(rank, int((s > smallest).sum()))
    signs = u.gather(0, u.abs().argmax(0, keepdim=True))[0, :kept].sign()
    scale = s[:kept].sqrt() * signs
    b, a = torch.zeros(delta.shape[0], rank), torch.zeros(rank, delta.shape[1])
    b[:, :kept] = u[:, :kept] * scale
    a[:kept] = scale[:, None] * v[:kept]
    return b, a


def linear_layers(base: ModelFolder) -> dict[str, bool]:
    """The linear layers whose weights the files hold, each with whether it is the head."""
    import torch

    model: Any = skeleton(base)
    head = model.get_output_embeddings()
    named = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: module is head for name, module in named.items() if f"{name}.weight" in base.slots}


def chosen(linear: dict[str, bool], targets: Sequence[str]) -> list[str]:
    """The linear layers that `target_modules` means."""
    return [
        name
        for name, is_head in linear.items()
        if any(_ends(name, target) or (target == ALL_LINEAR and not is_head) for target in targets)
    ]


def shortest(modules: Iterable[str], linear: Iterable[str]) -> list[str]:
    """What to call these modules: by their last names, where those mean no other linear layer."""
    wanted, everything = set(modules), list(linear)
    names = set()
    for module in wanted:
        last = module.rpartition(".")[2]
        names.add(last if wanted >= {name for name in everything if _ends(name, last)} else module)
    return sorted(names)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _write_config(job: Job, rank: int, targets: list[str], architecture: str) -> None:
    from peft import LoraConfig

    task = "CAUSAL_LM" if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None
    # With alpha equal to the rank, the scale is 1.
    config: Any = LoraConfig(task_type=task, r=rank, lora_alpha=rank, target_modules=targets, inference_mode=True)
    write_config(config.to_dict(), job.output)


TRANSFORM = Transform(
    params=ExtractParams,
    inputs=(Input("source", "the version that was changed"), Input("base", "the version that the adapter will fit")),
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    fits="base",
)
