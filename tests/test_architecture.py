"""Who may import what: the direction of imports, and what stays light or pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("registry", "transforms", "cli")
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

PURE = (
    "canonical",
    "digests",
    "errors",
    "plain",
    "revs",
    "versions",
    "chains.graph",
    "chains.recipe",
    "chains.reversion",
    "log.events",
    "log.folds",
    "log.recorded",
    "measures.guards",
    "measures.metrics",
    "measures.tradeoff",
    "models.manifest",
    "models.safetensors_header",
    "replay.verdict",
)
"""Modules of the registry that know no I/O: they import each other and these libraries, no more."""

PURE_LIBRARIES = {
    "__future__",
    "blake3",
    "collections",
    "dataclasses",
    "difflib",
    "functools",
    "itertools",
    "json",
    "math",
    "networkx",
    "pydantic",
    "re",
    "rfc8785",
    "typing",
    "unicodedata",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """The full name of everything that is imported anywhere in a module, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value)


def at_run_time(tree: ast.AST) -> ast.AST:
    """A module without what only a type checker sees."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if is_for_types else self.generic_visit(node)

    stripped: ast.AST = Strip().visit(tree)
    return stripped


def at_top_level(tree: ast.AST) -> Iterator[str]:
    """What is imported when the module is."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, _: ast.FunctionDef) -> None:
            return None

        def visit_Lambda(self, _: ast.Lambda) -> None:
            return None

    return imported(Strip().visit(at_run_time(tree)))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def test_imports_go_from_cli_to_transforms_to_registry_and_never_back():
    backwards = []
    for path in MODULES:
        above = LAYERS[LAYERS.index(path.relative_to(ROOT).parts[0]) + 1 :]
        refused = tuple(f"mreg.{layer}" for layer in above)
        backwards += [(path.name, name) for name in imported(parsed(path)) if refused and name.startswith(refused)]

    assert [] == backwards


def test_nothing_imports_torch_or_transformers_before_it_has_to():
    heavy = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
    early = [
        (path.name, name) for path in MODULES for name in at_top_level(parsed(path)) if name.split(".")[0] in heavy
    ]

    assert [] == early


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_know_no_input_and_no_output(name: str):
    def is_pure(dotted: str) -> bool:
        if dotted.startswith("mreg.registry"):
            within = dotted.removeprefix("mreg.registry.")
            return dotted == "mreg.registry" or any(f"{within}.".startswith(f"{pure}.") for pure in PURE)
        return dotted.split(".")[0] in PURE_LIBRARIES or dotted == "pathlib.PurePosixPath"

    tree = at_run_time(parsed(ROOT / "registry" / f"{name.replace('.', '/')}.py"))
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]

    assert [] == [dotted for dotted in imported(tree) if not is_pure(dotted)]
    assert "open" not in calls


def test_only_the_command_line_prints():
    calls = [
        (path.name, node.lineno)
        for path in MODULES
        if path.parent.name != "cli"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]

    assert [] == calls


CHILD_PROCESSES = {"_engine.py", "_environment.py", "_ranks.py", "_ray_worker.py", "_worker.py", "command.py"}
"""Where the environment is the subject: it is handed, sifted, to the processes that do the work, and recorded."""


def test_only_the_command_line_reads_the_environment():
    reading = []
    for path in MODULES:
        tree = parsed(path)
        # A transform runs in a process of its own, and may set something there for the libraries that it uses.
        set_here = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and path.parent.name == "transforms"
        }
        if path.parent.name == "cli" or path.name in CHILD_PROCESSES:
            continue
        reading += [
            (path.name, node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and node.attr in ("environ", "environb", "getenv")
            and id(node) not in set_here
        ]

    assert [] == reading


@pytest.mark.parametrize(
    "module", ["mreg.registry", "mreg.registry.registry", "mreg.registry.log.log", "mreg.registry.log.queries"]
)
def test_reading_needs_none_of_the_heavy_libraries(module: str):
    heavy = ["accelerate", "networkx", "numpy", "pydantic", "sqlalchemy", "sqlmodel", "torch", "transformers"]
    program = f"import sys, {module}; print(*sorted({{*{heavy!r}}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert [] == done.stdout.split()


def test_answering_a_question_needs_none_of_them_either(tmp_path: Path):
    from mreg.registry import Registry

    registry = Registry.init(tmp_path)
    heavy = ["filelock", "networkx", "numpy", "pandas", "pyarrow", "pydantic", "sqlalchemy", "sqlmodel", "torch"]
    program = f"""
import sys
from mreg.registry import Registry
registry = Registry.open({str(registry.root)!r})
registry.history(), registry.refs(), registry.events(), registry.listing(), registry.datasets
print(*sorted({{*{heavy!r}}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert [] == done.stdout.split()
