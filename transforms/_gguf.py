"""A whole model as one GGUF file, as llama.cpp lays it out: names, the order of q and k, metadata and tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams, Material, Progress, Report
from mreg.transforms._architecture import is_match
from mreg.transforms._compressed import relative_error
from mreg.transforms._folder import ModelFolder, Slot

if TYPE_CHECKING:
    import torch

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""What the gguf package can write. The K- and I-quants it only reads; llama.cpp's `llama-quantize` makes them."""

BLOCK = 32
"""How many weights of a row share a scale, in each of the Q types."""

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""What llama.cpp calls the models that are written."""

# How text is cut into words before it is tokenized, by the regular expression of the tokenizer, as llama.cpp names it.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {LLAMA_3: "llama-bpe", LLAMA_3.replace("{1,3}", ""): "qwen2"}

TOKENIZER = "tokenizer.json"


def check(source: Material, kind: str, ignore: tuple[str, ...]) -> None:
    """Refuse types that the gguf package cannot write, and models and tokenizers whose layout is not known here."""
    if kind not in TYPES:
        raise BadParams(f"the gguf package cannot write {kind}", fix=f"use one of {', '.join(TYPES)}")
    name = (source.config.get("architectures") or ["no known model"])[0]
    if name not in ARCHITECTURES:
        raise Refused(f"{source.name} is {name}", fix=f"GGUF is written of {', '.join(ARCHITECTURES)}")
    rope = _rope(source.config)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise Refused(
            f"{source.name} scales its positions ({rope.get('rope_type') or rope['type']}), which is not written",
            fix="use another method, or llama.cpp's own converter",
        )
    if source.config.get("hidden_act", "silu") != "silu" or source.config.get("mlp_bias"):
        raise Refused(f"{source.name} has another MLP than llama.cpp's {ARCHITECTURES[name]}", fix="use another method")
    window = source.config.get("sliding_window") if source.config.get("use_sliding_window", True) else None
    if window and window < source.config["max_position_embeddings"]:
        raise Refused(
            f"{source.name} attends to the last {window} tokens only, which is not written", fix="use another method"
        )
    if TOKENIZER not in source.files:
        raise Refused(f"{source.name} has no {TOKENIZER}", fix="save its fast tokenizer into it and import it again")
    cut(source.name, json.loads(source.read(TOKENIZER)))
    for tensor, (_, shape) in source.tensors.items():
        chosen = type_of(Slot(tensor, "F32", shape), kind, ignore)
        if chosen and chosen.startswith("Q") and shape[1] % BLOCK:
            raise Refused(
                f"{kind} has blocks of {BLOCK}, which do not divide the {shape[1]} columns of {tensor}",
                fix="use F32, F16 or BF16, or ignore it",
            )


def type_of(slot: Slot, kind: str, ignore: tuple[str, ...]) -> str | None:
    """The type that a tensor gets: F32 unless it is a matrix, None for one that keeps the type it has.

    Embedding and output lose more than other matrices when rounded, so they get at least Q8_0.
    """
    if len(slot.shape) != 2:
        return "F32"
    module = slot.name.removesuffix(".weight")
    if any(is_match(module, pattern) for pattern in ignore):
        return None
    return "Q8_0" if kind[:2] in ("Q4", "Q5") and module.endswith(("embed_tokens", "lm_head")) else kind


def cut(name: str, tokenizer: Mapping[str, Any]) -> str:
    """What llama.cpp calls the way in which a byte-level BPE tokenizer cuts text. Raises Refused for any other."""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if tokenizer["model"]["type"] == "BPE" and "ByteLevel" in kinds:
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (known := CUTS.get(steps[0]["pattern"].get("Regex", ""))):
            return known
    raise Refused(
        f"the tokenizer of {name} is none that is written as GGUF",
        fix="GGUF is written with the byte-level BPE of GPT-2, SmolLM, Llama 3 and Qwen 2",
    )


@dataclass(frozen=True)
class Written:
    """What came of it: the relative error of each matrix, and the bytes of all tensors."""

    errors: dict[str, float]
    size: int


def write(source: ModelFolder, path: Path, kind: str, ignore: tuple[str, ...], report: Report) -> Written:
    """Write the model into `path`, one tensor after the other. The same bytes on every machine."""
    import gguf
    import numpy as np
    import torch

    config = source.config
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, architecture)
    _describe(writer, config, kind)
    _add_tokenizer(writer, source.path, config["vocab_size"])
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config["num_hidden_layers"]
    )
    planned = list(_plan(source, config, kind, ignore))
    for slot, chosen in planned:
        name = names.get_name(slot.name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise Refused(f"llama.cpp has no name for {slot.name}", fix="use another method")
        stored = gguf.quant_shape_to_byte_shape(slot.shape, chosen) if chosen.name[0] in "QB" else slot.shape
        dtype = {"F32": np.float32, "F16": np.float16}.get(chosen.name, np.uint8)
        writer.add_tensor_info(name, stored, np.dtype(dtype), int(np.prod(stored)) * np.dtype(dtype).itemsize, chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    errors: dict[str, float] = {}
    size = 0
    for done, (slot, chosen) in enumerate(planned, start=1):
        weight = source.tensor(slot.name).float()
        if architecture == "llama" and (heads := _heads(slot.name, config)):
            weight = interleaved(weight, heads)
        data = gguf.quants.quantize(np.ascontiguousarray(weight.numpy()), chosen)
        if chosen.name == "F16" and np.isinf(data).any():
            raise Refused(f"{slot.name} holds {float(weight.abs().max()):.4g}, too large for F16", fix="use BF16")
        if len(slot.shape) == 2:
            restored = torch.from_numpy(np.array(gguf.quants.dequantize(data, chosen), np.float32))
            errors[slot.name] = relative_error(weight, restored)
        writer.write_tensor_data(data)
        size += data.nbytes
        report(Progress(done, len(planned), slot.name))
    writer.close()
    return Written(errors, size)


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key matrix (or bias) as llama.cpp's `llama` rotates them.

    There position turns pairs of neighbours, in transformers the two halves of a head, so the halves are interleaved.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _heads(name: str, config: Mapping[str, Any]) -> int | None:
    if re.search(r"\.q_proj\.\w+$", name):
        return int(config["num_attention_heads"])
    return int(config.get("num_key_value_heads") or config["num_attention_heads"]) if ".k_proj." in name else None


def _plan(
    source: ModelFolder, config: Mapping[str, Any], kind: str, ignore: tuple[str, ...]
) -> Iterator[tuple[Slot, Any]]:
    from gguf import GGMLQuantizationType

    for slot in source.slots.values():
        if slot.name.endswith("rotary_emb.inv_freq") or (
            slot.name == "lm_head.weight" and config.get("tie_word_embeddings")
        ):
            continue  # Known from the config, or from the embedding.
        yield slot, GGMLQuantizationType[type_of(slot, kind, ignore) or slot.dtype.replace("F64", "F32")]


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _describe(writer: Any, config: Mapping[str, Any], kind: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_type("model")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    from gguf import SpecialVocab, TokenType

    tokenizer = json.loads((folder / TOKENIZER).read_text(encoding="utf-8"))
    tokens = {number: (token, TokenType.NORMAL) for token, number in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens", []):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    # Rows of the embedding that no token has, as a matrix of a round size has them.
    listed = [tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut(folder.name, tokenizer))
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([kind for _, kind in listed])
    special = SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)
