"""The Python page does what it says: its blocks run, one after the other, in a process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import tiny

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_blocks_of_the_python_page_run(tmp_path: Path):
    tiny.make_model(tmp_path / "tiny-model", layers=1)
    tiny.write_rows(tmp_path / "rows.jsonl", tiny.text_rows(1)[:4])
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join(blocks))

    process = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert 0 == process.returncode, process.stderr
    said = [line for line in process.stdout.splitlines() if line.startswith("v")]
    assert ["v2 True", "v3 0.25", "v4 3 3"] == said
