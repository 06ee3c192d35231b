"""A reward function given as Python source: read and judged before it is run, because a training may take days.

Its source is a parameter of the step, so it is hashed with the step and kept in the log.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mreg.registry.errors import MregError

SHAPE = "write `def reward(prompts, completions, **columns): ...` that returns one number for each completion"
FILE = "<reward function>"

# What TRL passes besides the prompts and the columns of the rows.
PASSED = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})

# Columns that mean something else to TRL.
RESERVED = PASSED | {"prompt", "completion", "environments", "environment", "image", "images"}


class BadReward(MregError):
    """The reward function cannot be used."""

    exit_code = 2


@dataclass(frozen=True)
class Signature:
    """The one public function of a source: its name, and the columns that it asks for by name."""

    name: str
    columns: tuple[str, ...]


def signature(source: str) -> Signature:
    """What a source defines, without running it. Raises BadReward."""
    try:
        tree = ast.parse(source, FILE)
    except SyntaxError as error:
        raise BadReward(f"the reward function is no Python: {error.msg} in line {error.lineno}", fix=SHAPE) from error
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    public = [node for node in functions if not node.name.startswith("_")]
    if len(public) != 1:
        named = ", ".join(node.name for node in public) or "none"
        raise BadReward(
            f"the reward function must be the one public function of its file, which has: {named}",
            fix="begin the names of the others with _" if public else SHAPE,
        )
    (function,) = public
    if isinstance(function, ast.AsyncFunctionDef):
        raise BadReward(f"{function.name} is an async function", fix=SHAPE)
    arguments = function.args
    if arguments.posonlyargs or arguments.kwarg is None:
        raise BadReward(f"{function.name} does not take everything that it is called with by name", fix=SHAPE)
    asked = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
    return Signature(function.name, tuple(name for name in asked if name not in PASSED))


def columns_for(columns: Iterable[str]) -> tuple[str, ...]:
    """The columns of the rows that a reward function is given."""
    return tuple(column for column in columns if column not in RESERVED)


def load(source: str) -> Callable[..., list[float]]:
    """The function itself. Runs the source, so only ever call this in the child process."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)  # For tracebacks.
    namespace: dict[str, Any] = {"__name__": "reward_function"}
    exec(compile(source, FILE, "exec"), namespace)  # noqa: S102  It is the user's own, as any training script is.
    function: Callable[..., list[float]] = namespace[signature(source).name]
    return function
