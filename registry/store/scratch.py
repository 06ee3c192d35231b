"""Memory that the codecs use again and again, each thread its own: to have it anew takes longer than the work.

What lies in there is the thread's to use until it asks for the same name again.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.held: dict[str, npt.NDArray[np.uint8]] = {}


_scratch = _Scratch()


def scratch(name: str, count: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    """An array of `count` elements with anything in it."""
    size = count * np.dtype(dtype).itemsize
    held = _scratch.held.get(name)
    if held is None or len(held) < size:
        held = _scratch.held[name] = np.empty(size, np.uint8)
    return held[:size].view(dtype)
