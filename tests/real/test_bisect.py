"""The fine-tune that spoiled a real model is found in a chain by its perplexity, with few evaluations."""

from __future__ import annotations

from pathlib import Path

from mreg.registry import Registry
from mreg.registry.chains import opinions
from mreg.registry.measures.judging import Bench

from tests.tiny import write_rows

METRIC = "perplexity(general, max_rows=24, max_length=128)"


def test_the_harmful_fine_tune_is_found_by_perplexity(
    smollm2: Path, train_text: Path, held_out_text: Path, tmp_path: Path
) -> None:
    hard = write_rows(tmp_path / "hard.jsonl", [{"text": f"zq {n} zq {n} xk {n * 7} " * 12} for n in range(16)])
    trained = {"per_device_train_batch_size": 2, "max_length": 64, "dtype": "float32", "threads": 2}
    with Registry.init(tmp_path) as registry:
        versions = [registry.import_model(smollm2).version]
        registry.add_dataset(held_out_text, name="general")

        def then(transform: str, **params: object) -> None:
            versions.append(registry.apply(transform, versions[-1], **{"threads": 2, **params}).version)

        then("prune", sparsity=0.02)
        then("adapt", data=[train_text], max_steps=2, learning_rate=1e-6, **trained)
        then("prune", sparsity=0.04)
        then("finetune", data=[hard], method="full", learning_rate=1e-3, max_steps=8, **trained)
        then("prune", sparsity=0.06)
        then("cast", dtype="float32")
        bench = Bench(threads=2)
        before = registry.events()[-1]["seq"]
        question = opinions.by_metric(
            registry, METRIC, below=f"1.2 * {versions[0]}", above=None, good=versions[:1], bench=bench
        )
        found = registry.bisect(versions[:1], versions[-1], question)
        measured = [one for one in registry.events(before) if one["kind"].startswith("evaluation-recorded")]

        assert (versions[4],) == found.first_bad
        assert "finetune" == registry.recipe(versions[4])[-1].transform
        assert len(measured) <= 1 + 3, "the bound's own, and three of six suspects"
        values = {score.version: score.value for score in registry.scores(*versions)}
        print(
            {name: round(value or 0, 2) for name, value in values.items()}, [str(one.version) for one in found.tested]
        )
