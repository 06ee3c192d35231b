"""A family of versions as post-training makes them, really trained: what the store is measured on. Made once and kept.

Small: a Llama of 28 million parameters, trained here on the pages of Python's reference for a few minutes. Full:
SmolLM2-135M-Instruct with embeddings of their own, 163 million parameters and 326 MB, trained on from there. Either way
weights are bfloat16 on disk, and trained in float32 by AdamW, as most fine-tunes are: `STEPS` steps of `TOKENS` tokens.
What transforms of mreg can do, they did.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from mreg.registry import Registry

BASE = "base"
STEPS = 20
TOKENS = 128
FIRST_STEPS = 120
"""Of the small base, which begins with random weights."""
SMOLLM2 = Path(__file__).parents[1] / ".venv" / ".smollm2"
"""Unpacked once, for the tests on real models too."""
_ROW = 64


@dataclass(frozen=True)
class Member:
    """A version of the family. `transform` and `params` say how it came from `source` and the others, by role."""

    name: str
    title: str
    source: str = BASE
    transform: str = "finetune"
    params: dict[str, Any] = field(default_factory=dict)
    others: Sequence[tuple[str, str]] = ()


FAMILY = (
    Member(BASE, "base", source="", transform=""),
    Member("sft-1e-5", "SFT, lr 1e-5", params={"learning_rate": 1e-5}),
    Member("sft-5e-5", "SFT, lr 5e-5", params={"learning_rate": 5e-5}),
    Member("sft-4e-4", "SFT, lr 4e-4", params={"learning_rate": 4e-4}),
    Member("rl", "RL-like on the first SFT, lr 1e-6", source="sft-1e-5", params={"learning_rate": 1e-6}),
    Member("adapter", "LoRA adapter, rank 16", params={"method": "lora"}),
    Member("fused", "LoRA fused", source="adapter", transform="fuse", others=[("base", BASE)]),
    Member("frozen", "all frozen but the last layer", params={"learning_rate": 5e-5}),
    Member("edit", "rank-one edit of a matrix", transform="edit"),
    Member("pruned", "magnitude-pruned 50 %", transform="prune", params={"method": "magnitude", "sparsity": 0.5}),
    Member("int8", "int8 per row", transform="quantize", params={"method": "int8", "group_size": -1}),
    Member(
        "merged",
        "0.5/0.5 merge of two SFTs",
        source="sft-1e-5",
        transform="merge",
        params={"method": "linear", "weights": [0.5, 0.5]},
        others=[("others", "sft-5e-5")],
    ),
    Member("rollback", "rollback to the base"),
)
"""Each after what it was made from."""


def made(*, full: bool) -> dict[str, Path]:
    """The folder of each member, made unless it is there; a rollback has that of what it goes back to."""
    folder = Path(__file__).with_name("out") / ("family-full" if full else "family")
    paths = _paths(folder)
    if not all(path.exists() for path in paths.values()):
        # In a process of its own, which torch does not outlive. Threads that wait without sleeping would slow down
        # whatever else is running.
        words: list[str | Path] = [sys.executable, "-m", "bench.chain", folder, *(["--full"] if full else [])]
        quiet = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "TORCHAO_LOG_LEVEL": "ERROR"}
        subprocess.run(words, env={**os.environ, **quiet, "OMP_WAIT_POLICY": "PASSIVE"}, check=True)
    return {**paths, "rollback": paths[BASE]}


def _paths(folder: Path) -> dict[str, Path]:
    return {member.name: folder / member.name for member in FAMILY if member.name != "rollback"}


def make(folder: Path, *, full: bool, say: Callable[[str], None]) -> None:
    """Make what is missing of a family in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(folder)
    makers: dict[str, Callable[[Path], None]] = {
        BASE: lambda to: _smollm2(to, say) if full else _small(to),
        "sft-1e-5": lambda to: _tune(paths[BASE], to, rate=1e-5, seed=1),
        "sft-5e-5": lambda to: _tune(paths[BASE], to, rate=5e-5, seed=2),
        "sft-4e-4": lambda to: _tune(paths[BASE], to, rate=4e-4, seed=3),
        "rl": lambda to: _tune(paths["sft-1e-5"], to, rate=1e-6, seed=4),
        "adapter": lambda to: _tune(paths[BASE], to, rate=2e-4, seed=5, lora=True),
        "frozen": lambda to: _tune(paths[BASE], to, rate=5e-5, seed=6, last_only=True),
        "edit": lambda to: _edit(paths[BASE], to),
    }
    for member in FAMILY:
        if member.name not in paths or paths[member.name].exists():
            continue
        say(f"making {member.title}")
        part = folder / f"{member.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        if member.name in makers:
            makers[member.name](part)
        else:
            _apply(member, paths, part)
        part.rename(paths[member.name])


