"""What GPTQ, AWQ, SmoothQuant, Wanda and SparseGPT ask of llmcompressor alike: to work where the job is to be done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mreg.registry.errors import MregError


class NotCalibrated(MregError):
    """A layer was not reached by the samples, or what was measured cannot be used."""

    exit_code = 6


@contextlib.contextmanager
def kept_on(device: str) -> Iterator[None]:
    """While it lasts, llmcompressor computes on this device; by itself it takes the first accelerator that it finds.

    On a CPU its AWQ pins no memory either: without an accelerator to pin it for, that raises.
    """
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache
    from llmcompressor.pipelines.data_free import pipeline as data_free
    from llmcompressor.pipelines.sequential import pipeline as sequential

    with contextlib.ExitStack() as stack:

        def put(holder: Any, name: str, value: Any) -> None:
            stack.callback(setattr, holder, name, getattr(holder, name))
            setattr(holder, name, value)

        for module in (data_free, sequential):
            put(module, "get_main_device", lambda: torch.device(device))
        if device == "cpu":
            put(IntermediatesCache, "pin_memory", lambda *args, **options: None)
        yield
