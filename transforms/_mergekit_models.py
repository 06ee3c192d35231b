"""The models that a configuration of mergekit names, and the same configuration with other names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mreg.registry.transform import BadParams

Config = Mapping[str, Any]


def names_of(config: Config) -> list[str]:
    """Every model that is named, those that are merged first."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    renamed(config, note)
    return found


def renamed(config: Config, rename: Callable[[str], Any]) -> dict[str, Any]:
    """The configuration with each of its models called otherwise. Raises BadParams where there is no name."""

    def named(given: Any) -> Any:
        if not isinstance(given, str) or not given:
            raise BadParams(f"the configuration calls a model {given!r}", fix="write a version or a ref, in quotes")
        return rename(given)

    def part(given: Any, key: str) -> Any:
        if not isinstance(given, dict):
            raise BadParams(f"{key} of the configuration cannot be read", fix="see the documentation of mergekit")
        changed = dict(given)
        if key != "configuration":
            for model in ("model", "base_model"):
                if changed.get(model) is not None:
                    changed[model] = named(changed[model])
        for inner in ("models", "slices", "sources"):
            if changed.get(inner) is not None:
                if not isinstance(changed[inner], list):
                    raise BadParams(f"{inner} is no list", fix="begin each of its entries with a dash")
                changed[inner] = [part(one, inner) for one in changed[inner]]
        if key in ("models", "sources") and "model" not in changed:
            raise BadParams(f"one of the {key} names no model", fix="write model: and a version")
        if key == "slices" and not changed.get("sources"):
            raise BadParams("a slice has no sources", fix="write sources: and the models it takes layers of")
        return changed

    after: dict[str, Any] = part(config, "configuration")
    if after.get("modules") is not None:
        after["modules"] = {name: part(one, "modules") for name, one in part(after["modules"], "configuration").items()}
    if after.get("base_model") is not None:
        after["base_model"] = named(after["base_model"])
    if after.get("tokenizer_source") not in (None, "union", "base"):
        after["tokenizer_source"] = named(after["tokenizer_source"])
    if isinstance(tokenizer := after.get("tokenizer"), dict):
        after["tokenizer"] = _tokenizer(tokenizer, named)
    return after


def _tokenizer(given: Config, named: Callable[[Any], Any]) -> dict[str, Any]:
    after = dict(given)
    if after.get("source") not in (None, "union", "base"):
        after["source"] = named(after["source"])
    tokens = {}
    for token, told in (after.get("tokens") or {}).items():
        source = told.get("source") if isinstance(told, dict) else None
        if isinstance(source, str):
            told = {**told, "source": named(source)}
        elif isinstance(source, dict) and "model" in source:
            told = {**told, "source": {**source, "model": named(source["model"])}}
        tokens[token] = told
    return {**after, **({"tokens": tokens} if tokens else {})}
