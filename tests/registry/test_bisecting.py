"""Bisect on stored versions: checkouts, answers that are kept, tests that are sometimes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.chains.bisection import Answer
from mreg.registry.versions import Version

from tests.registry.conftest import Import, make_model, seed_of


def chain(shop: Registry, base: str, length: int, folder: Path) -> list[Version]:
    """Versions recorded one after another."""
    versions = [shop.version(base)]
    for number in range(length):
        made = make_model(folder / f"step-{number}", seed=seed_of(f"{folder} {number}"))
        versions.append(shop.record_version(made, transform="tweak", source=versions[-1], params={"n": number}).version)
    return versions


def test_the_first_bad_version_is_found_on_checkouts(shop: Registry, bring: Import, tmp_path: Path):
    versions = chain(shop, bring(), 6, tmp_path)
    seen: list[tuple[str, bool]] = []

    def judge(version: Version, folder: Path) -> Answer:
        seen.append((version.name, (folder / "model.safetensors").exists()))
        return "bad" if version.number >= versions[4].number else "good"

    found = shop.bisect([versions[0]], versions[-1], judge)

    assert (versions[4],) == found.first_bad
    assert {True} == {is_there for _, is_there in seen}
    assert len(seen) == len({name for name, _ in seen}) <= 3
    assert [] == list((shop.root / "tmp").iterdir())


def test_a_search_that_was_stopped_goes_on_where_it_was(shop: Registry, bring: Import, tmp_path: Path):
    versions = chain(shop, bring(), 6, tmp_path)
    asked: list[Version] = []

    def judge(version: Version, _: Path) -> Answer:
        if len(asked) == 1:
            asked.append(version)
            raise KeyboardInterrupt
        asked.append(version)
        return "bad" if version.number >= versions[2].number else "good"

    with pytest.raises(KeyboardInterrupt):
        shop.bisect([versions[0]], versions[-1], judge, asked="same")
    found = shop.bisect([versions[0]], versions[-1], judge, asked="same")

    assert ((versions[2],), 1) == (found.first_bad, found.resumed)
    assert 1 == asked.count(asked[0]), "its answer was kept"
    assert 0 == shop.bisect([versions[0]], versions[-1], judge, asked="same").resumed, "the question was answered"


def test_a_flaky_test_is_repeated_on_one_checkout_until_it_can_be_believed(
    shop: Registry, bring: Import, tmp_path: Path
):
    versions = chain(shop, bring(), 2, tmp_path)
    folders: list[Path] = []

    def judge(_: Version, folder: Path) -> Answer:
        folders.append(folder)
        return "good" if len(folders) == 2 else "bad"

    found = shop.bisect([versions[0]], versions[-1], judge, error_rate=0.2, confidence=0.9)

    assert (versions[1],) == found.first_bad
    (tested,) = found.tested
    assert ("bad", 1) == (tested.answer, tested.good)
    assert tested.bad > 2
    assert (1, 0.9) == (len(set(folders)), found.confidence)
