"""Importing: content from outside becomes a version."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError, Refused
from mreg.registry.log import queries
from mreg.registry.models import hub
from mreg.registry.models.folder import FolderListing, Mark, look
from mreg.registry.models.intake import Twin, store_folder
from mreg.registry.models.manifest import Manifest
from mreg.registry.references import move_ref
from mreg.registry.revs import check_ref_name
from mreg.registry.store.candidates import NOTHING, Guesses
from mreg.registry.store.holding import shared
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.log.events import Content, VersionImported
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry
    from mreg.registry.store.batch import Batch


class NoBase(MregError):
    """An adapter came in without saying which version it fits."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to. `event` is None when the log already said all of it."""

    version: Version
    is_new: bool
    bytes_added: int
    event: int | None
    left_out: tuple[str, ...]


def import_model(
    registry: Registry,
    source: Path | str,
    *,
    ref: str | None,
    base: str | Version | None,
    exclude: tuple[str, ...],
    trust: frozenset[Mark],
    follow_symlinks: bool,
    message: str,
    report: Callable[[int, int], None],
) -> Imported:
    """Read a model, store what is not there yet, and record that it came in."""
    if ref is not None:
        check_ref_name(ref)
    fits = None if base is None else registry.version(base)
    if fits is not None and fits.adapter:
        raise Refused(f"{fits} is an adapter itself", fix="--base names the model that the adapter was trained on")
    with ExitStack() as held:
        with hub.local_copy(str(source), registry.scratch) as found:
            listing = look(found.folder, exclude=exclude, trust=trust, follow_symlinks=follow_symlinks)
            held.enter_context(shared(registry))
            with registry.store.batch() as batch:
                manifest = store_folder(listing, batch, report)
                if manifest.is_adapter and fits is None:
                    raise NoBase(f"{source} is an adapter", fix="say which version it fits with --base REV")
                if not manifest.is_adapter and fits is not None:
                    raise Refused(f"{source} is no adapter", fix="leave --base out")
            config = config_of(listing)
        present: Version | None = None

        def is_known(reader: Reader) -> bool:
            nonlocal present
            row = reader.one("SELECT * FROM version WHERE digest = ?", [manifest.version_digest])
            present = None if row is None else Version.from_row(row)
            if present is None:
                return False
            if present.base != (fits.digest if fits else None):
                raise Refused(f"{present} is this very adapter, and fits another base", fix=f"`mreg show {present}`")
            return present.origin == "import" and present.source == found.source and not message

        def decision(reader: Reader) -> VersionImported | None:
            # Imported here because bringing in what is known already needs none of it.
            from mreg.registry.log.events import VersionImported

            if is_known(reader):
                return None
            return VersionImported(
                content=content_of(manifest, config),
                source=found.source,
                base=fits.digest if fits else None,
                marks=listing.marks,
                left_out=listing.left_out,
                origin=found.origin,
                message=message,
            )

        # Nothing to record is told sooner than something is recorded.
        recorded = None if registry.log.ask(is_known) else registry.log.decide(decision)
    is_new = present is None
    version = present or registry.log.ask(lambda reader: queries.version(reader, manifest.version_digest))
    if ref is not None:
        move_ref(registry, ref, version, reason="import", message=message)
    return Imported(version, is_new, batch.bytes_added, recorded.seq if recorded else None, listing.left_out)


def take_in(
    listing: FolderListing,
    batch: Batch | None,
    report: Callable[[int, int], None],
    guesses: Guesses = NOTHING,
    twin: Twin | None = None,
) -> Content:
    """Store a listed model, or without a batch only hash it; return its content. See `store_folder`."""
    return content_of(store_folder(listing, batch, report, guesses, twin), config_of(listing))


def twin_of(registry: Registry, listing: FolderListing) -> Twin:
    """What finds a version with given weights among those that take as many bytes as a listed model."""
    known = registry.log.ask(lambda reader: queries.manifests_of_size(reader, listing.size))

    def twin(weights: Digest) -> Manifest | None:
        return Manifest.from_bytes(registry.store.read_bytes(known[weights])) if weights in known else None

    return twin


def content_of(manifest: Manifest, config: dict[str, Any]) -> Content:
    """A manifest summed up."""
    from mreg.registry.log.events import Content

    tensors = list(manifest.tensors())
    return Content(
        digest=manifest.version_digest,
        manifest=manifest.object_digest,
        weights=manifest.weights_digest,
        files=len(manifest.files),
        tensors=len(tensors),
        parameters=sum(_count(tensor.shape) for tensor in tensors),
        bytes=manifest.size,
        adapter=manifest.is_adapter,
        architecture=_architecture(config, manifest),
    )


def config_of(listing: FolderListing) -> dict[str, Any]:
    """The parsed config.json, or adapter_config.json, of a listed model; empty when there is none."""
    for name in ("adapter_config.json", "config.json"):
        for file in listing.files:
            if file.path == name:
                parsed = json.loads(file.location.read_text(encoding="utf-8"))
                return parsed if isinstance(parsed, dict) else {}
    return {}


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for extent in shape:
        product *= extent
    return product


def _architecture(config: dict[str, Any], manifest: Manifest) -> str:
    """What a person would call it: `LlamaForCausalLM`, `LORA adapter`, `GGUF`."""
    if manifest.is_adapter:
        return f"{config.get('peft_type', 'unknown')} adapter"
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return architectures[0]
    if any(file.path.endswith(".gguf") for file in manifest.files):
        return "GGUF"
    return "unknown"
