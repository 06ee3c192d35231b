"""Models on the Hugging Face Hub: `hf:org/name[@revision]` fetched to a folder, with what the Hub said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError

_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class HubFailed(MregError):
    """The Hub could not be reached, or does not have what was asked for."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Found:
    """A folder to import: what to call its source, and facts that the Hub gave."""

    folder: Path
    source: str
    origin: dict[str, Any] = field(default_factory=dict)


@contextmanager
def local_copy(source: str, scratch: Callable[[str], AbstractContextManager[Path]]) -> Iterator[Found]:
    """The folder of a source: itself when it is a path, a private download when it names a repository on the Hub."""
    if not source.startswith("hf:"):
        yield Found(Path(source), str(Path(source).absolute()))
        return
    match = _NAME.fullmatch(source)
    if match is None:
        raise HubFailed(f"{source!r} does not name a model on the Hub", fix="write hf:org/name or hf:org/name@revision")
    with scratch("hub-" + match["repo"].replace("/", "--")) as folder:
        yield _download(match["repo"], match["revision"], folder / "model")


def _download(repo: str, revision: str | None, folder: Path) -> Found:
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
        snapshot_download(repo, revision=info.sha, local_dir=folder)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubFailed(
            f"hf:{repo} could not be fetched ({first})", fix="check the name, your network and `hf auth whoami`"
        ) from error
    sha256 = {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs is not None}
    _check(folder, sha256)
    return Found(folder, f"hf:{repo}@{info.sha}", {"repo": repo, "commit": info.sha, "sha256": sha256})


def _check(folder: Path, sha256: dict[str, str]) -> None:
    """Whether every large file is the one that the Hub named."""
    import hashlib

    for name, expected in sha256.items():
        with open(folder / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise HubFailed(f"{name} did not arrive as the Hub has it", fix="run it again")
