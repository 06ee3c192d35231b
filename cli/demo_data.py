"""The demo's dataset: what the functions of Python's standard library do, as the running Python itself says it.

Real text by people who took care of it, on every machine that has Python, in a deterministic order.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

MODULES = (
    "ast", "base64", "bisect", "calendar", "collections", "contextlib", "copy", "csv", "datetime", "difflib", "dis",
    "enum", "fnmatch", "functools", "glob", "gzip", "hashlib", "heapq", "html", "inspect", "io", "ipaddress",
    "itertools", "json", "keyword", "linecache", "locale", "logging", "math", "mimetypes", "operator", "os", "os.path",
    "pprint", "random", "re", "secrets", "shlex", "shutil", "signal", "socket", "statistics", "string", "struct",
    "subprocess", "sys", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "tokenize", "traceback",
    "types", "typing", "unicodedata", "urllib.parse", "uuid", "warnings", "weakref", "zipfile", "zlib",
)  # fmt: skip

SHORTEST, LONGEST = 20, 240


def question(function: str) -> str:
    """What is asked about a function."""
    return f"What does {function} do?"


def rows(modules: Sequence[str] = MODULES) -> Iterator[dict[str, Any]]:
    """One chat for each function: `prompt` asks what it does, `completion` is the first paragraph of its docstring."""
    for name in modules:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [each for each in vars(module) if not each.startswith("_")]
        for function in sorted(public):
            said = _first_paragraph(getattr(module, function, None), function)
            if said is not None:
                asked = question(f"{name}.{function}")
                yield {
                    "prompt": [{"role": "user", "content": asked}],
                    "completion": [{"role": "assistant", "content": said}],
                }


def _first_paragraph(thing: object, name: str) -> str | None:
    """The first paragraph of a function's docstring as one line; None when it is no sentence of a sensible length."""
    if not inspect.isroutine(thing):
        return None
    paragraph = (inspect.getdoc(thing) or "").partition("\n\n")[0]
    said = " ".join(paragraph.replace("`", "").split())
    is_signature = said.startswith(f"{name}(") or "->" in said
    is_sentence = said[:1].isupper() and said.endswith(".")
    return said if is_sentence and not is_signature and SHORTEST <= len(said) <= LONGEST else None
