"""What holds for every transform there is; a new one needs a line in CASES."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mreg.registry import Registry
from mreg.registry.runs.applying import TransformFailed
from mreg.transforms import _catalog
from mreg.transforms._engine import LocalEngine

from tests.transforms.conftest import Ran, Run, Stock, tree


@dataclass(frozen=True)
class Case:
    """How to call a transform on the stock; `source` and `more` name its models."""

    params: dict[str, Any] = field(default_factory=dict)
    source: str = "base"
    more: dict[str, str] = field(default_factory=dict)
    data: str | tuple[str, ...] | None = None
    fits: str | None = None
    """For an adapter that comes out: the model it fits."""
    judges: bool = False
    """Whether a reward model comes out."""
    names: str | None = None
    """A model of the stock whose digest is the param `version`."""


REWARD = "def reward(completions, chosen, **columns):\n    return [text.count('e') - 1 for text in completions]\n"
WRITE = {"max_steps": 2, "max_completion_length": 6, "num_generations": 4, "reward_function": REWARD}
CONSTITUTE = {
    "max_steps": 2,
    "max_new_tokens": 6,
    "principles": "Be brief.",
    "critique_request": "{principle} Why not?",
}
MERGEKIT = {
    "merge_method": "dare_ties",
    "base_model": "base",
    "models": [{"model": "source", "parameters": {"weight": 1.0, "density": 0.5}}],
}

CASES = {
    "adapt": Case({"max_steps": 2, "max_length": 64, "add_tokens": ("zebra",)}, data="text"),
    "calibrate": Case({"max_tokens": 200}, data="text"),
    "cast": Case({"dtype": "float32"}),
    "command": Case({"command": ("sh", "-c", 'cp "$MREG_INPUT"/* "$MREG_OUTPUT"; echo done')}),
    "constitute": Case(CONSTITUTE, data="prompt", fits="base"),
    "distill": Case({"max_steps": 2}, more={"teacher": "other"}, data="text"),
    "edit": Case({"v_num_grad_steps": 2, "context_length": 1}, data=("facts", "text")),
    "extract": Case({"rank": 4}, source="other", more={"base": "base"}, fits="base"),
    "finetune": Case({"max_steps": 3}, data="text", fits="base"),
    "fuse": Case(source="adapter", more={"base": "base"}),
    "instruct": Case({"max_steps": 2, "builtin_template": True}, data="chat", fits="base"),
    "merge": Case(more={"others": "other"}),
    "prune": Case({"sparsity": 0.5}),
    "quantize": Case({"method": "int4", "group_size": 32}),
    "prefer": Case({"max_steps": 2}, data="pairs", fits="base"),
    "reinforce": Case(WRITE, data="pairs", fits="base"),
    "revert": Case(source="later", more={"step": "edited", "before": "base"}, names="edited"),
    "reward": Case({"max_steps": 2}, data="pairs", judges=True),
}
MORE = {
    "finetune full": Case({"max_steps": 3, "method": "full"}, data="chat"),
    "finetune sharded": Case({"max_steps": 3, "method": "full"}, source="sharded", data="prompt"),
    "finetune pissa": Case({"max_steps": 2, "method": "pissa"}, data="text", fits="base"),
    "finetune ia3": Case({"max_steps": 2, "method": "ia3"}, data="text", fits="base"),
    "adapt sharded": Case({"max_steps": 2}, source="sharded", data="text"),
    "instruct packed": Case(
        {"max_steps": 2, "tuning": "full", "packing": True, "assistant_only_loss": False}, source="sharded", data="chat"
    ),
    "cast sharded": Case({"dtype": "bfloat16"}, source="sharded"),
    "prune sharded": Case({"sparsity": 0.3, "scope": "global"}, source="sharded"),
    "prune sparsegpt": Case(
        {"method": "sparsegpt", "pattern": "2:4", "num_calibration_samples": 8}, source="sharded", data="text"
    ),
    "prune heads": Case(
        {
            "method": "structured",
            "structure": "heads",
            "sparsity": 0.5,
            "importance": "activations",
            "num_calibration_samples": 8,
        },
        source="sharded",
        data="text",
    ),
    "prefer kto": Case({"max_steps": 2, "method": "kto", "tuning": "full"}, source="sharded", data="labels"),
    "prefer orpo": Case({"max_steps": 2, "method": "orpo", "beta": 0.2}, data="pairs", fits="base"),
    "reward lora": Case({"max_steps": 2, "tuning": "lora"}, data="pairs", fits="base", judges=True),
    "reward sharded": Case({"max_steps": 2}, source="sharded", data="pairs", judges=True),
    "reinforce rloo": Case(
        {"max_steps": 2, "max_completion_length": 6, "method": "rloo", "tuning": "full"},
        more={"reward": "judge"},
        data="pairs",
    ),
    "reinforce online-dpo": Case(
        {"max_steps": 2, "max_completion_length": 6, "method": "online-dpo", "per_device_train_batch_size": 2},
        more={"reward": "judge"},
        data="pairs",
        fits="base",
    ),
    "constitute full": Case({**CONSTITUTE, "tuning": "full"}, more={"critic": "other"}, data="chat"),
    "edit memit": Case(
        {"method": "memit", "v_num_grad_steps": 2, "context_length": 1}, source="sharded", data=("facts", "text")
    ),
    "edit constrained": Case({"method": "constrained", "num_steps": 2}, data="facts"),
    "distill hidden": Case(
        {"max_steps": 2, "method": "hidden", "num_hidden_layers": 1}, more={"teacher": "base"}, data="prompt"
    ),
    "distill gkd": Case(
        {"max_steps": 2, "method": "gkd", "max_new_tokens": 6}, source="sharded", more={"teacher": "base"}, data="chat"
    ),
    "merge dare-ties": Case(
        {"method": "dare-ties", "density": (0.5,)}, more={"others": "other", "base": "base"}, source="other"
    ),
    "merge passthrough": Case({"method": "passthrough", "slices": ("0:0-2", "1:1-2")}, more={"others": "other"}),
    "merge mergekit": Case({"method": "mergekit", "mergekit": MERGEKIT}, source="other", more={"base": "base"}),
    "quantize sharded": Case({"method": "int8", "symmetric": False}, source="sharded"),
    "quantize gptq": Case(
        {"method": "gptq", "group_size": 32, "num_calibration_samples": 8}, source="sharded", data="text"
    ),
    "quantize gguf": Case({"method": "gguf", "gguf_type": "Q5_1"}),
}
ALL = {**CASES, **MORE}

HALF_WAY = '''"""Imported when Python starts: a run is killed as soon as it says that half of its work is done."""

import os
import signal

import trl.trainer.sft_trainer  # Once for all of the runs, since it takes long.
from mreg.registry.transform import Progress

make = Progress.__init__


def die_half_way(self, done, total, note=""):
    make(self, done, total, note)
    if note != "loading" and 2 * done >= total:
        os.kill(os.getpid(), signal.SIGKILL)


Progress.__init__ = die_half_way
'''


@pytest.fixture(scope="module")
def another_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(state=tmp_path_factory.mktemp("another")) as engine:
        yield engine


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, stock: Stock) -> Iterator[Registry]:
    """A registry of the stock, in which no run gets further than half-way."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(HALF_WAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
        with LocalEngine(state=site / "state") as engine:
            registry = Registry.init(site / "registry", engine=engine)
            for model in ("base", "other", "sharded", "judge"):
                registry.import_model(getattr(stock, model), ref=model)
            registry.import_model(stock.adapter, base="base", ref="adapter")
            registry.record_version(stock.edited, transform="my-edit", source="base", ref="edited")
            registry.record_version(stock.later, transform="my-edit", source="edited", ref="later")
            yield registry


