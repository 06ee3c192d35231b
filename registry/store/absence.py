"""Why an object that somebody wants to read is not in the store, as far as the log knows, and how to have it again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log import queries
from mreg.registry.store.listed import listed
from mreg.registry.store.objects import MissingObject, ObjectStore

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry
    from mreg.registry.versions import Version


class Evicted(MissingObject):
    """The weights of this version were taken out of the store."""

    exit_code = 7


def explain(registry: Registry, digest: Digest) -> MregError | None:
    """The error for an object that is missing, with the version that it belongs to; None where nothing is known."""
    versions, evicted = registry.log.ask(_read)
    # Itself asks nobody why something is missing.
    store = ObjectStore(registry.store.root)
    holders = [version for version in versions if _holds(store, version, digest)]
    whole = [version for version in holders if version.digest not in evicted]
    if holders and not whole:
        return said(holders[0], evicted[holders[0].digest])
    for version in whole:
        if version.run is not None:
            return MissingObject(
                f"object {digest[:12]} of {version} is not in the store",
                fix=f"`mreg restore {version}` makes it again",
            )
    if whole:
        return MissingObject(
            f"object {digest[:12]} of {whole[0]} is not in the store", fix="import the model again, which brings it"
        )
    return None


def refuse_evicted(registry: Registry, version: Version) -> None:
    """Raises Evicted for a version whose weights were taken out of the store."""
    at = registry.log.ask(lambda reader: queries.evicted(reader).get(version.digest))
    if at is not None:
        raise said(version, at)


def said(version: Version, at: str) -> Evicted:
    """The error for what needs the weights of an evicted version."""
    return Evicted(
        f"{version} was evicted on {at[:10]}, its weights are not in the store",
        fix=f"`mreg restore {version}` makes them again",
    )


def _read(reader: Reader) -> tuple[list[Version], dict[Digest, str]]:
    return queries.versions(reader), queries.evicted(reader)


def _holds(store: ObjectStore, version: Version, digest: Digest) -> bool:
    try:
        return digest == version.manifest or digest in listed(store, version.manifest).all
    except MregError:
        return digest == version.manifest
