"""A guard stops a name from moving to a real model that forgot, and says by how much."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.measures.judging import GuardFailed

from tests.tiny import write_rows

GUARD = "perplexity(general, max_rows=24, max_length=128) <= 1.05 * source"


def test_a_guard_stops_a_name_from_moving_to_a_model_that_forgot(
    smollm2: Path, held_out_text: Path, tmp_path: Path
) -> None:
    hard = write_rows(tmp_path / "hard.jsonl", [{"text": f"zq {n} zq {n} xk {n * 7} " * 12} for n in range(16)])
    with Registry.init(tmp_path) as registry:
        base = registry.import_model(smollm2, ref="prod").version
        registry.add_dataset(held_out_text, name="general")
        registry.set_policy("prod", [GUARD])
        options = {"method": "full", "learning_rate": 1e-3, "max_steps": 8, "per_device_train_batch_size": 2}
        done = registry.apply(
            "finetune",
            base,
            data=[hard],
            guards=[GUARD],
            ref="prod",
            threads=2,
            dtype="float32",
            **options,
            max_length=64,
        )
        (judged,) = done.judged
        (scored,) = registry.scores(base)
        with pytest.raises(GuardFailed) as refused:
            registry.set_ref("prod", done.version)
        told = r"perplexity\(general.*\) is (\S+), (\S+) . that of v1 \((\S+)\); at most 1.05 . is allowed"
        said = re.search(told, str(refused.value))

        assert said is not None
        assert judged.value is not None
        assert judged.reference == scored.value
        assert scored.value is not None
        # It knew English, and hardly does any more.
        assert 5 < scored.value < 60
        assert judged.value > 1.5 * scored.value
        assert pytest.approx(judged.value / scored.value, rel=0.01) == float(said[2])
        assert done.refused is not None
        assert base.digest == registry.refs()["prod"].digest
        assert (GUARD_SPELLED,) == registry.set_ref("prod", done.version, force=True).forced


GUARD_SPELLED = "perplexity(general, max_length=128, max_rows=24) <= 1.05 * source"
