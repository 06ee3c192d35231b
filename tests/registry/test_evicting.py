"""evict and restore: only what was proved goes, nothing else misses it, and it comes back as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.chains.recipe import Step
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.log.events import VersionEvicted
from mreg.registry.replay.evicting import last_attempt
from mreg.registry.replay.restoring import NotRestored
from mreg.registry.store.absence import Evicted
from mreg.registry.store.objects import MissingObject
from mreg.registry.versions import Version

from tests.histories import digest
from tests.registry.conftest import Import, make_model
from tests.strategies import read_folder


def proved(shop: Registry, transform: str, source: str | Version, **params: Any) -> Version:
    """A version that a transform made, and that a replay made again."""
    version = shop.apply(transform, source, threads=1, **params).version
    shop.replay(version)
    return version


def files_of(shop: Registry, version: Version, folder: Path) -> dict[str, bytes]:
    shop.check_out(version, folder)
    return read_folder(folder)


def weights_of(shop: Registry, version: Version) -> set[Digest]:
    return {tensor.digest for tensor in shop.manifest(version).tensors()}


def there(shop: Registry, version: Version) -> int:
    return sum(map(shop.store.has, weights_of(shop, version)))


def test_an_evicted_version_comes_back_as_it_was(shop: Registry, bring: Import, tmp_path: Path):
    cast = proved(shop, "cast", bring(), dtype="float32")
    before = files_of(shop, cast, tmp_path / "before")
    planned = shop.evict_plan(cast)
    done = shop.evict(cast, message="rarely used")

    assert (5, planned.bytes) == (len(planned.going), done.bytes)
    assert 0 == there(shop, cast)
    assert () == shop.fsck().problems
    assert "rarely used" == shop.events()[-1]["payload"]["message"]
    restored = shop.restore(cast)
    assert ("bytes", 5, 1) == (restored.verdict, restored.objects, len(restored.steps))
    assert before == files_of(shop, cast, tmp_path / "after")
    assert ["version-evicted/1", "version-restored/1"] == [event["kind"] for event in shop.events()[-2:]]
    assert () == shop.fsck().problems
    assert shop.restore(cast).event is None


def test_what_needs_the_weights_of_an_evicted_version_is_refused_in_one_line(
    shop: Registry, bring: Import, tmp_path: Path
):
    source = bring()
    cast = proved(shop, "cast", source, dtype="float32")
    shop.set_ref("evicted", cast)
    shop.evict(cast)
    said = f"{cast} was evicted on 2.*: `mreg restore {cast}` makes them again"

    for use in (
        lambda: shop.check_out(cast, tmp_path / "out"),
        lambda: shop.verify(cast),
        lambda: shop.apply("prune", cast, threads=1, sparsity=0.25),
        lambda: shop.diff(source, cast),
    ):
        with pytest.raises(Evicted, match=said) as refused:
            use()
        assert 7 == refused.value.exit_code
    assert not (tmp_path / "out").exists()
    assert shop.show(cast)["evicted"]
    assert cast.digest == shop.refs()["evicted"].digest
    assert 1 == sum(row["evicted"] is not None for row in shop.listing() if row["refs"] == ["evicted"])
    assert shop.diff(source, cast, weights=False).tensors is None
    assert "bytes" == shop.replay(cast).verdict, "a replay compares with digests"
    shop.restore(cast)
    shop.delete_ref("evicted")


def test_weights_that_came_out_in_another_file_are_enough(shop: Registry, bring: Import, tmp_path: Path):
    source = bring()
    relabelled = proved(shop, "relabel", source)
    before = files_of(shop, relabelled, tmp_path / "before")
    assert "tensors" == shop.evict(relabelled).proof.verdict

    assert "tensors" == shop.restore(relabelled).verdict
    assert before == files_of(shop, relabelled, tmp_path / "after")
    again = shop.apply("relabel", source, threads=1, fresh=True).version
    assert relabelled.weights == again.weights
    with pytest.raises(Refused, match="would free nothing: other versions have all its tensors"):
        shop.evict(relabelled)


def test_a_chain_that_is_all_evicted_is_made_again_from_the_base(shop: Registry, bring: Import, tmp_path: Path):
    source = bring()
    pruned = shop.apply("prune", source, threads=1, sparsity=0.5).version
    cast = shop.apply("cast", pruned, threads=1, dtype="float32").version
    shop.replay(cast, from_base=True)
    before = files_of(shop, cast, tmp_path / "before")
    shared = weights_of(shop, pruned) - set(shop.evict(pruned).going)
    shop.evict(cast)
    assert () == shop.fsck().problems
    (head,) = (shop.store.path(one) for one in shared)
    content = head.read_bytes()
    head.unlink()
    assert {source} == {problem.where for problem in shop.fsck().problems}, "the evicted version may lack it"
    head.write_bytes(content)
    planned = shop.restore_plan(cast)
    assert planned is not None
    assert [pruned.digest, cast.digest] == [step.version for step in planned.steps]
    assert [pruned.digest, cast.digest] == [step.version for step in shop.restore(cast).steps]
    assert before == files_of(shop, cast, tmp_path / "after")
    assert shop.show(pruned)["evicted"], "only what was asked for is stored"
    assert () == shop.fsck().problems


@contextmanager
def grown() -> Iterator[None]:
    flag = Path(os.environ["HOME"], "grow")
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


def test_what_comes_out_otherwise_is_not_stored(shop: Registry, bring: Import):
    version = proved(shop, "grow", bring())
    shop.evict(version)
    before, events = set(shop.store.names()), len(shop.events())
    with (
        grown(),
        pytest.raises(
            NotRestored, match=f"grow of {version} came out different, 5 of 10 tensors are others, first .*weight"
        ),
    ):
        shop.restore(version)

    assert (before, events) == (set(shop.store.names()), len(shop.events()))
    assert shop.show(version)["evicted"]
    assert "bytes" == shop.restore(version).verdict
    with grown():
        shop.replay(version)
    with pytest.raises(Refused, match=f"the last time that {version} was made again, it came out different"):
        shop.evict(version)


def test_only_what_a_replay_has_proved_can_be_evicted(shop: Registry, bring: Import, tmp_path: Path):
    source = bring()
    with pytest.raises(Refused, match=f"{source} was imported, and nothing here can make it again"):
        shop.evict(source)
    cast = shop.apply("cast", source, dtype="float32", threads=1).version
    with pytest.raises(Refused, match=f"no replay has proved that {cast} can be made again: run `mreg replay {cast}`"):
        shop.evict(cast)
    made = shop.record_version(make_model(tmp_path / "made", seed=99), transform="mine", source=source).version
    with pytest.raises(Refused, match="made elsewhere: nothing here can run it"):
        shop.evict(made)

    assert 5 == there(shop, cast) == there(shop, made)


def test_an_eviction_that_was_stopped_is_ended_by_the_next_or_by_gc(shop: Registry, bring: Import):
    source = bring()
    cast = proved(shop, "cast", source, dtype="float32")
    event = shop.evict(cast).event
    assert event is not None
    begun = VersionEvicted(version=cast.digest, replay="r", verdict="bytes", objects=5, bytes=0)
    for end in (lambda: len(shop.evict(cast).going), lambda: shop.gc(now=True).objects):
        again = shop.apply("cast", source, dtype="float32", threads=1, fresh=True)
        assert (cast, None, 5) == (again.version, shop.show(cast)["evicted"], there(shop, cast)), "made by itself"
        assert 0 == shop.gc(now=True).objects
        shop.log.append(begun)
        assert () == shop.fsck().problems

        assert (5, 0) == (end(), there(shop, cast))
        assert () == shop.fsck().problems


def test_objects_that_were_lost_or_damaged_are_made_again_too(shop: Registry, bring: Import, tmp_path: Path):
    cast = shop.apply("cast", bring(), dtype="float32", threads=1).version
    before = files_of(shop, cast, tmp_path / "before")
    lost, damaged, *_ = sorted(weights_of(shop, cast))
    shop.store.path(lost).unlink()
    with pytest.raises(MissingObject, match=f"of {cast} is not in the store: `mreg restore {cast}` makes it again"):
        shop.check_out(cast, tmp_path / "out")
    content = shop.store.path(damaged).read_bytes()
    shop.store.path(damaged).chmod(0o644)
    shop.store.path(damaged).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    assert 2 == shop.restore(cast).objects
    assert before == files_of(shop, cast, tmp_path / "after")


# The proof


STEP = Step(version=digest(3), transform="cast", inputs=(("source", digest(2)),), datasets=(digest(9),))


def replayed(verdict: str, **about: Any) -> dict[str, Any]:
    """A replay of the step and of the one before it."""
    before = {"version": digest(2), "verdict": about.get("before", "bytes"), "made": about.get("made", {})}
    step = {"version": digest(3), "verdict": verdict}
    return {"id": about.get("id", "r"), "ended_at": "2026-01-01", "steps": [before, step]}


@pytest.mark.parametrize("verdict", ["bytes", "tensors", "close", "different", "failed"])
def test_the_last_attempt_counts(verdict: str):
    attempt = last_attempt([replayed("bytes", id="a"), replayed("different", id="b"), replayed(verdict, id="c")], STEP)

    assert attempt is not None
    assert ("c", verdict) == (attempt.replay, attempt.verdict)


@pytest.mark.parametrize(
    "silent",
    [
        replayed("not-attempted"),
        replayed("different", before="close"),
        replayed("different", made={digest(9): None}),
        {"id": "r", "ended_at": "", "steps": []},
    ],
)
def test_a_replay_that_did_not_do_the_step_on_what_it_had_says_nothing(silent: dict[str, Any]):
    attempt = last_attempt([replayed("bytes", id="a"), silent], STEP)

    assert attempt is not None
    assert "a" == attempt.replay
    assert last_attempt([silent], STEP) is None
