"""Loading versions as models: what an adapter of any kind computes on its base is what it computed when it was made."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry import Registry
from mreg.registry.store.objects import DamagedObject
from mreg.transforms._adapter import save_adapter
from mreg.transforms._bottleneck import add_bottlenecks, save_bottlenecks
from mreg.transforms._engine import LocalEngine

from tests import tiny

Make = Callable[[Path, Path], Any]


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_same_model(expected: Any, actual: Any) -> None:
    """Every bit of the weights, the config and the defaults of generation."""
    ours, theirs = expected.state_dict(), actual.state_dict()
    assert ours.keys() == theirs.keys()
    assert {name: tensor.dtype for name, tensor in ours.items()} == {n: tensor.dtype for n, tensor in theirs.items()}
    assert [] == [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    assert told(expected.config) == told(actual.config)
    assert told(expected.generation_config) == told(actual.generation_config)
    assert type(expected) is type(actual)


def told(config: Any) -> dict[str, Any]:
    said: dict[str, Any] = config.to_dict()
    return {name: value for name, value in said.items() if name != "_name_or_path"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(state=tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@pytest.fixture
def registry(tmp_path: Path, engine: LocalEngine) -> Registry:
    return Registry.init(tmp_path / "registry", engine=engine)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model(tmp_path_factory.mktemp("stock") / "base", layers=1, dtype="float32")


def bottleneck(base: Path, folder: Path) -> Any:
    """The base with bottlenecks that are not zero, saved as an adapter."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    add_bottlenecks(model, width=3, target_modules=["o_proj", "down_proj"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    save_bottlenecks(model, folder)
    return model


def with_peft(model: Any, folder: Path, config: Any) -> Any:
    from peft import get_peft_model

    fitted = get_peft_model(model, config)
    save_adapter(fitted, folder)
    return fitted


def low_rank(base: Path, folder: Path) -> Any:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    return with_peft(AutoModelForCausalLM.from_pretrained(base), folder, config)


def classifier(base: Path, folder: Path) -> Any:
    """An adapter that brings a head for three classes."""
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    return with_peft(model, folder, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))


def prompt(base: Path, folder: Path) -> Any:
    from peft import PromptTuningConfig
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return with_peft(AutoModelForCausalLM.from_pretrained(base), folder, config)


