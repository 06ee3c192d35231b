"""The registry: the log, identity, objects, projections, lineage, replay and diff."""

from mreg.registry.registry import Registry

__all__ = ["Registry"]
