"""Setting weights of a model to zero: its folder is written again, and only the matrices chosen differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Job, Report
from mreg.transforms._activations import read_samples
from mreg.transforms._architecture import Linears, linear_layers
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite
from mreg.transforms._layers import LAYER
from mreg.transforms._oneshot import in_layers, prune_by_samples
from mreg.transforms._sparse import divides, find_cutoff, without_pattern, without_smallest, without_smallest_of_rows

if TYPE_CHECKING:
    import torch
    from mreg.transforms.prune import PruneParams

CALIBRATED = ("wanda", "sparsegpt")

Thin = Callable[[str, "torch.Tensor"], "torch.Tensor"]
"""The name of a matrix and the matrix, as it is in the folder, to the matrix with its zeros."""


def thin_out(job: Job, params: PruneParams, source: ModelFolder, report: Report) -> Facts:
    """Write the source with zeros, matrix by matrix; return how many there are and where."""
    linears = linear_layers(source, params.ignore, conv1d=params.method == "magnitude")
    names = in_layers(linears.chosen) if params.method in CALIBRATED else linears.chosen
    weights = {f"{name}.weight" for name in names}
    if not weights:
        raise Refused(
            "none of the linear layers within numbered layers is left to prune",
            fix="ignore fewer layers, or use method magnitude",
        )
    if params.pattern is not None:
        for name in weights:
            divides(params.n_of_m, name, _columns(source.slots[name], linears))
    facts: Facts = {}
    if params.method in CALIBRATED:
        thin, facts = _by_samples(job, params, source, names, report)
    else:
        thin = _by_magnitude(params, source, linears, report)
    zeros: dict[str, int] = {}

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = source.tensor(slot.name)
        if slot.name in weights:
            tensor = thin(slot.name, tensor)
            zeros[slot.name] = int((tensor == 0).sum())
        yield tensor

    left_out = copy_rest(source.path, job.output)
    rewrite(source, job.output, lambda slot: [slot], make, report)
    sizes = {name: slot.elements for name, slot in source.slots.items()}
    gone, total = sum(zeros.values()), sum(sizes.values())
    return {
        "matrices": len(zeros),
        "parameters": total,
        "zeros": gone,
        "sparsity": gone / sum(sizes[name] for name in zeros),
        "model_sparsity": gone / total,
        **_spread(zeros, sizes),
        **facts,
        "left_out": left_out,
    }


def _by_magnitude(params: PruneParams, source: ModelFolder, linears: Linears, report: Report) -> Thin:
    if params.pattern is None and params.scope == "global":
        elements = sum(source.slots[name].elements for name in linears.weights)
        cutoff = find_cutoff([*linears.weights], source.tensor, round(params.fraction * elements), report)
        return cutoff.without

    def thin(name: str, matrix: torch.Tensor) -> torch.Tensor:
        if params.pattern is None and params.scope == "per-tensor":
            return without_smallest(matrix, round(params.fraction * matrix.numel()))
        is_transposed = name.removesuffix(".weight") in linears.transposed
        rows = matrix.T if is_transposed else matrix
        if params.pattern is not None:
            rows = without_pattern(rows, params.n_of_m)
        else:
            rows = without_smallest_of_rows(rows, round(params.fraction * rows.shape[1]))
        return rows.T if is_transposed else rows

    return thin


def _by_samples(
    job: Job, params: PruneParams, source: ModelFolder, names: tuple[str, ...], report: Report
) -> tuple[Thin, Facts]:
    samples = read_samples(job, params.num_calibration_samples, params.max_seq_length, source.config)
    made = prune_by_samples(
        job,
        source.config,
        samples,
        report,
        method=params.method,
        names=names,
        sparsity=params.fraction,
        pattern=params.n_of_m if params.pattern else None,
        block_size=params.block_size,
        dampening_frac=params.dampening_frac,
    )
    told = {"calibration_samples": len(samples), "calibration_tokens": sum(map(len, samples))}
    return lambda name, matrix: made[name].to(matrix.dtype), told


def _columns(slot: Slot, linears: Linears) -> int:
    return slot.shape[0 if slot.name.removesuffix(".weight") in linears.transposed else 1]


def _spread(zeros: Mapping[str, int], sizes: Mapping[str, int]) -> Facts:
    """The sparsity of each numbered layer in turn, and the matrices with the least and the most of it."""
    layers: dict[int, list[str]] = {}
    for name in zeros:
        if found := LAYER.search(name):
            layers.setdefault(int(found[1]), []).append(name)
    share = {name: round(zeros[name] / sizes[name], 4) for name in zeros}
    least, most = (chosen(sorted(share), key=lambda name: share[name]) for chosen in (min, max))
    told: Facts = {
        "layer_sparsity": [
            round(sum(zeros[name] for name in layers[number]) / sum(sizes[name] for name in layers[number]), 4)
            for number in sorted(layers)
        ]
    }
    if share[least] != share[most]:
        told |= {"least_sparse": f"{least} {share[least]:g}", "most_sparse": f"{most} {share[most]:g}"}
    return told
