"""Recording a step that was done elsewhere: its inputs and output are known, its execution is somebody's word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.chains import recalls
from mreg.registry.chains.recalling import warn
from mreg.registry.errors import MregError
from mreg.registry.log import queries
from mreg.registry.log.events import InputUsed, VersionRecorded
from mreg.registry.models import datasets
from mreg.registry.models.folder import Mark, look
from mreg.registry.models.importing import take_in, twin_of
from mreg.registry.references import move_ref
from mreg.registry.revs import check_ref_name
from mreg.registry.runs.applying import Applied, reap
from mreg.registry.store.candidates import NOTHING, Done, of_step
from mreg.registry.store.holding import shared
from mreg.registry.versions import Version

if TYPE_CHECKING:
    from mreg.registry.registry import Registry

Other = str | Version | tuple[str, str | Version]
"""A further input: a rev or a version, or one with the role that it plays."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class BadTransformName(MregError):
    """What was done elsewhere needs a name of letters and digits."""

    exit_code = 2


def record_version(
    registry: Registry,
    output: Path,
    *,
    transform: str,
    source: str | Version,
    others: tuple[Other, ...],
    data: tuple[str | Path, ...],
    params: dict[str, Any],
    ref: str | None,
    exclude: tuple[str, ...],
    trust: frozenset[Mark],
    message: str,
    report: Callable[[int, int], None],
) -> Applied:
    """Store `output` and record it as made from `source` by `transform`, which need not be one that mreg has."""
    check_name(transform)
    if ref is not None:
        check_ref_name(ref)
    with registry.log.looking():
        reap(registry)
        inputs = resolved(registry, source, others)
        reached = registry.log.ask(recalls.reached)
        listing = look(output, exclude=exclude, trust=trust)
        twin = twin_of(registry, listing)
    used = tuple(datasets.find(registry, item) for item in data)
    warn(registry, [version for _, version in inputs], used, reached=reached)
    with shared(registry):
        # A version that a name will point at is made to be read, not to be small.
        guesses = NOTHING if ref else of_step(registry, Done(transform, params, {}, inputs), listing)
        with registry.store.batch() as batch:
            content = take_in(listing, batch, report, guesses, twin)
        recorded, version = registry.log.append_and_ask(
            VersionRecorded(
                content=content,
                transform=transform,
                inputs=tuple(InputUsed(role=role, digest=version.digest) for role, version in inputs),
                datasets=tuple(dataset.digest for dataset in used),
                params=params,
                base=(inputs[0][1].base or inputs[0][1].digest) if content.adapter else None,
                marks=listing.marks,
                message=message,
            ),
            lambda reader: queries.version(reader, content.digest),
        )
    if ref is not None:
        move_ref(registry, ref, version, reason="record", message=message)
    return Applied(
        version=version,
        is_new=version.seq == recorded.seq,
        parents=tuple(parent for _, parent in inputs),
        transform=transform,
        params=params,
        facts={},
        cached=False,
        unchanged=version.weights == inputs[0][1].weights and not version.adapter,
        disproves=None,
        event=recorded.seq,
        wall_s=None,
        bytes_added=batch.bytes_added,
    )


def check_name(transform: str) -> None:
    """Raises BadTransformName for what is no name."""
    if not _NAME.fullmatch(transform):
        raise BadTransformName(
            f"{transform!r} cannot be a transform's name", fix="use a-z, 0-9, . _ and -, such as my-sft"
        )


def resolved(registry: Registry, source: str | Version, others: tuple[Other, ...]) -> tuple[tuple[str, Version], ...]:
    """Each input with its role, the source first. Raises UnknownRev."""
    inputs = [("source", registry.version(source))]
    for other in others:
        role, rev = other if isinstance(other, tuple) else ("others", other)
        inputs.append((role, registry.version(rev)))
    return tuple(inputs)