@pytest.mark.parametrize("make", [bottleneck, low_rank, classifier, prompt])
def test_an_adapter_of_any_kind_computes_what_it_did(registry: Registry, base: Path, tmp_path: Path, make: Make):
    torch.manual_seed(0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    made = make(base, folder).eval()
    registry.import_model(base, ref="base")
    adapter = registry.import_model(folder, base="base").version

    loaded = registry.load(adapter)

    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.equal(made(ids).logits, loaded(ids).logits)
        if make is not classifier:
            last = [model(ids).logits[:, -1] for model in (loaded, registry.load("base"))]
            assert (last[0] - last[1]).abs().max() > 0.01
    assert made.config.id2label == loaded.config.id2label
    assert not loaded.training
    assert [] == list((registry.root / "tmp").iterdir())


def test_options_reach_the_base_of_an_adapter(registry: Registry, base: Path, tmp_path: Path):
    registry.import_model(base, ref="base")
    bottleneck(base, tmp_path)
    adapter = registry.import_model(tmp_path, base="base").version

    loaded: Any = registry.load(adapter, dtype=torch.bfloat16)

    assert {torch.bfloat16} == {parameter.dtype for parameter in loaded.parameters()}


def test_a_model_that_is_only_gguf_is_loaded_from_it(registry: Registry, base: Path):
    registry.import_model(base, ref="base")
    quantized = registry.apply("quantize", source="base", method="gguf", gguf_type="F32").version

    ids = torch.arange(20)[None]
    expected, actual = (registry.load(version)(ids).logits for version in ("base", quantized))
    assert torch.allclose(expected, actual, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": torch.bfloat16}, {"dtype": "float16"}, {"device_map": "cpu"}, {"use_cache": False}],
    ids=["as it is", "dtype", "name of a dtype", "device_map", "use_cache"],
)
@pytest.mark.parametrize("files", [{"tied": True}, {"tied": False, "max_shard_size": "100KB"}], ids=["tied", "shards"])
def test_a_model_from_the_store_is_the_one_from_a_checkout(
    registry: Registry, tmp_path: Path, files: dict[str, Any], options: dict[str, Any]
):
    from transformers import LlamaForCausalLM

    model = tiny.make_model(tmp_path / "model", layers=1, dtype="float32", **files)
    registry.import_model(model, ref="base")

    loaded: Any = registry.load("base", **options)

    assert_same_model(LlamaForCausalLM.from_pretrained(model, **options), loaded)
    assert files["tied"] is (loaded.lm_head.weight is loaded.model.embed_tokens.weight)


def test_defaults_of_generation_are_found_where_there_is_no_file_of_them(registry: Registry, tmp_path: Path):
    from transformers import LlamaForCausalLM

    model = tiny.make_model(tmp_path / "model", layers=1)
    (model / "generation_config.json").unlink()
    registry.import_model(model, ref="base")

    assert_same_model(LlamaForCausalLM.from_pretrained(model), registry.load("base"))


def test_weights_are_loaded_without_a_file_between(registry: Registry, base: Path, tmp_path: Path):
    bottleneck(base, tmp_path)
    registry.import_model(base, ref="base")
    adapter = registry.import_model(tmp_path, base="base").version
    size = (base / "model.safetensors").stat().st_size
    assert size > 2 * (tmp_path / "adapter_model.safetensors").stat().st_size

    with no_file_larger_than(size // 2):
        model, adapted = registry.load("base"), registry.load(adapter)

    assert 0 < sum(parameter.numel() for parameter in model.parameters())
    assert model.config.hidden_size == adapted.config.hidden_size


def test_what_is_loaded_may_be_trained_and_the_store_stays_as_it_was(registry: Registry, base: Path):
    version = registry.import_model(base, ref="base").version
    model = registry.load("base")

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()

    assert not any(map(registry.store.verify, registry.manifest(version).objects()))


@pytest.mark.parametrize("folder", ["disk", "cpu"])
def test_layers_may_be_put_elsewhere(registry: Registry, base: Path, tmp_path: Path, folder: str):
    registry.import_model(base, ref="base")
    places = {"model.layers": folder, "model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}

    spread = registry.load("base", device_map={**places, "lm_head": "cpu"}, offload_folder=str(tmp_path / "offload"))

    ids = torch.arange(20)[None]
    assert torch.equal(registry.load("base")(ids).logits, spread(ids).logits)


def test_a_quantized_model_from_the_store_is_the_one_from_a_checkout(registry: Registry, base: Path, tmp_path: Path):
    from transformers import LlamaForCausalLM

    registry.import_model(base, ref="base")
    version = registry.apply("quantize", source="base", method="int8").version
    registry.check_out(version, tmp_path / "out")

    loaded = registry.load(version)

    assert_same_model(LlamaForCausalLM.from_pretrained(tmp_path / "out"), loaded)
    assert "compressed-tensors" == loaded.config.quantization_config.quant_method


def test_a_model_of_torchao_is_loaded_by_what_stands_in_the_metadata(registry: Registry, base: Path, tmp_path: Path):
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import LlamaForCausalLM, TorchAoConfig

    how = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantized: Any = LlamaForCausalLM.from_pretrained(base, quantization_config=how)
    quantized.save_pretrained(tmp_path)
    version = registry.import_model(tmp_path).version

    ids = torch.arange(20)[None]
    assert torch.equal(quantized(ids).logits, registry.load(version)(ids).logits)


def test_a_damaged_tensor_is_never_loaded(registry: Registry, base: Path):
    version = registry.import_model(base, ref="base").version
    path = registry.store.path(largest(registry, version))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)

    with pytest.raises(DamagedObject):
        registry.load("base")
    with pytest.raises(DamagedObject):
        list(registry.tensors("base").values())


def largest(registry: Registry, version: Any) -> Any:
    return max(registry.manifest(version).tensors(), key=lambda tensor: tensor.size).digest


def test_tensors_are_read_by_name_without_a_model(registry: Registry, tmp_path: Path):
    from safetensors.torch import load_file

    model = tiny.make_model(tmp_path / "model", layers=1)
    registry.import_model(model, ref="base")

    tensors = registry.tensors("base")

    expected = load_file(model / "model.safetensors")
    assert expected.keys() == tensors.keys()
    assert len(expected) == len(tensors)
    for name, array in tensors.items():
        assert ("bfloat16", tuple(expected[name].shape)) == (array.dtype.name, array.shape)
        assert torch.equal(expected[name].view(torch.int16), torch.from_numpy(array.view("int16")))
    with pytest.raises(KeyError):
        tensors["model.none.weight"]
