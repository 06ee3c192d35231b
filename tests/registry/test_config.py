"""Where a registry is: made in one step, found upwards, and not taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.config import AlreadyThere, NoRegistry
from mreg.registry.files import StorageFailed


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_registry_is_made_with_its_folder_and_its_first_event(tmp_path: Path):
    registry = Registry.init(tmp_path / "new" / "folder", actor="ann", message="first light")

    assert tmp_path / "new" / "folder" / ".mreg" == registry.root
    (created,) = registry.events()
    assert ("registry-created/1", "ann", "first light") == (
        created["kind"],
        created["actor"],
        created["payload"]["message"],
    )
    assert [".mreg"] == names(tmp_path / "new" / "folder")


def test_a_registry_is_not_made_twice(tmp_path: Path):
    Registry.init(tmp_path)
    before = (tmp_path / ".mreg" / "config.toml").read_text()

    with pytest.raises(AlreadyThere, match="there is a registry in"):
        Registry.init(tmp_path)
    assert before == (tmp_path / ".mreg" / "config.toml").read_text()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_registry_that_could_not_be_made_leaves_nothing(tmp_path: Path, failure: BaseException):
    def clock() -> str:
        raise failure

    with pytest.raises((KeyboardInterrupt, StorageFailed)):
        Registry.init(tmp_path, clock=clock)
    assert [] == names(tmp_path)


def test_of_two_that_make_one_at_once_one_is_told(tmp_path: Path):
    def clock() -> str:
        Registry.init(tmp_path)
        return "2026-01-01T00:00:00.000Z"

    with pytest.raises(AlreadyThere):
        Registry.init(tmp_path, clock=clock)
    assert [".mreg"] == names(tmp_path)
    assert 1 == len(Registry.open(tmp_path).events())


def test_a_registry_is_found_from_any_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Registry.init(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")

    assert [made.root] * 3 == [Registry.open(place).root for place in (None, tmp_path, made.root)]


def test_a_registry_can_be_moved(tmp_path: Path):
    registry = Registry.init(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")

    assert 1 == len(Registry.open(tmp_path / "there").events())
    assert registry.root.name == ".mreg"


@pytest.mark.parametrize("place", ["nowhere", "postgresql://host/registry", None])
def test_no_registry_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str | None):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(NoRegistry) as error:
        Registry.open(place)
    assert error.value.fix


@pytest.mark.parametrize(
    "text", ["", "id = ", 'id = "a"\nformat = 2\nbackend = "duckdb"', 'id = "a"\nformat = 1\nbackend = "mysql"', "\xff"]
)
def test_a_registry_of_another_kind_is_not_touched(tmp_path: Path, text: str):
    registry = Registry.init(tmp_path)
    (registry.root / "config.toml").write_bytes(text.encode("latin-1"))

    with pytest.raises(NoRegistry):
        Registry.open(tmp_path)
