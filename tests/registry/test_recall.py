"""Recall: what came of a recalled version or dataset is recalled too, in any role and whenever it is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.chains.recalls import spread
from mreg.registry.errors import Refused
from mreg.registry.log import events as e
from mreg.registry.log.folds import Tables, fold
from mreg.registry.measures.judging import IsRecalled
from mreg.registry.revs import UnknownRev
from mreg.registry.transform import BadParams
from mreg.registry.versions import Version

from tests.histories import digest, history, imported, recalled
from tests.registry.conftest import make_model
from tests.tiny import write_rows

edges = st.lists(st.tuples(*[st.sampled_from("abcdef")] * 2, st.just("source")))

Make = Callable[..., Version]


@pytest.fixture
def make(registry: Registry, tmp_path: Path) -> Make:
    """`make("a")` imports a model, `make("b", a, teacher=c, data=…)` records one made from others."""

    def make(name: str, *sources: Version, data: Path | None = None, **roles: Version) -> Version:
        folder = make_model(tmp_path / name, seed=ord(name))
        if not sources:
            return registry.import_model(folder).version
        rest = [*sources[1:], *roles.items()]
        used = [] if data is None else [data]
        return registry.record_version(folder, transform="made", source=sources[0], others=rest, data=used).version

    return make


def names(registry: Registry) -> set[str]:
    """The versions that are recalled."""
    return {f"v{row['number']}" for row in registry.listing() if row["recalled"]}


@given(st.sets(st.sampled_from("abcdef")), edges)
def test_a_recall_reaches_exactly_what_a_path_leads_to(roots: set[str], ways: list[tuple[str, str, str]]):
    found = spread(sorted(roots), ways)  # type: ignore[arg-type, type-var]  # letters stand for digests

    expected = set(roots)
    while more := {made for of, made, _ in ways if of in expected} - expected:
        expected |= more
    assert expected == set(found)
    assert roots == {one for one, way in found.items() if way is None}
    assert all((way.of, one, way.role) in ways for one, way in found.items() if way is not None)


def test_a_recall_stands_until_it_is_lifted():
    told = [imported(1), imported(2), recalled(1), recalled(2), e.VersionRecalled(dataset=digest(9), message="gone")]

    def standing(tables: Tables) -> dict[str, tuple[str, str]]:
        return {row["digest"]: (row["kind"], row["message"]) for row in tables["recall"].values()}

    every = {digest(1): ("version", "leaked"), digest(2): ("version", "leaked"), digest(9): ("dataset", "gone")}
    assert every == standing(fold(history(told)))
    lifted = [e.RecallLifted(version=digest(1)), e.RecallLifted(dataset=digest(9)), e.RecallLifted(dataset=digest(9))]
    assert {digest(2): every[digest(2)]} == standing(fold(history([*told, *lifted])))


def test_everything_that_came_of_it_in_any_role_is_recalled(registry: Registry, make: Make):
    a, b = make("a"), make("b")
    student, merged = make("c", b, teacher=a), make("d", b, a)
    scored = make("e", b, reward=merged)
    aside = make("f", b)
    found = registry.recall(a, message="leaked")

    assert [(a.name, None), (student.name, a.name), (merged.name, a.name), (scored.name, merged.name)] == [
        (f"v{one.row['number']}", one.through) for one in found.versions
    ]
    assert ["", "teacher", "others", "reward"] == [one.role for one in found.versions]
    assert names(registry) == {a.name, student.name, merged.name, scored.name}
    assert not {b.name, aside.name} & names(registry)


def test_what_is_made_later_from_it_is_recalled_too_and_said_so(registry: Registry, make: Make):
    a = make("a")
    registry.recall(a, message="leaked")
    heard: list[str] = []
    registry.log.notify = heard.append
    child = make("b", a)
    make("c", child)

    assert {"v1", "v2", "v3"} == names(registry)
    assert ["warning: v1 is recalled (leaked)", "warning: v2 came of v1, which is recalled (leaked)"] == heard


def test_a_dataset_is_recalled_with_all_that_it_went_into(registry: Registry, make: Make, tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "private"}])
    registry.add_dataset(rows, name="mails")
    a = make("a")
    trained = make("b", a, data=rows)
    child = make("c", trained)
    found = registry.recall("mails", message="consent was withdrawn")

    assert {trained.name, child.name} == names(registry)
    assert [("mails", "data"), (trained.name, "source")] == [(one.through, one.role) for one in found.versions]
    registry.lift_recall("mails", message="consent was given")
    assert set() == names(registry)


def test_a_content_that_was_there_before_by_another_way_did_not_come_of_it(
    registry: Registry, make: Make, tmp_path: Path
):
    a = make("a")
    b = make("b", a)
    again = registry.record_version(tmp_path / "a", transform="undo", source=b).version
    registry.recall(b, message="leaked")

    assert a == again
    assert {b.name} == names(registry)


def test_an_adapter_that_fits_it_is_recalled(registry: Registry, make: Make, tmp_path: Path):
    a = make("a")
    folder = make_model(tmp_path / "adapter", seed=7)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    adapter = registry.import_model(folder, base=a).version
    (found,) = registry.recall(a, message="leaked").versions[1:]

    assert (a.name, "base") == (found.through, found.role)
    assert {a.name, adapter.name} == names(registry)


def test_rows_that_a_run_wrote_from_it_carry_the_recall_on(registry: Registry, make: Make, tmp_path: Path):
    a, clean = make("a"), make("b")
    with registry.record("write", a) as run:
        for path in make_model(tmp_path / "c", seed=3).iterdir():
            (run.output / path.name).write_bytes(path.read_bytes())
        write_rows(run.made / "answers.jsonl", [{"text": "as the model says"}])
    (rows,) = registry.datasets()
    trained = make("d", clean, data=Path(rows.digest))
    found = registry.recall(a, message="leaked")

    assert [None, a.name, rows.name] == [one.through for one in found.versions]
    assert trained.name in names(registry)


def test_no_name_moves_to_what_is_recalled_unless_it_is_forced(registry: Registry, make: Make):
    a = make("a")
    b = make("b", a)
    c = make("c", b)
    registry.set_ref("prod", c)
    registry.set_ref("prod", a)
    found = registry.recall(b, message="leaked")

    assert ({}, 3) == (found.refs, len(names(registry)) + 1)
    with pytest.raises(IsRecalled, match=f"prod stays at v1, since {c} came of {b}, which is recalled .leaked."):
        registry.set_ref("prod", c)
    with pytest.raises(IsRecalled):
        registry.rollback("prod")
    with pytest.raises(IsRecalled, match="new is not set"):
        registry.set_ref("new", b)
    assert a == registry.refs()["prod"]
    moved = registry.set_ref("prod", c, force=True)
    assert (f"recall of {b} (event {found.event})",) == moved.forced
    assert moved.forced == tuple(registry.ref_log("prod")[0]["forced"])
    assert {"prod": c.name} == registry.recalls()[0][1].refs
    registry.lift_recall(b, message="wrong")
    assert () == registry.set_ref("new", b).forced


def test_only_what_was_recalled_itself_is_lifted(registry: Registry, make: Make):
    a = make("a")
    b = make("b", a)
    registry.recall(a, message="leaked")

    with pytest.raises(Refused, match=f"{b} was not recalled itself: it came of {a}"):
        registry.lift_recall(b, message="wrong")
    events = len(registry.events())
    assert registry.recall(a, message="once more").event is None
    assert registry.recall(b, message="to see", dry_run=True).event is None
    assert registry.lift_recall(a, message="to see", dry_run=True).event is None
    assert events == len(registry.events())


def test_what_cannot_be_recalled_is_said(registry: Registry, make: Make, tmp_path: Path):
    a = make("a")
    registry.set_ref("mails", a)
    registry.add_dataset(write_rows(tmp_path / "rows.jsonl", [{"text": "private"}]), name="mails")

    with pytest.raises(BadParams, match="say why"):
        registry.recall(a, message=" ")
    with pytest.raises(Refused, match="the name of a version and of a dataset"):
        registry.recall("mails", message="which?")
    with pytest.raises(UnknownRev, match="did you mean mails"):
        registry.recall("mail", message="gone")


def test_recalls_survive_a_rebuild(registry: Registry, make: Make):
    registry.recall(make("b", make("a")), message="leaked")
    before = [(one, found.versions) for one, found in registry.recalls()]
    registry.rebuild()

    assert before == [(one, found.versions) for one, found in registry.recalls()]
    assert () == registry.fsck().problems
