"""Quantization as predictions: the nearest points of a grid, and the scales that span it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mreg.transforms._predicting import FLOATS, IN_F32, prediction

if TYPE_CHECKING:
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction

_KINDS = {"I8": "int8", "F8_E4M3": "float8"}


def predictions(made: Made) -> Iterator[tuple[str, Prediction]]:
    """What stands in the place of each weight that was rounded to the nearest; how, is told by what came out.

    Its scales are found again from the weights, or, where they were chosen otherwise, read as they are stored.
    """
    (source, *_), output = made.inputs["source"], made.output
    held, names = set(source.names()), set(output.names())
    for scale in sorted(name for name in names if name.endswith(".weight_scale")):
        weight = scale.removesuffix("_scale")
        if weight not in held or source.layout(weight)[0] not in FLOATS or len(source.layout(weight)[1]) != 2:
            continue
        columns = source.layout(weight)[1][1]
        groups = output.layout(scale)[1][-1]
        packed, points = f"{weight}_packed", f"{weight}_zero_point"
        quantized = packed if packed in names else weight
        if quantized not in names or groups == 0 or columns % groups:
            continue
        dtype, shape = output.layout(quantized)
        kind = "packed" if quantized == packed else _KINDS.get(dtype)
        if kind is None or len(shape) != 2:
            continue
        way = "asymmetric" if points in names else "symmetric"
        bits = 4 if kind == "packed" and shape[1] == -(-columns // 8) else 8
        grid: dict[str, Any] = {**IN_F32, "kind": kind, "bits": bits, "group": columns // groups, "scale": way}
        found = (output, points) if way == "asymmetric" else None
        stored = [(source, weight), (output, scale), *([found] if found else [])]
        yield scale, prediction("grid-scale", [(source, weight)], grid)
        if found:
            yield points, prediction("grid-zero-point", [(source, weight)], grid)
        yield quantized, prediction("grid", [(source, weight)], grid)
        yield quantized, prediction("grid", stored, {**grid, "scale": "stored"})
