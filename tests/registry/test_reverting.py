"""Revert: by weights where digests prove it exact, by rebase otherwise, refused with both reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.chains.reversion import Content, NotExact, revert
from mreg.registry.chains.rewriting import Changes
from mreg.registry.digests import Digest
from mreg.registry.errors import Refused
from mreg.registry.versions import Version

from tests import tiny
from tests.registry.conftest import Import

LAYERS = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("up", "down")]

contents = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), min_size=4, max_size=4)


def content(bits: dict[str, str], files: dict[str, str]) -> Content:
    return Content(
        {name: ("F32", (2,), Digest(each)) for name, each in bits.items()},
        {f"{name}.json": Digest(each) for name, each in files.items()},
    )


@given(contents, contents, contents, st.fixed_dictionaries({"e": st.sampled_from("xy")}))
def test_whatever_is_put_back_was_changed_by_the_step_and_by_nothing_since(
    now: dict[str, str], left: dict[str, str], was: dict[str, str], files: dict[str, str]
):
    touched = {name for name in left if left[name] != was[name]}
    is_exact = touched and all(now[name] == left[name] for name in touched)

    try:
        put_back = revert(content(now, files), content(left, files), content(was, files))
    except NotExact:
        assert not is_exact
    else:
        assert is_exact
        assert (touched, ()) == (set(put_back.tensors), put_back.files)


def changed(registry: Registry, source: Version, folder: Path, *names: str) -> Version:
    """A step done elsewhere that adds one to these tensors."""
    name = f"{source}-{'-'.join(names)}"
    registry.check_out(source, folder / f"{name}-in")
    made = tiny.make_changed(folder / name, folder / f"{name}-in", *names)
    return registry.record_version(made, transform="tweak", source=source).version


def weights(registry: Registry, version: Version) -> dict[str, str]:
    return {tensor.name: tensor.digest for tensor in registry.manifest(version).tensors()}


def test_a_step_that_nothing_touched_since_is_taken_out_by_weights(shop: Registry, bring: Import, tmp_path: Path):
    base = shop.version(bring())
    first = changed(shop, base, tmp_path, LAYERS[0], LAYERS[1])
    last = changed(shop, first, tmp_path, LAYERS[2])
    shop.set_ref("prod", last)
    done = shop.revert(first, last, ref="fixed", message="wrong fact")

    put_back = done.plan.put_back
    assert put_back is not None
    assert ("weights", set(LAYERS[:2])) == (done.plan.way, set(put_back.tensors))
    before, after = weights(shop, base), weights(shop, done.version)
    assert {LAYERS[2]} == {name for name in after if after[name] != before[name]}
    assert weights(shop, last)[LAYERS[2]] == after[LAYERS[2]]
    assert {"fixed": done.version, "prod": last}.items() <= shop.refs().items()
    assert "bytes" == shop.replay(done.version).verdict
    (claim,) = [step for step in shop.verify(done.version, claims=True).steps if step.version == done.version]
    assert "proved" == claim.verdict
    again = shop.revert(first, last)
    assert (done.version, True) == (again.version, again.applied and again.applied.cached)


def test_the_last_step_taken_out_is_the_version_before_it(shop: Registry, bring: Import, tmp_path: Path):
    base = shop.version(bring())
    last = changed(shop, base, tmp_path, LAYERS[0])

    assert base == shop.revert(last, last).version


def test_what_a_later_step_changed_too_is_made_again_without_the_step(shop: Registry, bring: Import):
    base = shop.version(bring())
    pruned = shop.apply("prune", base, sparsity=0.5, threads=1).version
    cast = shop.apply("cast", pruned, dtype="float32", threads=1).version
    planned = shop.revert_plan(pruned, cast)
    done = shop.revert(pruned, cast)

    assert ("rebase", f"{planned.reason}") == (done.plan.way, done.plan.reason)
    assert f"was changed again by {cast} (cast)" in planned.reason
    assert ["import", "cast"] == [step.transform for step in shop.recipe(done.version)]
    assert [base.digest] == [digest for _, digest in shop.recipe(done.version)[-1].inputs]


def test_one_branch_of_a_merge_is_taken_out_by_rebase(shop: Registry, bring: Import, tmp_path: Path):
    base = shop.version(bring())
    left = changed(shop, base, tmp_path, LAYERS[0])
    right = changed(shop, base, tmp_path, LAYERS[3])
    merged = shop.apply("merge", left, others=[right], threads=1).version

    assert ("rebase", 1) == ((plan := shop.revert_plan(left, merged)).way, plan.reason.count(f"{merged} (merge)"))
    assert [("tweak", "drop"), ("tweak", "keep"), ("merge", "run")] == [
        (line.transform, line.action) for line in plan.chain.lines if line.transform != "import"
    ]


def test_both_reasons_are_told_where_neither_way_works(shop: Registry, bring: Import, tmp_path: Path):
    base = shop.version(bring())
    first = changed(shop, base, tmp_path, LAYERS[0])
    last = changed(shop, first, tmp_path, LAYERS[0])
    events = len(shop.events())

    with pytest.raises(
        Refused, match=rf"not by weights, since .* by {last} \(tweak\); not by rebase, since .*elsewhere"
    ):
        shop.revert(first, last)
    with pytest.raises(Refused, match=rf"by weights: .* by {last}"):
        shop.revert(first, last, way="weights")
    with pytest.raises(Refused, match="was imported"):
        shop.revert(base, last)
    with pytest.raises(Refused, match="is not on the way"):
        shop.revert(last, first)
    assert events == len(shop.events())


def test_a_rebase_that_makes_the_step_again_takes_out_the_new_one(shop: Registry, bring: Import):
    base, other = shop.version(bring()), shop.version(bring(1))

    def prune(source: Version, *, spared: str) -> Version:
        return shop.apply("prune", source, sparsity=0.5, ignore=["lm_head", f"re:.*{spared}_proj"], threads=1).version

    step = prune(base, spared="down")
    out = shop.revert(step, prune(step, spared="up")).version
    done = shop.rebase(out, Changes(onto={base.digest: other.digest}))

    assert ["import", "prune", "prune", "revert"] == [one.transform for one in shop.recipe(done.version)]
    assert weights(shop, prune(other, spared="up")) == weights(shop, done.version)


@pytest.mark.parametrize("extra", [(), (LAYERS[3],), (LAYERS[0], LAYERS[3])])
def test_a_revert_done_elsewhere_is_held_against_the_weights(
    shop: Registry, bring: Import, tmp_path: Path, extra: tuple[str, ...]
):
    base = shop.version(bring())
    step = changed(shop, base, tmp_path, LAYERS[0])
    last = changed(shop, step, tmp_path, LAYERS[2])
    shop.check_out(base, tmp_path / "base")
    made = tiny.make_changed(tmp_path / "made", tmp_path / "base", LAYERS[2], *extra)
    roles = [("step", step), ("before", base)]
    told = shop.record_version(made, transform="revert", source=last, others=roles).version
    (judged,) = [one for one in shop.verify(told, claims=True).steps if one.version == told]

    assert ("contradicted" if extra else "proved") == judged.verdict
