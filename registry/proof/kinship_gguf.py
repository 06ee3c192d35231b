"""Whether a GGUF file holds the weights of a model. Pure but for reading."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from mreg.registry.models.gguf_file import PLAIN, GgufFile, misfit, off_grid
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.proof import evidence
from mreg.registry.proof.kinship import SAMPLES, UNRELATED, Kinship, sampled


def relate_gguf(
    parent: TensorSource, file: GgufFile, *, count: int = SAMPLES, among: Collection[str] | None = None
) -> Kinship:
    """The distance of what its blocks hold, and whether each weight went to the nearest point of its block.

    Of the matrices `count` are looked at, where there are some of those in `among`.
    """
    names = [(name, called) for name in sorted(parent.names()) if (called := file.called(name)) is not None]
    matrices = [(name, called) for name, called in names if len(parent.layout(name)[1]) == 2]
    fitting = dict(pair for pair in matrices if parent.layout(pair[0])[1] == file.shape(pair[1]))
    if not fitting or len(fitting) < len(matrices) or len(names) < len(file.names()):
        return Kinship("none", float("inf"), "it has other matrices")
    chosen = [name for name in fitting if among and name in among] or list(fitting)
    errors, misfits, nearest, gridded = [], [], 0, 0
    for name in sampled(chosen, count):
        called = fitting[name]
        weight, restored = file.in_order(called, evidence.numbers(parent.tensor(name))), file.restored(called)
        errors.append(evidence.distance(weight, restored))
        if errors[-1] >= UNRELATED:
            return Kinship("none", errors[-1], f"{errors[-1]:.2g} of the norm apart")
        grid, kind = file.grid(called), file.kind(called)
        if grid is not None:
            gridded += 1
            nearest += off_grid(weight, restored, grid) == 0
            misfits.append(misfit(weight, grid))
        elif kind in PLAIN:
            gridded += 1
            nearest += np.array_equal(weight.astype(evidence.DTYPES[kind]).astype(np.float64), restored)
    apart = sum(errors) / len(errors)
    kinds = ", ".join(sorted({file.kind(called) for called in fitting.values()}))
    told = f", each weight the nearest that its block can hold in {nearest} of {gridded}" if gridded else ""
    off = 1 - nearest / gridded if gridded else 0.0
    return Kinship("quantize", apart, f"{kinds} within {apart:.2g} of the norm{told}", off + sum(misfits))
