"""The demo's model: refused where it would mix with other files. Converting it takes half a minute; the demo does."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.cli.demo_model import unpack
from mreg.registry.errors import MregError


def test_a_folder_with_files_in_it_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(MregError, match="is not empty"):
        unpack(tmp_path, lambda line: None)

    assert ["notes.txt"] == [path.name for path in tmp_path.iterdir()]
