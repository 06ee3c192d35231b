"""A GGUF file as weights that can be held against others: under what name each stands, and on which grid.

The `gguf` package reads it, which is an extra. How llama.cpp lays out what transformers has is in its name map; of the
`llama` architecture the rows of queries and keys stand in another order.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mreg.registry.errors import MregError
from mreg.registry.models.weights import spacing
from mreg.registry.proof.evidence import Floats

PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that hold numbers as they are, called as in safetensors."""

GRIDS: Mapping[str, tuple[int, int, bool]] = {
    "Q8_0": (-128, 127, False),
    "Q4_0": (-8, 7, False),
    "Q5_0": (-16, 15, False),
    "Q4_1": (0, 15, True),
    "Q5_1": (0, 31, True),
}
"""Types of which each block begins with its step, as a float16: the lowest and the highest integer, and whether the
block's smallest number follows the step."""

ERRORS: Mapping[str, float] = {"Q6_K": 0.03, "Q5_K": 0.06, "Q4_K": 0.12, "IQ4_NL": 0.12, "IQ4_XS": 0.12, "Q3_K": 0.25}
"""The relative error that the other types stay below on a whole matrix; those that are not named below 0.6."""

MOST_ERROR = 0.6


class UnreadableGguf(MregError):
    """A GGUF file cannot be read here."""

    exit_code = 12


@dataclass(frozen=True)
class Grid:
    """The points that one block can hold: `step · integer + offset`, for every element of a matrix.

    `slack` is what the rounding of step and offset to float16 adds to half a step, in steps.
    """

    step: Floats
    offset: Floats
    slack: Floats
    low: int
    high: int
    block: int


class GgufFile:
    """The weights in a GGUF file, by the names that they have there."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UnreadableGguf("GGUF needs gguf, which is not installed", fix="pip install 'mreg[gguf]'")
        import gguf

        try:
            reader = gguf.GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self.architecture = str(reader.fields["general.architecture"].contents())
            self._fields = {name: field for name, field in reader.fields.items() if name.startswith(self.architecture)}
            layers = int(self._field("block_count", 0))
            kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        except (ValueError, KeyError, IndexError, OSError, StopIteration) as error:
            raise UnreadableGguf(f"{path.name} cannot be read ({error})", fix="make the file again") from error
        self._names = gguf.get_tensor_name_map(kind, layers)

    def names(self) -> list[str]:
        """Every tensor of the file."""
        return list(self._tensors)

    def called(self, name: str) -> str | None:
        """What a tensor of transformers is called in here; None where there is no such one."""
        found: str | None = self._names.get_name(name, try_suffixes=(".weight", ".bias"))
        return found if found in self._tensors else None

    def kind(self, name: str) -> str:
        """The type of a tensor: `Q8_0`."""
        return str(self._tensors[name].tensor_type.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, rows first."""
        return tuple(int(side) for side in reversed(self._tensors[name].shape))

    def restored(self, name: str) -> Floats:
        """The numbers that the file stands for."""
        import gguf

        tensor = self._tensors[name]
        values: Floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        return values.reshape(self.shape(name))

    def grid(self, name: str) -> Grid | None:
        """On which points the numbers stand; None for types that have no even grid."""
        import gguf

        kind = self.kind(name)
        if kind not in GRIDS:
            return None
        low, high, has_offset = GRIDS[kind]
        tensor = self._tensors[name]
        length, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        blocks = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1, size)
        halves = np.ascontiguousarray(blocks[:, : 4 if has_offset else 2]).view(np.float16).astype(np.float64)
        step, offset = halves[:, 0], halves[:, 1] if has_offset else np.zeros(len(halves))
        apart = np.where(step == 0, 1.0, np.abs(step))
        rounding = spacing(step, np.float16) / 2 / apart * max(abs(low), abs(high))
        rounding = rounding + (spacing(offset, np.float16) / 2 / apart if has_offset else 0.0)
        shape = self.shape(name)
        wide = [np.repeat(each, length).reshape(shape) for each in (step, offset, rounding)]
        return Grid(wide[0], wide[1], wide[2] + 2e-3, low, high, length)

    def in_order(self, name: str, weight: Floats) -> Floats:
        """The rows of a tensor of transformers in the order that they have here."""
        found = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)", name)
        if self.architecture != "llama" or found is None:
            return weight
        heads = int(self._field("attention.head_count", 1))
        heads = int(self._field("attention.head_count_kv", heads)) if found[1] == "k" else heads
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)

    def _field(self, name: str, default: int) -> Any:
        field = self._fields.get(f"{self.architecture}.{name}")
        return default if field is None else field.contents()


def off_grid(weight: Floats, restored: Floats, grid: Grid) -> float:
    """How far the worst weight is from the nearest point of its block's grid to which it went, in steps past half a
    step, with what rounding explains left out; 0 where all went to the nearest."""
    flat = grid.step == 0
    step = np.where(flat, 1.0, grid.step)
    place = np.clip((weight - grid.offset) / step, grid.low, grid.high)
    integers = np.rint((restored - grid.offset) / step)
    off = np.maximum(np.abs(place - integers) - 0.5 - grid.slack, 0.0)
    # A block without a step holds one number, and what is left of the others is below any float16.
    lost = np.abs(weight - restored) > 128 * 2.0**-25 + spacing(grid.offset, np.float16)
    return float(np.where(flat, lost.astype(np.float64), off).max(initial=0.0))


def misfit(weight: Floats, grid: Grid) -> float:
    """The fraction of blocks whose step is not the one that spans their weights, to the rounding of a float16."""
    blocks, steps = weight.reshape(-1, grid.block), np.abs(grid.step).reshape(-1, grid.block)[:, 0]
    if grid.low == 0:
        wanted = (blocks.max(axis=1) - blocks.min(axis=1)) / grid.high
    else:
        # Types with a sign bit give the largest weight the end that reaches one further; Q8_0 does not.
        wanted = np.abs(blocks).max(axis=1) / (grid.high if grid.high == 127 else -grid.low)
    return float(np.mean(np.abs(wanted - steps) > spacing(steps, np.float16)))
