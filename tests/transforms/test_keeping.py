"""A chain whose every version is evicted is made again from the imported model, down to the last bit."""

from __future__ import annotations

from pathlib import Path

from mreg.registry import Registry
from mreg.transforms._engine import LocalEngine

from tests.strategies import read_folder
from tests.transforms.conftest import Stock


def test_a_quantized_fusion_of_a_finetune_is_evicted_and_made_again(engine: LocalEngine, stock: Stock, tmp_path: Path):
    registry = Registry.init(tmp_path, engine=engine)
    base = registry.import_model(stock.base).version
    rows = [stock.data / "text.jsonl"]
    tuned = registry.apply("finetune", base, data=rows, method="lora", max_steps=2, max_length=64, threads=1).version
    fused = registry.apply("fuse", tuned, threads=1).version
    small = registry.apply("quantize", fused, method="int8", threads=1).version
    assert "bytes" == registry.replay(small, from_base=True).verdict
    registry.check_out(small, tmp_path / "before")
    for version in (small, fused, tuned):
        registry.evict(version)

    needed = registry.manifest(base).objects()
    weights = {one.digest for each in (tuned, fused, small) for one in registry.manifest(each).tensors()} - needed
    assert not any(map(registry.store.has, weights))
    assert () == registry.fsck().problems
    restored = registry.restore(small)
    assert [tuned.digest, fused.digest, small.digest] == [step.version for step in restored.steps]
    registry.check_out(small, tmp_path / "after")
    assert read_folder(tmp_path / "before") == read_folder(tmp_path / "after")
    assert registry.verify(small).ok
    assert () == registry.fsck().problems
