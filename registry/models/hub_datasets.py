"""Datasets on the Hugging Face Hub: the rows that `hf:org/name[@revision][:split]` means, by the datasets library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mreg.registry.errors import MregError
from mreg.registry.models.hub import HubFailed

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.\[\]%-]+))?")


class ChooseSplit(MregError):
    """A dataset has several splits and none was named."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fetched:
    """One split of a dataset; `source` names it by commit."""

    source: str
    rows: Iterator[dict[str, Any]]


def fetch(named: str, cache: Path) -> Fetched:
    """Download a split into `cache`, by the commit that its revision is now. Raises HubFailed and ChooseSplit.

    Nothing is left anywhere else, and the rows are read from there, so it can go when they have been.
    """
    match = _NAME.fullmatch(named)
    if match is None:
        raise HubFailed(f"{named!r} names no dataset on the Hub", fix="write hf:org/name, hf:org/name@revision:split")
    import datasets
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    repo = match["repo"]
    try:
        commit = HfApi().dataset_info(repo, revision=match["revision"]).sha
        datasets.disable_progress_bars()
        with _downloads_in(cache / "files"):
            loaded = datasets.load_dataset(repo, revision=commit, split=match["split"], cache_dir=str(cache))
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise HubFailed(
            f"the dataset {PREFIX}{repo} could not be fetched ({first})",
            fix="check the name, the split, your network and `hf auth whoami`",
        ) from error
    split = match["split"]
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            names = ", ".join(loaded)
            raise ChooseSplit(
                f"{PREFIX}{repo} has the splits {names}", fix=f"choose one: {PREFIX}{repo}:{next(iter(loaded))}"
            )
        ((split, loaded),) = loaded.items()
    return Fetched(f"{PREFIX}{repo}@{commit}:{split}", iter(loaded))


@contextmanager
def _downloads_in(folder: Path) -> Iterator[None]:
    """What is fetched meanwhile goes into this folder: the datasets library has no option for where, and would keep
    every file in the user's own cache."""
    from huggingface_hub import constants

    theirs = constants.HF_HUB_CACHE
    constants.HF_HUB_CACHE = str(folder)
    try:
        yield
    finally:
        constants.HF_HUB_CACHE = theirs
