"""Adapters as parents: where a whole model is taken, they are fused first, in a step of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams
from mreg.registry.versions import Version
from mreg.transforms._engine import LocalEngine

from tests import tiny


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    base = tiny.make_model(folder / "base", layers=1)
    tiny.make_adapter(folder / "adapter", base)
    tiny.make_adapter(folder / "other", base, seed=2)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(state=tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def registry(tmp_path: Path, engine: LocalEngine) -> Registry:
    return Registry.init(tmp_path / "registry", engine=engine)


@pytest.fixture
def made(registry: Registry, stock: Path, tmp_path: Path) -> dict[str, Version]:
    """The base, two adapters of it, and one that cannot be fused."""
    base = registry.import_model(stock / "base").version
    config = '{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}'
    prompt = tmp_path / "prompt"
    prompt.mkdir()
    (prompt / "adapter_config.json").write_text(config)
    (prompt / "adapter_model.safetensors").write_bytes((stock / "adapter" / "adapter_model.safetensors").read_bytes())
    return {
        "base": base,
        **{name: registry.import_model(stock / name, base=base).version for name in ("adapter", "other")},
        "prompt": registry.import_model(prompt, base=base).version,
    }


def test_a_transform_of_whole_models_works_on_the_fused_adapter(registry: Registry, made: dict[str, Version]):
    cast = registry.apply("cast", made["adapter"], dtype="float32", threads=1)
    fused = registry.apply("fuse", made["adapter"], threads=1)

    (before,) = cast.fused
    assert ("fuse", made["adapter"], made["base"]) == (before.transform, *before.parents)
    assert (before.version,) == cast.parents
    assert (True, before.version) == (fused.cached, fused.version)
    assert ["import", "import", "fuse", "cast"] == [step.transform for step in registry.recipe(cast.version)]
    assert "before cast, which takes a whole model" == before.version.message


def test_every_adapter_among_the_inputs_is_fused_and_none_twice(registry: Registry, made: dict[str, Version]):
    registry.apply("fuse", made["other"], threads=1)
    others = [made["other"], made["adapter"], made["base"]]
    merged = registry.apply("merge", made["adapter"], others=others, threads=1)
    again = registry.apply("merge", made["adapter"], others=others, threads=1)

    assert [(False, made["adapter"]), (True, made["other"])] == [(one.cached, one.parents[0]) for one in merged.fused]
    whole = {one.parents[0].digest: one.version for one in merged.fused}
    parents = (whole[made["adapter"].digest], whole[made["other"].digest], whole[made["adapter"].digest], made["base"])
    assert parents == merged.parents
    assert again.cached


def test_a_plan_says_what_would_be_fused_and_runs_nothing(registry: Registry, made: dict[str, Version]):
    before = len(registry.events())
    planned = registry.plan("cast", made["adapter"], dtype="float32", threads=1)

    assert before == len(registry.events())
    done = registry.apply("cast", made["adapter"], dtype="float32", threads=1)
    known = registry.plan("cast", made["adapter"], dtype="float32", threads=1)

    assert [("fuse", made["adapter"], None)] == [
        (one.step.transform.name, one.step.source, one.answer) for one in planned.first
    ]
    assert planned.answer is None
    assert (done.version, done.fused[0].version) == (known.answer, known.first[0].answer)


def test_an_adapter_that_cannot_be_fused_is_refused_with_the_reason(registry: Registry, made: dict[str, Version]):
    with pytest.raises(Refused) as raised:
        registry.apply("cast", made["prompt"], dtype="float32")

    assert raised.value.message == (
        f"{made['prompt']} is an adapter, cast takes a whole model as source, and it cannot be fused: "
        f"{made['prompt']} is PROMPT_TUNING, which adds to the input and changes no weights"
    )
    assert [] == registry.sql("SELECT id FROM run")[1]


def test_what_is_wrong_with_the_step_itself_is_said_before_anything_is_fused(
    registry: Registry, made: dict[str, Version]
):
    with pytest.raises(BadParams, match="1 weights for 2 models"):
        registry.apply("merge", made["adapter"], others=[made["base"]], weights=[1.0])

    assert [] == registry.sql("SELECT id FROM run")[1]
