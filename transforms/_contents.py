"""What lies in a model folder, as digests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mreg.registry import digests
from mreg.registry.chains import reversion
from mreg.registry.chains.reversion import Content, Held
from mreg.registry.digests import Digest

if TYPE_CHECKING:
    from mreg.transforms._folder import ModelFolder, Slot


def content_of(folder: ModelFolder) -> Content:
    """Its tensors, and the files beside them."""
    files = {}
    for path in sorted(folder.path.rglob("*")):
        relative = path.relative_to(folder.path).as_posix()
        if path.is_file() and relative not in folder.shards and reversion.is_beside(relative):
            hasher = digests.file_hasher()
            hasher.update_mmap(path)
            files[relative] = Digest(hasher.hexdigest())
    return Content(tensors_of(folder), files)


def tensors_of(folder: ModelFolder) -> dict[str, Held]:
    """For every tensor: dtype, shape and digest."""
    return {name: (slot.dtype, slot.shape, _digest(folder, slot)) for name, slot in folder.slots.items()}


def _digest(folder: ModelFolder, slot: Slot) -> Digest:
    import torch

    hasher = digests.tensor_hasher(slot.dtype, slot.shape)
    raw: Any = folder.tensor(slot.name).contiguous().reshape(-1).view(torch.uint8).numpy()
    hasher.update(memoryview(raw))
    return Digest(hasher.hexdigest())