@pytest.fixture(scope="module")
def untouched(stock: Stock) -> dict[str, str]:
    """What the inputs were before anything ran here."""
    return tree(stock.data)


@pytest.fixture(scope="module")
def once(run: Run, stock: Stock) -> Callable[[str], Ran]:
    """Each case run once, whoever asks."""
    return functools.cache(lambda name: call(run, stock, name))


def call(run: Run, stock: Stock, name: str, **on: Any) -> Ran:
    case = ALL[name]
    more = {role: getattr(stock, model) for role, model in case.more.items()}
    params = {**case.params, **({"version": case.names} if case.names else {})}
    return run(name.split()[0], getattr(stock, case.source), more=more, data=rows_of(case, stock), **params, **on)


def rows_of(case: Case, stock: Stock) -> list[Path]:
    names = (case.data,) if isinstance(case.data, str) else case.data or ()
    return [stock.data / f"{name}.jsonl" for name in names]


def test_every_transform_has_a_case():
    ours = sorted(path.stem for path in _catalog.HERE.glob("[!_]*.py"))

    assert ours == sorted(CASES)


@pytest.mark.parametrize("name", ALL)
def test_a_run_leaves_its_inputs_alone(name: str, untouched: dict[str, str], once: Callable[[str], Ran], stock: Stock):
    ran = once(name)

    assert ran.outcome.error is None
    assert untouched == tree(stock.data)


