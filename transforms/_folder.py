"""A model folder as a stream of tensors: read and written one tensor at a time, shard by shard.

What a transform does not mean to change stays byte for byte: the other files, the shard layout, the order and the names
of the tensors. The files it writes are the same on every machine.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from mreg.registry.chains.reversion import INDEX, STALE
from mreg.registry.errors import Refused
from mreg.registry.transform import Progress, Report

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"

WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Slot:
    """One tensor of a file: its name, its safetensors dtype (`BF16`) and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.elements * WIDTHS[self.dtype]


class ModelFolder:
    """The weights of a folder, open for reading. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards: dict[str, list[Slot]] = {}
        self._where: dict[str, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> ModelFolder:
        from safetensors import safe_open

        for file in sorted(self.path.glob("*.safetensors")):
            opened = self._open.enter_context(safe_open(file, framework="pt"))
            slots = []
            for name in opened.offset_keys():
                if name in self._where:
                    raise Refused(f"{name} is in two weight files of the model", fix="keep one set of weights in it")
                view = opened.get_slice(name)
                slots.append(Slot(name, view.get_dtype(), tuple(view.get_shape())))
                self._where[name] = opened
            self.shards[file.name] = slots
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where.clear()
        self._open.close()

    @property
    def slots(self) -> dict[str, Slot]:
        """Every tensor by name, in the order of the files."""
        return {slot.name: slot for slots in self.shards.values() for slot in slots}

    @property
    def config(self) -> dict[str, Any]:
        """The parsed config.json."""
        parsed: dict[str, Any] = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
        return parsed

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read now. It may be a view of the file: never write into it."""
        found: torch.Tensor = self._where[name].get_tensor(name)
        return found


Plan = Callable[[Slot], Iterable[Slot]]
"""Which tensors come out for one that goes in; known before any is read, because a file begins with its header."""

Make = Callable[[Slot], Iterable["torch.Tensor"]]
"""Those tensors, in the same order."""


def rewrite(source: ModelFolder, output: Path, plan: Plan, make: Make, report: Report) -> None:
    """Write the weights of `source` into `output`, with the same shards, each tensor made when its turn comes.

    A shard of which nothing is left is not written.
    """
    files: dict[str, list[Slot]] = {}
    done, total = 0, len(source.slots)
    for file, slots in source.shards.items():
        planned = {slot: list(plan(slot)) for slot in slots}
        # Wide dtypes first keeps every tensor aligned; the sort is stable, so tensors of one dtype keep their order.
        files[file] = sorted((made for each in planned.values() for made in each), key=lambda made: -WIDTHS[made.dtype])
        if not files[file]:
            continue
        with open(output / file, "wb") as out:
            offsets = _write_header(out, files[file])
            for slot, outs in planned.items():
                for made, tensor in zip(outs, make(slot), strict=True):
                    _write_tensor(out, offsets[made.name], made, tensor)
                report(Progress(done := done + 1, total, slot.name))
    if (index := source.path / INDEX).exists():
        before = json.loads(index.read_text(encoding="utf-8"))
        after = {made.name: file for file, slots in files.items() for made in slots}
        size = sum(made.size for slots in files.values() for made in slots)
        metadata = {**before.get("metadata", {}), "total_size": size}
        write_json(output / INDEX, {**before, "metadata": metadata, "weight_map": dict(sorted(after.items()))}, index)


def write_trained(
    source: ModelFolder, trained: ModelFolder, output: Path, report: Report, *, keep_rest: bool = True
) -> list[str]:
    """Write `source` with the tensors of `trained`, rounded to the dtypes of `source`; return the names that changed.

    What training did not change keeps its bytes, and tensors that only `trained` has join the last shard. Those that it
    lacks are kept, unless it is another kind of model that has no use for them.
    """
    import torch

    changed: list[str] = []
    last = list(source.slots)[-1]
    added = [
        Slot(name, source.slots[last].dtype, slot.shape)
        for name, slot in trained.slots.items()
        if name not in source.slots
    ]

    def stays(slot: Slot) -> bool:
        return keep_rest or slot.name in trained.slots

    def plan(slot: Slot) -> list[Slot]:
        return [*([slot] if stays(slot) else []), *(added if slot.name == last else [])]

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        before = source.tensor(slot.name)
        if stays(slot):
            after = trained.tensor(slot.name).to(before.dtype) if slot.name in trained.slots else before
            changed.extend([] if torch.equal(after, before) else [slot.name])
            yield after
        if slot.name == last:
            changed.extend(each.name for each in added)
            yield from (trained.tensor(each.name).to(before.dtype) for each in added)

    rewrite(source, output, plan, make, report)
    return changed


def _write_header(out: BinaryIO, slots: Iterable[Slot]) -> dict[str, int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for slot in slots:
        header[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [end, end + slot.size]}
        end += slot.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    out.truncate(out.tell() + end)
    start = out.tell()
    return {slot.name: start + header[slot.name]["data_offsets"][0] for slot in slots}


def _write_tensor(out: BinaryIO, offset: int, slot: Slot, tensor: torch.Tensor) -> None:
    import torch

    raw: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    assert (slot.shape, slot.size) == (tuple(tensor.shape), raw.nbytes), slot.name
    out.seek(offset)
    out.write(memoryview(raw))


def copy_rest(source: Path, output: Path) -> list[str]:
    """Copy every file that holds no weights, byte for byte. Returns the stale forms of the weights left out."""
    left_out = []
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if not path.is_file() or (path.suffix == ".safetensors" and path.parent == source) or path.name == INDEX:
            continue
        if path.suffix in STALE:
            left_out.append(relative.as_posix())
            continue
        target = output / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return left_out


def write_json(path: Path, value: Mapping[str, Any], like: Path) -> None:
    """Write `value` in the layout of the JSON file `like`: its indent, its escapes, its last newline."""
    text = like.read_text(encoding="utf-8")
    indent = re.match(r"\s*\{\n( +)", text)
    written = json.dumps(value, indent=len(indent[1]) if indent else None, ensure_ascii=text.isascii())
    path.write_text(written + "\n" * text.endswith("\n"), encoding="utf-8")


def change_config(source: Path, output: Path, **changes: Any) -> None:
    """Write the config.json of `source` with these keys set, in the order of names if it was in that order."""
    before = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    after = {**before, **changes}
    if list(before) == sorted(before):
        after = dict(sorted(after.items()))
    if after == before:
        shutil.copyfile(source / CONFIG, output / CONFIG)
        return
    write_json(output / CONFIG, after, source / CONFIG)
