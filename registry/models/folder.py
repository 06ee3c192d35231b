"""A model on disk as it is found: which of its files are taken, and what is refused before a byte is stored.

Model folders come from strangers and from trainers. Files that run code when loaded are refused unless trusted by name
of the danger, links and odd names always say what they are, and nothing in here executes or unpickles anything.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mreg.registry.errors import MregError
from mreg.registry.files import disk_errors
from mreg.registry.plain import is_safe_path, shown

Mark = Literal["code", "pickle"]

LEFT_OUT = frozenset({".git", ".cache", ".mreg", "__pycache__"})
TRAINERS_LEAVE = ("checkpoint-*", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
"""What trainers leave beside a model: the state of the training, not the model."""

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
WEIGHTS = frozenset({".safetensors", ".gguf"})
_CONFIGS = frozenset(
    {"config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "adapter_config.json"}
)
_LARGEST_JSON = 64 << 20


class NoModel(MregError):
    """There is no model where the user pointed."""

    exit_code = 5


class UnsafeModel(MregError):
    """The model has a file that would run code, or one that is not what it seems."""

    exit_code = 5


class IncompleteModel(MregError):
    """The model names a file that is not there, or a file is not what its name says."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to import: `path` in the model, `location` on this disk, and its state when it was found."""

    path: str
    location: Path
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What an import takes (`files`, sorted by path), leaves out, and was trusted with (`marks`)."""

    source: Path
    files: tuple[FoundFile, ...]
    left_out: tuple[str, ...]
    marks: tuple[Mark, ...]

    @property
    def size(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)


def look(
    source: Path,
    *,
    exclude: Sequence[str] = (),
    trust: Collection[str] = (),
    follow_symlinks: bool = False,
) -> FolderListing:
    """List the model at `source`, a folder or a single `.safetensors` or `.gguf` file.

    `exclude` are globs that are held against relative paths and file names. Raises NoModel, UnsafeModel or
    IncompleteModel, with the way out.
    """
    left_out: list[str] = []
    with disk_errors(source):
        files = sorted(_found(source, exclude, follow_symlinks, left_out), key=lambda file: file.path)
        dangers = list(_dangers(files))
        for danger in dangers:
            if danger.mark not in trust:
                raise _refusal(danger)
        if not any(PurePosixPath(file.path).suffix in WEIGHTS for file in files):
            raise NoModel(
                f"{shown(str(source))} holds no model: no *.safetensors or *.gguf file",
                fix="point at the folder that holds the weights, or save them with save_pretrained()",
            )
        for file in files:
            _check_content(file, {other.path for other in files})
    return FolderListing(
        source, tuple(files), tuple(sorted(left_out)), tuple(sorted({danger.mark for danger in dangers}))
    )


@dataclass(frozen=True, slots=True)
class _Danger:
    mark: Mark
    path: str
    why: str


def _found(source: Path, exclude: Sequence[str], follow: bool, left_out: list[str]) -> Iterator[FoundFile]:
    try:
        status = source.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoModel(f"{shown(str(source))} does not exist", fix="check the path") from error
    if stat.S_ISREG(status.st_mode):
        _check_name(source.name)
        yield FoundFile(source.name, source, status.st_size, status.st_mtime_ns)
    elif stat.S_ISDIR(status.st_mode):
        yield from _walk(source, "", exclude, follow, left_out, ((status.st_dev, status.st_ino),))
    else:
        raise NoModel(f"{shown(str(source))} is neither a folder nor a file", fix="point at a model folder")


def _walk(
    folder: Path,
    prefix: str,
    exclude: Sequence[str],
    follow: bool,
    left_out: list[str],
    above: tuple[tuple[int, int], ...],
) -> Iterator[FoundFile]:
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        path = prefix + entry.name
        excluded = any(fnmatchcase(path, glob) or fnmatchcase(entry.name, glob) for glob in exclude)
        if excluded or (entry.name in LEFT_OUT and entry.is_dir(follow_symlinks=False)):
            left_out.append(path)
            continue
        _check_name(path)
        status = _status(entry, path, follow)
        if stat.S_ISREG(status.st_mode):
            yield FoundFile(path, Path(entry.path), status.st_size, status.st_mtime_ns)
        elif stat.S_ISDIR(status.st_mode):
            itself = (status.st_dev, status.st_ino)
            if itself in above:
                raise UnsafeModel(
                    f"{path} is a link to a folder that it lies in", fix=f"remove it, or --exclude {path}"
                )
            yield from _walk(Path(entry.path), f"{path}/", exclude, follow, left_out, (*above, itself))
        else:
            raise UnsafeModel(
                f"{path} is not a regular file but a pipe, a socket or a device",
                fix=f"remove it, or leave it out with --exclude {path}",
            )


def _status(entry: os.DirEntry[str], path: str, follow: bool) -> os.stat_result:
    if entry.is_symlink() and not follow:
        raise UnsafeModel(
            f"{path} is a symbolic link", fix="--follow-symlinks imports what it points to; --exclude leaves it out"
        )
    try:
        return entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise
        raise UnsafeModel(
            f"{path} is a link to nothing ({error.strerror})", fix=f"remove it, or --exclude {path}"
        ) from error


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UnsafeModel(f"the file name {path!a} is not UTF-8", fix="rename the file, or --exclude it") from error
    if not is_safe_path(path):
        raise UnsafeModel(
            f"the file name {path!a} has control, text direction or path characters",
            fix="rename the file, or --exclude it",
        )


def _refusal(danger: _Danger) -> UnsafeModel:
    if danger.mark == "code":
        return UnsafeModel(
            f"{danger.path} {danger.why}, which runs when the model is loaded",
            fix=f"read it, then --trust code, or leave it out with --exclude {danger.path}",
        )
    return UnsafeModel(
        f"{danger.path} {danger.why}, which can run code when it is loaded",
        fix=(
            f"leave it out with --exclude {danger.path}, or convert it with save_pretrained(safe_serialization=True), "
            "or accept it with --trust pickle"
        ),
    )


def _dangers(files: Sequence[FoundFile]) -> Iterator[_Danger]:
    for file in files:
        name = PurePosixPath(file.path)
        if name.suffix.lower() in PICKLES:
            yield _Danger("pickle", file.path, "is a pickle by its name")
        elif name.suffix not in WEIGHTS and _is_pickle(file):
            yield _Danger("pickle", file.path, "is a pickle by its content")
        if name.suffix.lower() == ".py":
            yield _Danger("code", file.path, "is Python code")
        elif name.name in _CONFIGS and isinstance(config := _json(file), dict) and config.get("auto_map"):
            yield _Danger("code", file.path, "names custom code (auto_map)")


def _is_pickle(file: FoundFile) -> bool:
    """Whether the content is a pickle, bare or in the zip that torch.save writes."""
    with open(file.location, "rb") as content:
        start = content.read(256)
        if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            content.seek(-1, os.SEEK_END)
            return content.read(1) == b"."
        if not start.startswith(b"PK\x03\x04") or b"data.pkl" in start:
            return start.startswith(b"PK\x03\x04")
        try:
            return any(name.endswith("data.pkl") for name in zipfile.ZipFile(content).namelist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
            return False


def _check_content(file: FoundFile, present: Collection[str]) -> None:
    """What can be seen of a file's soundness before it is read whole."""
    if file.path.endswith(".gguf"):
        with open(file.location, "rb") as content:
            if content.read(4) != b"GGUF":
                raise IncompleteModel(f"{file.path} is not a GGUF file", fix="get the file again")
    elif file.path.endswith(".safetensors.index.json"):
        index = _json(file)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise IncompleteModel(f"{file.path} has no weight_map", fix="get the file again, or save the model again")
        for shard in sorted(set(shards.values())):
            if str(PurePosixPath(file.path).parent / shard) not in present:
                raise IncompleteModel(
                    f"the shard {shown(shard)}, which {file.path} names, is not there",
                    fix="finish the download, or save the model again",
                )


def _json(file: FoundFile) -> Any:
    if file.size > _LARGEST_JSON:
        raise IncompleteModel(f"{file.path} is {file.size} bytes long, too long for its purpose", fix="get it again")
    try:
        return json.loads(file.location.read_bytes())
    except (ValueError, RecursionError) as error:
        raise IncompleteModel(f"{file.path} is not JSON ({error})", fix="get the file again") from error
