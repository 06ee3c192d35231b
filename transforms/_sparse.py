"""Which weights of a matrix become zero: the smallest of all, of each row, of each group in a row, of a whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.errors import Refused
from mreg.registry.transform import Progress, Report

if TYPE_CHECKING:
    import torch

DIGIT = 16
"""Bits of a magnitude that one pass over a model settles."""

CHUNK = 1 << 22
"""Weights that are looked at together, so that memory does not grow with a matrix."""


@dataclass(frozen=True)
class Pattern:
    """N:M sparsity: of every `group` neighbours in a row, which share an output, `keep` stay (Mishra et al. 2021)."""

    keep: int
    group: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern spelled as in `2:4`. Raises ValueError."""
        keep, colon, group = text.partition(":")
        if not colon or not keep.isdecimal() or not group.isdecimal() or not 0 < int(keep) < int(group):
            raise ValueError(f"{text!r} is no pattern: 2:4 keeps 2 of every 4 weights in a row")
        return cls(int(keep), int(group))

    @property
    def sparsity(self) -> float:
        """The fraction that becomes zero."""
        return 1 - self.keep / self.group


def divides(pattern: Pattern, name: str, columns: int) -> None:
    """Refuse a pattern of which no whole number of groups makes a row of the matrix NAME."""
    if columns % pattern.group:
        raise Refused(
            f"groups of {pattern.group} do not divide the {columns} columns of {name}",
            fix="use a pattern whose second number does, or ignore that layer",
        )


def without_smallest(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """A copy in which the `count` elements of smallest magnitude are zero; of equal ones, those that come first."""
    import torch

    if count == 0:
        return tensor
    sizes = tensor.abs().reshape(-1)
    threshold = torch.kthvalue(sizes, count).values
    smaller = sizes < threshold
    equal = (sizes == threshold).nonzero().reshape(-1)[: count - int(smaller.sum())]
    smaller[equal] = True
    return tensor.masked_fill(smaller.reshape(tensor.shape), 0)


def without_smallest_of_rows(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """A copy of (…, columns) in which the `count` smallest of every row are zero; of equal ones, the first."""
    order = matrix.abs().sort(dim=-1, stable=True).indices
    return matrix.scatter(-1, order[..., :count], 0)


def without_pattern(matrix: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """A copy of (rows, columns) in the pattern, the largest of every group kept. The group must divide the columns."""
    rows, columns = matrix.shape
    groups = matrix.reshape(rows, columns // pattern.group, pattern.group)
    return without_smallest_of_rows(groups, pattern.group - pattern.keep).reshape(rows, columns)


@dataclass(frozen=True)
class Cutoff:
    """The magnitude below which all weights of a model go, and of those that are equal to it how many go where.

    `bits` is that magnitude as a number of `width` bits: for positive floats, the order of the bits is theirs.
    """

    bits: int
    width: int
    equal: Mapping[str, int]

    def without(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a matrix without what goes of it; of equal weights, those that come first."""
        order = _magnitudes(tensor, self.width).reshape(-1)
        gone = order < self.bits
        gone[(order == self.bits).nonzero().reshape(-1)[: self.equal[name]]] = True
        return tensor.masked_fill(gone.reshape(tensor.shape), 0)


def find_cutoff(names: Sequence[str], read: Callable[[str], torch.Tensor], count: int, report: Report) -> Cutoff:
    """The cutoff below which exactly `count` weights of all matrices together lie; of equal ones, the first by name.

    Settled by a histogram of the upper bits and one of the lower where there are any, so that no more than a matrix is
    held. Law: the same for the same tensors, whatever files they are in.
    """
    import torch

    names = sorted(names)
    width = _width({read(name).dtype for name in names})
    total = len(names) * (width // DIGIT + 1)
    done, bits, left = 0, 0, max(1, count)
    for shift in range(width - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for name in names:
            for part in _chunks(read(name), width):
                alike = part if shift + DIGIT == width else part[part >> (shift + DIGIT) == bits]
                histogram += torch.bincount((alike >> shift) & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
            report(Progress(done := done + 1, total, "ranking all weights"))
        digit = int(torch.searchsorted(histogram.cumsum(0), left))
        left -= int(histogram[:digit].sum())
        bits = bits << DIGIT | digit
    equal = {}
    for name in names:
        here = sum(int((part == bits).sum()) for part in _chunks(read(name), width))
        equal[name] = min(here, left) if count else 0
        left -= equal[name]
        report(Progress(done := done + 1, total, "ranking all weights"))
    return Cutoff(bits if count else 0, width, equal)


def _width(dtypes: Iterable[torch.dtype]) -> int:
    # Two kinds of 16 bits are ordered only in the 32 that hold both.
    kinds = set(dtypes)
    widest = max(dtype.itemsize for dtype in kinds) * 8
    return 32 if widest == 16 and len(kinds) > 1 else max(widest, 16)


def _chunks(tensor: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    import torch

    return (_magnitudes(part, width) for part in torch.split(tensor.reshape(-1), CHUNK))


def _magnitudes(tensor: torch.Tensor, width: int) -> torch.Tensor:
    import torch

    wide = {32: torch.float32, 64: torch.float64}.get(width, tensor.dtype)
    whole = {16: torch.int16, 32: torch.int32, 64: torch.int64}[width]
    return tensor.to(wide).abs().view(whole).to(torch.int64)
