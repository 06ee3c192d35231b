"""A version, as the projections know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mreg.registry.digests import Digest


@dataclass(frozen=True, slots=True)
class Version:
    """One model content. `base` is the version that an adapter fits, `run` what first made it (None: imported)."""

    number: int
    digest: Digest
    manifest: Digest
    weights: Digest
    files: int
    tensors: int
    parameters: int
    bytes: int
    adapter: bool
    architecture: str
    base: Digest | None
    marks: tuple[str, ...]
    origin: str
    transform: str | None
    run: str | None
    source: str | None
    message: str
    seq: int
    recorded_at: str

    @property
    def name(self) -> str:
        """`v3`."""
        return f"v{self.number}"

    def __str__(self) -> str:
        return self.name

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Version:
        """A row of the `version` table."""
        chosen = {field.name: row[field.name] for field in fields(cls)}
        return cls(**{**chosen, "marks": tuple(chosen["marks"] or ())})
