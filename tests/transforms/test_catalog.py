"""Finding transforms: our own, those of other packages, and those that do not load."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mreg.registry.transform import UnknownTransform
from mreg.transforms import _catalog

from tests.transforms.conftest import OUTSIDE, install


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of this process, to install packages into."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_our_own_are_the_files_without_an_underscore():
    names = _catalog.names()

    assert {"cast", "finetune", "fuse", "merge", "prune", "quantize"} <= set(names)
    assert sorted(names) == names
    assert [] == [name for name in names if name.startswith("_")]


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(UnknownTransform, match="no transform is called 'quantise': did you mean quantize"):
        _catalog.find("quantise")


def test_a_name_with_an_underscore_is_no_transform():
    with pytest.raises(UnknownTransform):
        _catalog.find("_server")


def test_an_installed_package_adds_its_own(site: Path):
    install(site, "jitter", (OUTSIDE / "jitter.py").read_text())

    assert "jitter" in _catalog.names()
    assert "Add a little noise to every weight: a transform as another package would bring it." == (
        _catalog.find("jitter").summary
    )
    assert {} == _catalog.broken()


@pytest.mark.parametrize(
    ("name", "source", "told"),
    [
        ("lost", "import nowhere_at_all", "does not load .ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("thing", "TRANSFORM = 3", "is a int, not a mreg"),
        ("loud", "raise SystemError('no')", "does not load .SystemError: no"),
    ],
)
def test_a_broken_package_is_told_only_when_asked_for(site: Path, name: str, source: str, told: str):
    install(site, name, source)

    assert name in _catalog.names()
    assert "cast" == _catalog.find("cast").name
    assert [name] == list(_catalog.broken())
    with pytest.raises(_catalog.BrokenTransform, match=told):
        _catalog.find(name)


def test_a_transform_must_be_called_what_its_module_is(site: Path):
    install(site, "shake", (OUTSIDE / "jitter.py").read_text(), entry="shiver = shake:TRANSFORM")

    with pytest.raises(_catalog.BrokenTransform, match="calls itself 'shake'"):
        _catalog.find("shiver")


def test_a_package_cannot_replace_one_of_ours(site: Path):
    install(site, "other_cast", (OUTSIDE / "jitter.py").read_text(), entry="cast = other_cast:TRANSFORM")

    assert "mreg.transforms.cast" == _catalog.find("cast").run.__module__
    assert ["cast (the package other_cast)"] == list(_catalog.broken())


def test_the_code_digest_changes_with_the_source(site: Path):
    source = install(site, "wobble", (OUTSIDE / "jitter.py").read_text().replace("jitter", "wobble"))
    before = _catalog.code("wobble")

    source.write_text(source.read_text() + "# changed\n")

    assert before != _catalog.code("wobble")
    assert 64 == len(before)


def test_ours_have_a_code_digest_each():
    digests = {_catalog.code(name) for name in _catalog.names()}

    assert len(_catalog.names()) == len(digests)


def test_finding_a_transform_imports_neither_torch_nor_transformers():
    script = textwrap.dedent("""
        import sys
        from mreg.transforms._engine import LocalEngine
        from mreg.transforms import _catalog
        for name in _catalog.names():
            _catalog.find(name), _catalog.code(name)
        print(sorted({"torch", "transformers", "peft", "trl", "numpy", "safetensors"} & set(sys.modules)))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()
