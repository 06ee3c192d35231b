"""Training a model to tell classes apart: one label a text, or one label a word."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, Job, Material, Report, Rows
from mreg.transforms import _ranks
from mreg.transforms._adapter import labels_of, save_head_config
from mreg.transforms._architecture import SAFE, model_class
from mreg.transforms._checkpointing import train
from mreg.transforms._folder import change_config
from mreg.transforms._rows import CLASSIFIED, TAGGED, Format, format_of
from mreg.transforms._supervised import SupervisedParams, split
from mreg.transforms._training import arguments, facts_of, follow, read_rows, save_whole
from mreg.transforms._tuning import freeze, peft_config, save_trained

if TYPE_CHECKING:
    from datasets import Dataset

LABELS: Mapping[str, Format] = {
    "sequence-classification": CLASSIFIED,
    "token-classification": TAGGED,
}
"""By task: the column to read and the column to predict."""

TASKS = {"sequence-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}

HEADS = {
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
}
"""By task: how the names of such models end."""

TOLD = {
    "sequence-classification": "a row has a `text` and its `label`, which is a word or a whole number",
    "token-classification": "a row has `tokens`, a list of words, and as many `labels`, words or whole numbers",
}
IGNORED = -100
"""The label of what is not learnt from, as PyTorch has it."""


def check_labelled(task: str, source: Material, rows: Sequence[Rows]) -> None:
    """Refuse data without two labels to tell apart, naming the first row that cannot be used."""
    columns = LABELS[task]
    seen: set[str | int] = set()
    for dataset in rows:
        if not set(columns) <= set(dataset.columns):
            raise Refused(f"{dataset.name} has the columns {', '.join(dataset.columns)}", fix=TOLD[task])
        for number, row in enumerate(dataset, start=1):
            given: Any = row.get(columns[0])
            labels: Any = row.get(columns[1])
            if task == "sequence-classification":
                given, labels = [given], [labels]
            for column, values, kinds in zip(columns, (given, labels), ((str,), (str, int)), strict=True):
                if not isinstance(values, list) or not values or not all(_is_one(value, kinds) for value in values):
                    raise Refused(f"row {number} of {dataset.name} has no usable {column}", fix=TOLD[task])
            if len(given) != len(labels):
                raise Refused(
                    f"row {number} of {dataset.name} has {len(given)} tokens and {len(labels)} labels", fix=TOLD[task]
                )
            seen |= set(labels)
    if len(seen) < 2:
        raise Refused("the data has only one label", fix="give rows of two labels or more")
    if len({type(label) for label in seen}) > 1:
        raise Refused("some labels are words and some are numbers", fix="spell all of them in one way")
    if task == "token-classification" and "tokenizer.json" not in source.files and "vocab.txt" not in source.files:
        raise Refused(f"{source.name} has no fast tokenizer", fix="save its tokenizer with a tokenizer.json")


def _is_one(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value != ""


def names_of(labels: Iterable[str | int], before: Mapping[str, Any], head: str) -> list[str]:
    """The labels in the order of their numbers: sorted, or as a model that tells them apart already has them."""
    unique: list[Any] = list(set(labels))  # All are words or all are numbers.
    names = [str(label) for label in sorted(unique)]
    known = {int(number): str(name) for number, name in before.get("id2label", {}).items()}
    has_head = any(name.endswith(head) for name in before.get("architectures") or [])
    if has_head and set(names) <= set(known.values()):
        return [known[number] for number in sorted(known)]
    return names


def classify(job: Job, params: SupervisedParams, task: str, report: Report) -> Facts:
    """Train by transformers; the output is a whole classifier, or an adapter that brings the head of one."""
    from transformers import AutoConfig, AutoTokenizer, Trainer, TrainingArguments
    from transformers import DataCollatorForTokenClassification as Collator

    source = job.path("source")
    spaced = {"add_prefix_space": True} if task == "token-classification" else {}
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **spaced)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = read_rows(job, format_of(job.datasets[0].name, job.datasets[0].columns, [LABELS[task]]))
    config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
    names = names_of(_flat(rows, task), config.to_dict(), HEADS[task])
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model, info = model_class({}, TASKS[task]).from_pretrained(
        source, config=config, dtype=params.dtype, output_loading_info=True, **SAFE
    )
    wrapped = _fit(model, params, task, {name.rpartition(".")[0] for name in info["missing_keys"]})
    rows, held = split(
        _numbered(rows, tokenizer, config.label2id, task, params.max_length), params.eval_fraction, job.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = Trainer(
            model=wrapped,
            args=arguments(TrainingArguments, job, params, folder),
            train_dataset=rows,
            # It pads labels of words, and leaves alone those of texts, which are numbers.
            data_collator=Collator(tokenizer) if task == "token-classification" else None,
            processing_class=tokenizer,
            # Where several batches make a step, the trainer leaves it to the model to divide by the labels of all, and
            # most encoders do not.
            compute_loss_func=None if params.gradient_accumulation_steps * job.processes == 1 else _share_of_mean,
        )
        curves = follow(trainer, report)
        before = {} if held is None else _judge(trainer, held)
        train(trainer, job)
        after = {} if held is None else _judge(trainer, held)
        facts = facts_of(trainer, curves, rows=len(rows))
    facts |= {f"{name}_before": value for name, value in before.items()}
    facts |= {f"{name}_after": value for name, value in after.items()}
    facts |= {"labels": names, **({} if held is None else {"eval_rows": len(held)})}
    if params.trained != "full":
        saved = save_trained(job, params, trainer.model, report)
        if params.trained == "adapter":
            save_head_config(model, job.output)
        return {**facts, **saved}
    saved = save_whole(job, model, report, keep_rest=False)
    padding = config.get_text_config().pad_token_id
    change_config(source, job.output, architectures=[type(model).__name__], pad_token_id=padding, **labels_of(config))
    return {**facts, **saved}


def _fit(model: Any, params: SupervisedParams, task: str, new: set[str]) -> Any:
    """The model with what is to be trained.

    The head always is, and so is every other layer that is `new`: what it begins with is nowhere in the source.
    """
    from peft import get_peft_model

    freeze(model, params)
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{model.base_model_prefix}.") or name.rpartition(".")[0] in new:
            parameter.requires_grad = True
    peft = peft_config(params, TASKS[task])
    if peft is None:
        return model
    peft.modules_to_save = sorted(new) or None
    peft.exclude_modules = sorted({*new, "classifier", "score"})
    return get_peft_model(model, peft)


def _flat(rows: Dataset, task: str) -> list[str | int]:
    labels = rows[LABELS[task][1]]
    return [label for each in labels for label in each] if task == "token-classification" else list(labels)


def _numbered(rows: Dataset, tokenizer: Any, numbers: Mapping[str, int], task: str, max_length: int) -> Dataset:
    """The rows as token ids and numbers of labels; a word's label is that of its first token."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        if task == "sequence-classification":
            encoded = tokenizer(row["text"], truncation=True, max_length=max_length)
            return {**encoded, "labels": numbers[str(row["label"])]}
        encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=max_length)
        words = encoded.word_ids()
        labels = [
            IGNORED if word is None or word == before else numbers[str(row["labels"][word])]
            for before, word in zip([None, *words], words, strict=False)
        ]
        return {**encoded, "labels": labels}

    return rows.map(one, remove_columns=rows.column_names)


def _share_of_mean(outputs: Any, labels: Any, num_items_in_batch: Any) -> Any:
    """What a batch adds to the mean loss of a label; all batches of a step have `num_items_in_batch` of them."""
    from torch.nn.functional import cross_entropy

    logits = outputs.logits.float()
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / num_items_in_batch


def _judge(trainer: Any, held: Dataset) -> Facts:
    """The mean loss and the share of right answers on rows that are not trained on."""
    import torch

    loss, right, total = 0.0, 0, 0
    trainer.model.eval()
    with torch.no_grad():
        for batch in _ranks.held_out_batches(trainer, held):
            out = trainer.model(**batch)
            counted = batch["labels"] != IGNORED
            right += int(((out.logits.argmax(-1) == batch["labels"]) & counted).sum())
            loss, total = loss + float(out.loss) * int(counted.sum()), total + int(counted.sum())
    lost, found, counted_all = _ranks.summed(loss, right, total)
    return {"eval_loss": round(lost / counted_all, 6), "eval_accuracy": round(found / counted_all, 6)}
