"""How a conversation is spelled: the chat template of a model, and whether it marks what the assistant says."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from mreg.registry.transform import Material

BUILTIN = """\
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
{%- else %}
{{- message['content'] }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
"""
"""A chat template for any tokenizer that has a token for the end: it needs no other special one."""

_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def template_of(source: Material) -> str | None:
    """The chat template of a model, where it says how turns of a conversation are spelled."""
    if "chat_template.jinja" in source.files:
        return source.read("chat_template.jinja").decode()
    for file in ("chat_template.json", "tokenizer_config.json"):
        if file in source.files and (found := json.loads(source.read(file)).get("chat_template")):
            # Several are a list of names and templates.
            return str(
                found if isinstance(found, str) else {each["name"]: each["template"] for each in found}["default"]
            )
    return None


def marks_the_assistant(template: str) -> bool:
    """Whether a template marks what the assistant says, or TRL has one that does and spells the same."""
    return _MARK.search(template) is not None or _has_twin(template)


def unmarked(template: str) -> str:
    """The template without the marks, which only training understands."""
    return _MARK.sub("", template)


def _has_twin(template: str) -> bool:
    trl = importlib.util.find_spec("trl")
    assert trl is not None, "a dependency"
    assert trl.submodule_search_locations, "a package"
    folder = Path(trl.submodule_search_locations[0]) / "chat_templates"
    return any(
        path.with_name(f"{path.stem}_training.jinja").exists() and path.read_text(encoding="utf-8") == template
        for path in folder.glob("*.jinja")
    )
