"""`quantize`: the formats that transformers loads, errors no larger than half a step, and what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import unpack_from_int32
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams
from mreg.transforms import _catalog, _gguf
from mreg.transforms._llmcompressor import kept_on
from mreg.transforms.quantize import CALIBRATED, OPTIONS, QuantizeParams, check
from pydantic import ValidationError
from safetensors.torch import save_file

from tests import tiny
from tests.transforms.conftest import Here, Run, Stock, material, rows, tensors, tree

BITS = {"int8": 8, "int4": 4}
FEW = {"num_calibration_samples": 8, "data": "text"}
IDS = torch.arange(10, 60)[None]


def logits(folder: Path) -> torch.Tensor:
    """What plain transformers computes, in float32."""
    from transformers import AutoModelForCausalLM

    gguf = next((path.name for path in folder.glob("*.gguf")), None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def off(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """How far, relative to how large."""
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("group_size", [16, 64, -1])
@pytest.mark.parametrize("method", BITS)
def test_no_weight_is_off_by_more_than_half_a_step(here: Here, stock: Stock, method: str, group_size: int):
    before = tensors(stock.sharded)
    after = tensors(here("quantize", stock.sharded, method=method, group_size=group_size)[0])

    for packed in [name for name in after if name.endswith("weight_packed")]:
        module = packed.removesuffix("_packed")
        shape, scale = after[f"{module}_shape"], after[f"{module}_scale"]
        steps = unpack_from_int32(after[packed], BITS[method], torch.Size(shape.tolist())).float()
        scale = scale.repeat_interleave(steps.shape[1] // scale.shape[1], dim=1)
        # The largest weight of a group lies half a step beyond the last integer on the positive side.
        assert ((steps * scale - before[module]).abs() <= 0.5001 * scale).all(), module


def test_transformers_computes_with_the_weights_that_were_stored(here: Here, stock: Stock):
    output, _ = here("quantize", stock.sharded, method="int8", group_size=32)

    expected, actual = logits(stock.sharded), logits(output)
    assert (expected - actual).abs().max() < 0.05 * expected.abs().max()


def test_groups_with_a_zero_point_of_their_own_are_closer(here: Here, stock: Stock):
    _, centred = here("quantize", stock.base, method="int4")
    _, shifted = here("quantize", stock.base, method="int4", symmetric=False)

    assert shifted["mean_relative_error"] < centred["mean_relative_error"]


def test_a_group_of_zeros_stays_zero(here: Here, stock: Stock, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    hollow = shutil.copytree(stock.base, tmp_path / "hollow")
    held = tensors(hollow)
    held["model.layers.0.mlp.up_proj.weight"].zero_()
    save_file(held, hollow / "model.safetensors", {"format": "pt"})

    output, _ = here("quantize", hollow, method="int4")

    model = AutoModelForCausalLM.from_pretrained(output)
    assert model(torch.arange(5)[None]).logits.isfinite().all()
    assert 0.0 == float(model.model.layers[0].mlp.up_proj.weight.abs().max())


def test_fewer_bits_take_fewer_bytes(here: Here, stock: Stock):
    _, eight = here("quantize", stock.base, method="int8")
    _, four = here("quantize", stock.base, method="int4")

    assert four["bytes_after"] < eight["bytes_after"] < eight["bytes_before"] == four["bytes_before"]


def test_the_config_names_the_format_and_the_layers_left_alone(here: Here, stock: Stock):
    output, _ = here("quantize", stock.sharded, method="int4", ignore=("lm_head", "re:.*down_proj"))

    told = json.loads((output / "config.json").read_text())["quantization_config"]
    assert ("compressed-tensors", "pack-quantized") == (told["quant_method"], told["format"])
    assert ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"] == sorted(told["ignore"])


def test_the_index_names_every_tensor_that_is_there(here: Here, stock: Stock):
    output, facts = here("quantize", stock.sharded, method="int4")

    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert sorted(tensors(output)) == sorted(index["weight_map"])
    assert facts["bytes_after"] == index["metadata"]["total_size"]


def test_groups_that_do_not_divide_the_columns_are_refused(run: Run, stock: Stock):
    ran = run("quantize", stock.base, method="int4", group_size=48)

    assert (ran.outcome.error or "").startswith("groups of 48 do not divide the 128 columns of model.layers.0.mlp.down")
    assert "use a group size of 32" in (ran.outcome.error or "")


def test_a_group_of_nothing_is_refused(stock: Stock):
    with pytest.raises(BadParams, match="a group of 0 weights"):
        check(QuantizeParams(group_size=0), (material(stock.base),), ())


def test_quantizing_twice_is_refused(here: Here, stock: Stock):
    quantized, _ = here("quantize", stock.base)

    with pytest.raises(Refused, match="is quantized already \\(compressed-tensors\\)"):
        check(QuantizeParams(), (material(quantized),), ())


@pytest.mark.parametrize(
    ("method", "options", "most"),
    [
        ("gptq", {"bits": 4, "group_size": 32, **FEW}, 0.35),
        ("gptq", {"bits": 8, "group_size": -1, "symmetric": False, "act_order": False, **FEW}, 0.05),
        ("awq", {"group_size": 16, "n_grid": 3, **FEW}, 0.35),
        ("smoothquant", FEW, 0.05),
        ("dynamic-int8", {}, 0.05),
        ("fp8", {}, 0.15),
    ],
)
@pytest.mark.parametrize("source", ["base", "sharded"])
def test_what_is_stored_computes_nearly_the_same(
    here: Here, stock: Stock, source: str, method: str, options: dict[str, Any], most: float
):
    original = getattr(stock, source)
    output, _ = here("quantize", original, method=method, **options)

    assert 0 < off(logits(original), logits(output)) < most


def test_gptq_loses_less_of_what_comes_out_than_rounding_to_the_nearest(here: Here, stock: Stock):
    # Of a quantized matrix, GPTQ is further from the weights and nearer to the outputs on what it was calibrated on.
    _, nearest = here("quantize", stock.base, method="int4", group_size=32)
    _, gptq = here("quantize", stock.base, method="gptq", group_size=32, **FEW)

    assert gptq["mean_output_error"] < nearest["mean_relative_error"] < gptq["mean_relative_error"]


def test_the_error_of_the_outputs_is_that_of_the_layers(here: Here, stock: Stock):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, facts = here(
        "quantize", stock.sharded, method="gptq", group_size=32, num_calibration_samples=1, data="text"
    )

    # The first layer of all gets the same inputs in both models.
    first = "model.layers.0.self_attn.q_proj"
    text = json.loads((stock.data / "text.jsonl").read_text().splitlines()[0])["text"]
    ids = AutoTokenizer.from_pretrained(stock.sharded)(text, return_tensors="pt").input_ids
    told: list[torch.Tensor] = []
    for folder in (stock.sharded, output):
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        model.get_submodule(first).register_forward_hook(lambda module, inputs, out: told.append(out.detach()))
        model(ids)
    assert pytest.approx(off(*told), rel=1e-3) == facts["output_errors"][f"{first}.weight"]


def test_every_matrix_has_its_error(here: Here, stock: Stock):
    _, facts = here("quantize", stock.base, method="fp8")

    errors = facts["relative_errors"]
    assert 14 == facts["matrices"] == len(errors)
    assert facts["worst_relative_error"] == errors[facts["worst_matrix"]] == max(errors.values())


@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant"])
def test_other_files_and_other_tensors_stay_as_they_are(here: Here, stock: Stock, method: str):
    output, _ = here("quantize", stock.base, method=method, ignore=("lm_head", "re:.*mlp.*"), **FEW)

    files = {"config.json", "model.safetensors"}
    same = lambda folder: {path: digest for path, digest in tree(folder).items() if path not in files}  # noqa: E731
    assert same(stock.base) == same(output)
    before, after = tensors(stock.base), tensors(output)
    kept = {name for name in before if name in after and before[name].equal(after[name])}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= kept
    assert (method == "gptq") == ("model.layers.1.input_layernorm.weight" in kept)


def test_the_inputs_of_layers_are_rounded_where_the_method_says_so(here: Here, stock: Stock):
    told = {
        method: json.loads((here("quantize", stock.base, method=method)[0] / "config.json").read_text())
        for method in ("int8", "dynamic-int8", "fp8")
    }

    groups = {method: config["quantization_config"]["config_groups"]["group_0"] for method, config in told.items()}
    assert groups["int8"]["input_activations"] is None
    assert ("int", True, "token") == tuple(groups["dynamic-int8"]["input_activations"][key] for key in KEYS)
    assert ("float", True, "token") == tuple(groups["fp8"]["input_activations"][key] for key in KEYS)


KEYS = ("type", "dynamic", "strategy")


def test_llmcompressor_works_on_the_device_of_the_job_whatever_else_there_is(monkeypatch: pytest.MonkeyPatch):
    import torch
    from llmcompressor.pipelines.sequential import pipeline

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    alone = pipeline.get_main_device()
    with kept_on("cpu"):
        kept = pipeline.get_main_device()

    assert ["cuda", "cpu", "cuda"] == [one.type for one in (alone, kept, pipeline.get_main_device())]


def test_a_run_promises_what_its_method_can_keep():
    promised = {method: _catalog.find("quantize").promised({"method": method}) for method in OPTIONS}

    assert set(CALIBRATED) == {method for method, promise in promised.items() if promise == "same-machine"}
    assert {"gptq", "awq", "smoothquant"} == set(CALIBRATED)


@pytest.mark.parametrize("kind", _gguf.TYPES)
def test_gguf_is_read_back_as_the_same_model(here: Here, stock: Stock, kind: str):
    from gguf import GGUFReader

    output, facts = here("quantize", stock.sharded, method="gguf", gguf_type=kind)

    most = {"F32": 1e-6, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 4e-2}.get(kind, 0.4)
    reader = GGUFReader(output / f"model-{kind}.gguf")
    assert off(logits(stock.sharded), logits(output)) < most
    assert kind == {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}["blk.1.ffn_down.weight"]
    assert facts["bytes_after"] == sum(tensor.n_bytes for tensor in reader.tensors)


def test_queries_and_keys_lie_in_gguf_as_llama_cpp_turns_them(here: Here, stock: Stock):
    from gguf import GGUFReader

    output, _ = here("quantize", stock.sharded, method="gguf", gguf_type="F32")

    # Its rotation takes rows 2i and 2i + 1 of a head together, that of transformers rows i and i + half a head.
    read = {tensor.name: tensor.data for tensor in GGUFReader(output / "model-F32.gguf").tensors}
    query = tensors(stock.sharded)["model.layers.0.self_attn.q_proj.weight"].reshape(4, 16, 64)
    stored = torch.tensor(read["blk.0.attn_q.weight"]).reshape(4, 16, 64)
    assert all(stored[:, 2 * i].equal(query[:, i]) and stored[:, 2 * i + 1].equal(query[:, i + 8]) for i in range(8))


def test_gguf_carries_tokenizer_and_chat_template(here: Here, stock: Stock):
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    output, _ = here("quantize", stock.base, method="gguf")

    text = "<|im_start|>The capital of Peru\n is  Lima, isn't it? 1234<|im_end|>"
    read = AutoTokenizer.from_pretrained(output, gguf_file="model-Q8_0.gguf")
    assert AutoTokenizer.from_pretrained(stock.base)(text).input_ids == read(text).input_ids
    fields = GGUFReader(output / "model-Q8_0.gguf").fields
    assert tiny.CHAT_TEMPLATE == fields["tokenizer.chat_template"].contents()
    assert "gpt-2" == fields["tokenizer.ggml.pre"].contents()


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_gguf_of_other_families_is_read_back_as_the_same_model(here: Here, stock: Stock, tmp_path: Path, family: str):
    import transformers

    folder = tmp_path / family
    shutil.copytree(stock.base, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    # Of a Qwen3, transformers takes it for granted that a head has 128 features, as all that were published have.
    config = getattr(transformers, f"{family}Config")(
        **({"head_dim": 128} if family == "Qwen3" else {}),
        vocab_size=288,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)

    output, _ = here("quantize", folder, method="gguf", gguf_type="F32")

    assert off(logits(folder), logits(output)) < 1e-5


def test_gguf_leaves_ignored_matrices_in_the_type_they_have(here: Here, stock: Stock):
    from gguf import GGUFReader

    output, _ = here("quantize", stock.base, method="gguf", gguf_type="Q4_0", ignore=("re:.*down_proj",))

    types = {t.name: t.tensor_type.name for t in GGUFReader(output / "model-Q4_0.gguf").tensors}
    assert ("BF16", "Q4_0") == (types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"])
    assert ("Q8_0", "F32") == (types["token_embd.weight"], types["blk.0.attn_norm.weight"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "int8", "damp_percent": 0.1}, "int8 has no option --damp-percent"),
        ({"method": "fp8", "group_size": 32}, "fp8 has no option --group-size; its options are none but --ignore"),
        ({"method": "int8", "bits": 4}, "int8 has 8 bits, not 4; gptq and awq have 4 or 8"),
        ({"method": "gptq", "bits": 3}, "4 or 8"),
    ],
)
def test_options_that_a_method_has_not_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        QuantizeParams.model_validate(given)


def test_the_params_of_a_recorded_step_are_valid_as_they_are():
    for method in OPTIONS:
        params = QuantizeParams(method=method)  # type: ignore[arg-type]  # it is one of them

        assert params == QuantizeParams.model_validate(params.model_dump(mode="json"))


def refusal(source: Path, *, data: int = 0, **given: Any) -> str:
    """What `check` says."""
    text = (rows(tiny.text_rows()[:data]),) if data else ()
    with pytest.raises((Refused, BadParams)) as error:
        check(QuantizeParams.model_validate(given), (material(source),), text)
    return str(error.value)


def test_what_cannot_work_is_refused_before_any_work_starts(stock: Stock):
    refused = partial(refusal, stock.base)

    assert "use a group size of 32" in refused(method="int4", group_size=48)
    assert "all 14 linear layers of base are ignored: ignore fewer" in refused(ignore=("re:.*proj",))
    assert "gptq needs data to calibrate on" in refused(method="gptq")
    assert "int8 reads no data" in refused(method="int8", data=3)
    assert "128 calibration samples are asked for and the data has 3 rows" in refused(method="awq", data=3)
    assert "the gguf package cannot write Q4_K_M: use one of F32" in refused(method="gguf", gguf_type="Q4_K_M")


def test_other_models_are_refused_where_a_method_does_not_know_them(stock: Stock, tmp_path: Path):
    other = shutil.copytree(stock.base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["PhiForCausalLM"]}))
    scaled = shutil.copytree(stock.base, tmp_path / "scaled")
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
    (scaled / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    short = shutil.copytree(stock.base, tmp_path / "short")
    (short / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    words = shutil.copytree(stock.base, tmp_path / "words")
    tokenizer = json.loads((words / "tokenizer.json").read_text())
    (words / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": {"type": "Whitespace"}}))

    assert "other is PhiForCausalLM, and awq knows" in refusal(other, method="awq", data=8, num_calibration_samples=8)
    assert "other is PhiForCausalLM: GGUF is written of LlamaForCausalLM" in refusal(other, method="gguf")
    assert "scaled scales its positions (llama3)" in refusal(scaled, method="gguf")
    assert "short attends to the last 64 tokens only" in refusal(short, method="gguf")
    assert "the tokenizer of words is none that is written" in refusal(words, method="gguf")


def test_layers_that_are_no_linear_layers_are_refused(tmp_path: Path):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(folder)

    assert "the layers of gpt2 are Conv1D" in refusal(folder, method="int8")
