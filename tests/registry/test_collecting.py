"""gc: what nothing needs goes, after a while, and nothing else ever."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.digests import Digest
from mreg.registry.store.collecting import DAY
from mreg.registry.store.objects import DamagedObject
from mreg.registry.store.quarantine import Quarantine

from tests.registry.storing import model_of, put, weights
from tests.strategies import TINY_MODEL, read_folder


def litter(registry: Registry, *contents: bytes) -> list[Digest]:
    """Objects that no event names."""
    with registry.store.batch() as batch:
        return [batch.put_bytes(content) for content in contents]


def later(registry: Registry, days: float) -> Registry:
    """The same registry, as it is opened so many days from now."""
    then = datetime.now(UTC) + timedelta(days=days)
    return Registry.open(registry.root, clock=lambda: then.isoformat(timespec="milliseconds").replace("+00:00", "Z"))


def names(registry: Registry) -> set[Digest]:
    return set(registry.store.names())


def test_what_nothing_needs_is_left_for_a_day_then_quarantined_for_a_week_then_deleted(registry: Registry):
    (needless,) = litter(registry, b"from an import that failed")

    assert (0, 1) == ((done := registry.gc()).objects, done.young.objects)
    swept = later(registry, 2).gc()
    assert (1, 1, {needless}) == (swept.swept["file"].objects, swept.quarantined.objects, {needless} - names(registry))
    assert (0, 1) == ((done := later(registry, 8).gc()).deleted.objects, done.quarantined.objects)
    assert (1, 0) == ((done := later(registry, 10).gc()).deleted.objects, done.quarantined.objects)
    assert [] == list(Quarantine(registry.store).root.iterdir())


def test_whatever_an_event_names_stays(registry: Registry, model: Path, tmp_path: Path):
    version = registry.import_model(model).version
    (tmp_path / "rows.txt").write_text("one\ntwo\n")
    registry.add_dataset(tmp_path / "rows.txt")
    before = names(registry)
    done = registry.gc(now=True)

    assert (0, before) == (done.objects, names(registry))
    assert () == registry.fsck().problems
    registry.check_out(version, tmp_path / "out")
    assert TINY_MODEL == read_folder(tmp_path / "out")


def test_what_a_needed_object_is_a_residual_of_stays_and_goes_with_it(registry: Registry, tmp_path: Path):
    base = put(registry.store, weights(1))
    middle = put(registry.store, weights(1, steps=1), base)
    needless = put(registry.store, weights(1, steps=3), base)
    put(registry.store, weights(1, steps=2), middle)
    registry.import_model(model_of(tmp_path / "model", weights(1, steps=2)))
    swept = registry.gc(now=True)

    assert (1, {needless}) == (swept.objects, {base, middle, needless} - names(registry))
    assert () == registry.fsck().problems


def test_now_frees_the_room_at_once(registry: Registry):
    litter(registry, b"a" * 5000, b"b" * 5000)
    done = registry.gc(now=True)

    assert 2 == done.objects
    assert done.bytes > 10_000
    assert (set(), 0) == (names(registry), done.quarantined.objects)


def test_a_dry_run_says_the_same_and_takes_nothing(registry: Registry):
    litter(registry, b"needless")
    before = names(registry)
    planned = registry.gc(now=True, dry_run=True)

    assert before == names(registry)
    assert (planned.objects, planned.bytes) == ((done := registry.gc(now=True)).objects, done.bytes)
    assert 1 == planned.objects


def test_undo_puts_everything_back(registry: Registry):
    litter(registry, b"one", b"two")
    before = names(registry)
    registry.gc(grace=0)
    assert set() == names(registry)

    assert 2 == registry.gc_undo().back
    assert before == names(registry)
    assert () == registry.fsck().problems


def test_what_is_in_quarantine_and_is_written_again_is_there_again(registry: Registry):
    (needless,) = litter(registry, b"one")
    registry.gc(grace=0)
    litter(registry, b"one")

    assert registry.store.verify(needless) is None
    assert 0 == registry.gc_undo().back


def _lose(registry: Registry) -> Digest:
    """Put an object that a version needs into quarantine, as nobody should."""
    lost = sorted(registry.manifest("v1").objects())[0]
    Quarantine(registry.store).put([lost], time.time())
    return lost


def test_what_is_needed_and_is_in_quarantine_comes_out_again(registry: Registry, model: Path):
    registry.import_model(model)
    lost = _lose(registry)
    (problem,) = registry.fsck().problems

    assert f"its object {lost} is missing, `mreg fsck --repair` takes it out of quarantine" == problem.what
    assert 1 == registry.gc().back
    assert () == registry.fsck().problems
    _lose(registry)
    findings = registry.fsck(repair=True)
    assert ((), 1) == (findings.problems, len(findings.repaired))


def test_where_a_manifest_is_damaged_nothing_is_taken(registry: Registry, model: Path):
    version = registry.import_model(model).version
    litter(registry, b"needless")
    path = registry.store.path(version.manifest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # which a manifest never ends with
    before = names(registry)

    with pytest.raises(DamagedObject, match="hash to its name"):
        registry.gc(now=True)
    assert before == names(registry)


def test_strangers_in_the_store_and_batches_at_work_are_left_alone(registry: Registry):
    (registry.store.root / "notes.txt").write_text("mine")
    with registry.store.batch() as batch:
        batch.put_bytes(b"under way")
        done = registry.gc(now=True, grace=0)

    assert 0 == done.objects
    assert 1 == len(names(registry))
    assert (registry.store.root / "notes.txt").exists()


def _aged(path: Path, days: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1234")
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.mark.parametrize("hold", [False, True])
def test_old_caches_go_unless_something_runs(registry: Registry, hold: bool):
    old = ["cache/covariance/a", "failed/run.log", "checkpoints/key/checkpoint-3/state", "replays/id/state.json"]
    new = ["cache/covariance/b", "failed/other.log", "checkpoints/other/checkpoint-3/state"]
    mixed = ["checkpoints/mixed/checkpoint-1/old", "checkpoints/mixed/checkpoint-1/new"]
    for name in (*old, mixed[0]):
        _aged(registry.root / name, 31)
    for name in (*new, mixed[1]):
        _aged(registry.root / name, 1)
    run: Callable[[], object] = registry.gc
    if hold:
        with registry.scratch("a-run"):
            done = registry.gc()
    else:
        done = registry.gc()
    run()

    left = [name for name in (*old, *new, *mixed) if (registry.root / name).exists()]
    assert [*new, *mixed] == left
    assert hold == done.busy
    assert (0 if hold else 4) == sum(tally.objects for tally in done.caches.values())