@pytest.mark.parametrize("name", ALL)
def test_the_output_loads_and_computes(name: str, once: Callable[[str], Ran], stock: Stock):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    output, fits = once(name).output, ALL[name].fits
    folder = getattr(stock, fits) if fits else output

    if ALL[name].judges:
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, **({"num_labels": 1} if fits else {}))
        assert 1 == model.config.num_labels
    else:
        gguf = next((path.name for path in folder.glob("*.gguf")), None)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf)
    if fits:
        model = PeftModel.from_pretrained(model, output)
    with torch.no_grad():
        assert model(torch.arange(10, 30)[None]).logits.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_two_processes_give_the_same_files(
    name: str, once: Callable[[str], Ran], run: Run, stock: Stock, another_engine: LocalEngine
):
    other = call(run, stock, name, on=another_engine)

    assert tree(once(name).output) == tree(other.output)
    assert once(name).outcome.facts == other.outcome.facts


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_half_way_is_recorded_as_failed_and_leaves_no_version(
    name: str, killed: Registry, stock: Stock
):
    case, before, versions = CASES[name], int(killed.events()[-1]["seq"]), killed.versions()
    asked = [given.role for given in _catalog.find(name).inputs if not given.derived]
    others = [(role, model) for role, model in case.more.items() if role in asked]
    data = rows_of(case, stock)
    params = {**case.params, **({"version": killed.version(case.names).digest} if case.names else {})}

    with pytest.raises(TransformFailed, match=f"{name} failed: killed by signal 9"):
        killed.apply(name, case.source, others=others, data=data, ref="never", threads=1, **params)

    runs = [event for event in killed.events(before) if event["kind"].startswith("run-")]
    assert ["run-started", "run-failed"] == [event["kind"].partition("/")[0] for event in runs]
    assert runs[0]["payload"]["run"] == runs[1]["payload"]["run"]
    assert versions == killed.versions()
    assert "never" not in killed.refs()
    assert [] == list((killed.root / "tmp").iterdir())
    findings = killed.fsck()
    assert ((), ()) == (findings.problems, findings.notes)


@pytest.mark.parametrize("name", ALL)
def test_everybody_may_read_the_files_of_an_output(name: str, once: Callable[[str], Ran]):
    files = [path for path in once(name).output.rglob("*") if path.is_file()]

    assert {0o644} == {path.stat().st_mode & 0o777 for path in files}


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].source == "sharded" and not ALL[name].judges])
def test_shards_stay_as_they_are(name: str, once: Callable[[str], Ran], stock: Stock):
    def layout(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("model*"))

    assert layout(stock.sharded) == layout(once(name).output)


@pytest.mark.parametrize("name", CASES)
def test_every_option_has_a_description(name: str):
    transform = _catalog.find(name)

    assert transform.summary.endswith((".", ")"))
    assert [] == [field for field, info in transform.params.model_fields.items() if not info.description]
    assert [] == [given.role for given in transform.inputs if not given.help]
