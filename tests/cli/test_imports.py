"""Reading commands start quickly, because they import nothing that they do not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "compressed_tensors", "datasets", "huggingface_hub", "networkx", "numpy", "pandas", "peft", "pyarrow", "pydantic",
    "rich", "safetensors", "sqlalchemy", "sqlmodel", "torch", "transformers", "trl",
}  # fmt: skip

READING = [
    ["log"],
    ["log", "v3", "--graph"],
    ["show", "prod"],
    ["list"],
    ["lineage", "base"],
    ["ref", "list"],
    ["ref", "log", "prod"],
    ["events"],
    ["compare", "v1", "v2"],
    ["policy", "list"],
    ["sql", "SELECT 1"],
    ["--json", "log"],
    ["--version"],
    ["du"],
    ["du", "v1"],
    ["checkout", "--help"],
]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("arguments", READING, ids=" ".join)
def test_a_reading_command_imports_nothing_heavy(arguments: list[str]) -> None:
    told = (
        "import sys\nfrom mreg.cli.main import main\ncode = main(sys.argv[1:])\n"
        "print(code, *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )

    process = subprocess.run([sys.executable, "-c", told, *arguments], capture_output=True, text=True, check=True)

    code, *imported = process.stderr.split()
    assert ("0", set()) == (code, HEAVY & set(imported))
