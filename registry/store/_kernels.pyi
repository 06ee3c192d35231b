"""The compiled loops; see kernels.py and ordering.py, which call them with arrays that fit together.

The first argument is the width of an element in bytes. Arrays are buffers. All raise ValueError for a misfit.
"""

from collections.abc import Callable

from typing_extensions import Buffer

REVISION: int

def difference(width: int, elements: Buffer, parents: Buffer, out: Buffer, /) -> int: ...
def add(width: int, differences: Buffer, parents: Buffer, out: Buffer, /) -> None: ...
def count(width: int, elements: Buffer, shift: int, mask: int, counts: Buffer, /) -> None: ...
def sort(
    width: int, of: Buffer, shift: int, mask: int, counts: Buffer, column_width: int, column: Buffer, out: Buffer, /
) -> None: ...
def unsort(
    width: int, of: Buffer, shift: int, mask: int, counts: Buffer, column_width: int, column: Buffer, out: Buffer, /
) -> None: ...
def set_bits(width: int, elements: Buffer, /) -> int: ...
def cut(width: int, elements: Buffer, rotate: bool, place: int, plane: Buffer, /) -> None: ...
def join(width: int, planes: tuple[Buffer, ...], rotate: bool, out: Buffer, /) -> None: ...
def same(a: Buffer, b: Buffer, /) -> bool: ...
def write_stretch(
    width: int,
    form: int,
    differences: Buffer,
    changed: int,
    compress: Callable[[memoryview], bytes],
    marks: Buffer,
    values: Buffer,
    plane: Buffer,
    /,
) -> list[bytes]: ...
def read_stretches(
    width: int,
    frame: Buffer,
    at: int,
    decompress: Callable[[memoryview, int], bytes],
    values: Buffer,
    out: Buffer,
    /,
) -> int: ...
