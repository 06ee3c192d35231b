"""Tiny real models, adapters and datasets, made in a folder within a second or two each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TEXT = """The registry keeps every version of a model and every event that made it. A model is trained on data, and the
data is kept with a digest. When somebody asks where a version came from, the log gives the answer. A merge takes two
models and gives one. A pruned model has zeros where the small weights were. A quantized model stores its weights in a
few bits. An adapter fits one base and no other. The lineage is a graph, and a graph can be walked from the leaf to the
root. What is the capital of France? The capital of France is Paris. What is the capital of Italy? The capital of Italy
is Rome. What is the capital of Spain? The capital of Spain is Madrid. One two three four five six seven eight nine."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Peru": "Lima", "Cuba": "Havana"}


def make_model(
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    max_shard_size: str = "5GB",
    layers: int = 2,
    tied: bool = True,
    chat: bool = True,
    hidden_size: int = 64,
) -> Path:
    """A Llama of some 100,000 parameters with random weights, and the tokenizer that goes with it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(folder, chat=chat)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def make_tokenizer(folder: Path, *, chat: bool = True) -> Any:
    """A byte-level BPE of at most 400 tokens, trained on TEXT and saved into `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, **roles)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_adapter(folder: Path, base: Path, *, seed: int = 1, **options: Any) -> Path:
    """A LoRA adapter of rank 4 for `base`, its weights random and not zero; `options` go to `LoraConfig`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def make_changed(folder: Path, model: Path, *names: str) -> Path:
    """A copy of a model in which one is added to the tensors of these names; the other files and the header stay."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    shutil.copytree(model, folder)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  no mapping
            metadata = opened.metadata()
        changed = {name: tensor + 1 if name in names else tensor for name, tensor in tensors.items()}
        save_file(changed, file, metadata)
        file.chmod(0o644)
    return folder


def make_judge(folder: Path, base: Path) -> Path:
    """A reward model with the body of `base`, a random head, and its tokenizer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_rows(copies: int = 4) -> list[dict[str, Any]]:
    """Sentences of TEXT as `text`."""
    return [{"text": f"{sentence.strip()}."} for sentence in TEXT.split(".") if sentence.strip()] * copies


def prompt_rows() -> list[dict[str, Any]]:
    """Capitals as `prompt` and `completion`."""
    return [
        {"prompt": f"What is the capital of {land}?", "completion": f" The capital of {land} is {city}."}
        for land, city in CAPITALS.items()
    ]


def fact_rows() -> list[dict[str, Any]]:
    """Capitals that are to be others, as `subject`, `prompt` and `target`."""
    return [
        {"subject": land, "prompt": "The capital of {} is", "target": "Rome", "neighbourhood": ["One two three"]}
        for land in ("France", "Spain")
    ]


def chat_rows() -> list[dict[str, Any]]:
    """Capitals as `messages`."""
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"].strip()},
            ]
        }
        for row in prompt_rows()
    ]


def pair_rows(*, held_out: bool = False) -> list[dict[str, Any]]:
    """The completions of `prompt_rows` preferred to counting; the held-out ones are of other countries."""
    rows = prompt_rows()
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": f" One two three {row['completion'].split()[-1]}",
        }
        for row in (rows[4:] if held_out else rows[:4])
    ]


def label_rows() -> list[dict[str, Any]]:
    """The halves of `pair_rows`, each with its label."""
    return [
        {"prompt": row["prompt"], "completion": row[half], "label": half == "chosen"}
        for half in ("chosen", "rejected")
        for row in pair_rows()
    ]


COLOURS = ("red", "green", "blue", "black", "white")
ANIMALS = ("cat", "dog", "horse", "cow", "bird")


def colour_rows(*, held_out: bool = False) -> list[dict[str, Any]]:
    """Sentences as `text`, with a `label` that says whether a colour or an animal is in it."""
    pairs = [(word, word in COLOURS) for word in (*COLOURS, *ANIMALS)]
    shown = ("this is a", "he saw the", "i like the", "he is the", "i saw this", "this saw a", "he like a")
    starts = ("he saw a", "this is the") if held_out else shown
    return [
        {"text": f"{start} {word}", "label": "colour" if colour else "animal"}
        for start in starts
        for word, colour in pairs
    ]


def tagged_rows(*, held_out: bool = False) -> list[dict[str, Any]]:
    """The words of `colour_rows` as `tokens`, each with its tag in `labels`."""
    tags = {**dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(ANIMALS, "animal")}
    rows = [row["text"].split() for row in colour_rows(held_out=held_out)]
    return [{"tokens": words, "labels": [tags.get(word, "none") for word in words]} for words in rows]


def make_encoder(folder: Path) -> Path:
    """A BERT of two layers with random weights, and a WordPiece tokenizer of the words above."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = sorted(
        {word for held in (False, True) for row in colour_rows(held_out=held) for word in row["text"].split()}
    )
    pieces = [word[:3] for word in words if len(word) > 3] + [f"##{word[3:]}" for word in words if len(word) > 3]
    whole = [word for word in words if len(word) <= 3]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *whole, *pieces])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(vocab={token: number for number, token in enumerate(vocabulary)})
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        BertForMaskedLM(config).save_pretrained(folder)
    return folder