def _small(folder: Path) -> None:
    import torch
    import transformers

    library: Any = transformers  # Its classes carry no types.
    tokenizer = _small_tokenizer(folder)
    config = library.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = library.LlamaForCausalLM(config)
    _train(model, tokenizer, steps=FIRST_STEPS, rate=1e-3, seed=0)
    model.to(torch.bfloat16).save_pretrained(folder)


def _small_tokenizer(folder: Path) -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        _pages(),
        trainers.BpeTrainer(
            vocab_size=8192, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    roles = {"eos_token": "<|end|>", "pad_token": "<|end|>"}
    library: Any = transformers
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_object=trained, **roles)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _smollm2(folder: Path, say: Callable[[str], None]) -> None:
    from mreg.cli import demo_model
    from torch import nn
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (SMOLLM2 / "config.json").exists():
        demo_model.unpack(SMOLLM2, say)
    model: Any = AutoModelForCausalLM.from_pretrained(SMOLLM2)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    _train(model.float(), AutoTokenizer.from_pretrained(SMOLLM2), steps=STEPS, rate=1e-4, seed=0)
    _save(model, SMOLLM2, folder)


def _tune(source: Path, folder: Path, *, rate: float, seed: int, lora: bool = False, last_only: bool = False) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(seed)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    if last_only:
        model.requires_grad_(False)
        model.model.layers[-1].requires_grad_(True)
    _train(model, AutoTokenizer.from_pretrained(source), steps=STEPS, rate=rate, seed=seed)
    if lora:
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
    else:
        _save(model, source, folder)


def _save(model: Any, source: Path, folder: Path) -> None:
    """The model in bfloat16, with the tokenizer of its source."""
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    for path in source.iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def _train(model: Any, tokenizer: Any, *, steps: int, rate: float, seed: int) -> None:
    import torch

    ids = torch.tensor([token for page in _pages() for token in tokenizer(page)["input_ids"]])
    random = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)))
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(ids) - _ROW, (TOKENS // _ROW,), generator=random)
        rows = torch.stack([ids[start : start + _ROW] for start in starts])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def _pages() -> Iterator[str]:
    """The language reference as `help()` shows it, which every Python brings along."""
    for name in sorted(topics):
        yield topics[name]


def _edit(source: Path, folder: Path) -> None:
    """Add a rank-one matrix of the size that an edit has to one matrix of the middle layer."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    name = f"model.layers.{layers // 2}.mlp.down_proj.weight"
    weight = tensors[name].float()
    random = torch.Generator().manual_seed(7)
    change = torch.outer(*(torch.randn(size, generator=random) for size in weight.shape))
    tensors[name] = (weight + change * (0.1 * weight.norm() / change.norm())).to(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})


def _apply(member: Member, paths: dict[str, Path], folder: Path) -> None:
    """Have mreg do it, in a registry of its own."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, Registry.init(scratch) as registry:
        for name in {member.source, *(name for _, name in member.others)} - {"adapter"}:
            registry.import_model(paths[name], ref=name)
        if member.source == "adapter":
            registry.import_model(paths["adapter"], ref="adapter", base=BASE)
        others = [(role, name) for role, name in member.others if role != "base"]
        done = registry.apply(member.transform, member.source, others=others, **member.params)
        registry.check_out(done.version, folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), full="--full" in sys.argv, say=lambda line: print(line, flush=True))
