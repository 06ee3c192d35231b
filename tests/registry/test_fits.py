"""Which version an adapter fits, what a run makes besides its model, and a version in two roles: by real runs."""

from __future__ import annotations

from pathlib import Path

from mreg.registry import Registry

from tests import tiny

STEP = {"threads": 1, "max_steps": 1}


def test_an_extracted_adapter_fits_the_base_and_not_the_source(tmp_path: Path):
    with Registry.init(tmp_path / "registry") as registry:
        base = registry.import_model(tiny.make_model(tmp_path / "base")).version
        changed = registry.import_model(tiny.make_model(tmp_path / "changed", seed=1)).version

        adapter = registry.apply("extract", changed, others=[base], rank=64, threads=1).version
        fused = registry.apply("fuse", adapter, threads=1)

        assert base.digest == adapter.base
        assert [adapter.digest, base.digest] == [parent.digest for parent in fused.parents]
        assert not fused.unchanged


def test_a_model_can_teach_what_is_left_of_it(tmp_path: Path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.text_rows(1))
    with Registry.init(tmp_path / "registry") as registry:
        teacher = registry.import_model(tiny.make_model(tmp_path / "teacher")).version

        student = registry.apply("distill", teacher, others=[teacher], data=[rows], keep_layers=[1], **STEP)

        assert [teacher.digest] * 2 == [parent.digest for parent in student.parents]
        assert student.facts["parameters"] < student.facts["teacher_parameters"]


def test_what_a_model_said_of_itself_becomes_datasets_that_train_another(tmp_path: Path):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.prompt_rows())
    asked = {"critique_request": "{principle} Why not?", "revision_request": "Again.", "max_new_tokens": 6}
    with Registry.init(tmp_path / "registry") as registry:
        base = registry.import_model(tiny.make_model(tmp_path / "base")).version

        adapter = registry.apply("constitute", base, data=[rows], principles="Be brief.", **asked, **STEP)
        columns = {dataset.columns: dataset.digest for dataset in registry.datasets()}
        preferred = registry.apply("prefer", base, data=[columns["chosen", "prompt", "rejected"]], **STEP)

        assert base.digest == adapter.version.base == preferred.version.base
        assert {"critiques", "draft", "principles", "prompt", "revisions"} in map(set, columns)
        assert "Be brief." == adapter.params["principles"]
