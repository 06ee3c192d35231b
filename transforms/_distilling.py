"""The losses of distillation, each in a trainer of TRL: rows in, gradients towards the teacher out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.transform import BadParams, Job
from mreg.transforms._training import arguments
from mreg.transforms._tuning import peft_config

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from mreg.transforms.distill import DistillParams

SAMPLE = 64
"""Rows on which the distance to the teacher is measured."""


def divergence(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """T²·KL(teacher ‖ student) in nats, summed over the tokens that have a label (Hinton et al. 2015, section 2).

    Logits are (batch, tokens, vocabulary); where one vocabulary is padded further than the other, the padding is left
    out. Places before the student's first token, such as virtual tokens, count for nothing.
    """
    from torch.nn.functional import kl_div, log_softmax

    width, tokens = min(student.shape[-1], teacher.shape[-1]), labels.shape[1]
    learnt = labels[:, 1:] != -100
    ours, theirs = (
        log_softmax(logits[:, -tokens:-1, :width][learnt].float() / temperature, dim=-1)
        for logits in (student, teacher)
    )
    return kl_div(ours, theirs, log_target=True, reduction="sum") * temperature**2


def hidden_distance(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """How far apart hidden states (tokens, width) are: the mean square, or 1 less the cosine."""
    from torch.nn.functional import cosine_similarity, mse_loss

    if kind == "mse":
        return mse_loss(student.float(), teacher.float())
    return 1 - cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def targets(chosen: Sequence[int], student: int, teacher: int) -> tuple[int, ...]:
    """For each of the student's layers, the teacher's layer whose output it is held to; evenly spread unless chosen.

    Raises BadParams.
    """
    if not chosen:
        return tuple(-(-(place + 1) * teacher // student) - 1 for place in range(student))
    if len(chosen) != student or not all(0 <= layer < teacher for layer in chosen):
        raise BadParams(
            f"teacher_layers names {len(chosen)} layers for the {student} of the student",
            fix=f"name for each of them one of the teacher's, 0 to {teacher - 1}",
        )
    return tuple(chosen)


def kl_to_teacher(trainer: Any, teacher: Any, seed: int) -> float:
    """KL(teacher ‖ student) in nats a token, on SAMPLE of the rows that are trained on."""
    import torch

    rows = trainer.train_dataset
    drawn = sorted(random.Random(seed).sample(range(len(rows)), min(SAMPLE, len(rows))))  # noqa: S311
    size = trainer.args.per_device_train_batch_size
    total, tokens = 0.0, 0
    was_training = trainer.model.training
    trainer.model.eval()
    for start in range(0, len(drawn), size):
        batch = trainer._prepare_inputs(trainer.data_collator([rows[place] for place in drawn[start : start + size]]))
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            ours, theirs = trainer.model(**given).logits, teacher(**given).logits
        total += float(divergence(ours, theirs, batch["labels"], 1.0))
        tokens += int((batch["labels"][:, 1:] != -100).sum())
    trainer.model.train(was_training)
    return round(total / max(1, tokens), 6)


def match_trainer(
    job: Job, params: DistillParams, folder: str, *, student: Any, teacher: Any, tokenizer: Any, dataset: Dataset
) -> Any:
    """A trainer whose loss is alpha·T²·KL + (1 - alpha)·cross-entropy, and the distance of hidden states where asked.

    Where the student is narrower or wider than the teacher, its hidden states go through a linear map that is learnt
    with it and thrown away (Jiao et al. 2020): the trainer's `maps`, None where there are none.
    """
    import torch
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    by_hidden = params.method == "hidden"
    layers = (model.config.num_hidden_layers for model in (student, teacher))
    pairs = list(enumerate(targets(params.teacher_layers, *layers)))
    widths = student.config.hidden_size, teacher.config.hidden_size
    needed = len(pairs) if by_hidden and widths[0] != widths[1] else 0
    torch.manual_seed(job.seed)
    maps = torch.nn.ModuleList(torch.nn.Linear(*widths, bias=False) for _ in range(needed))
    maps.to(job.device, student.dtype)

    class MatchTrainer(SFTTrainer):
        loss_is_scaled_for_ga: Any = False

        def create_optimizer(self, model: Any = None) -> Any:
            optimizer = super().create_optimizer(model)
            if len(maps):
                optimizer.add_param_group({"params": list(maps.parameters()), "weight_decay": 0.0})
                # The trainer clears the gradients of its model alone.
                optimizer.register_step_post_hook(lambda *_: maps.zero_grad())
            return optimizer

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            del num_items_in_batch
            labels = inputs["labels"]
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            given |= {"use_cache": False, "output_hidden_states": by_hidden}
            ours = model(**given)
            with torch.no_grad():
                theirs = teacher(**given)
            tokens = (labels[:, 1:] != -100).sum().clamp(min=1)
            kl = divergence(ours.logits, theirs.logits, labels, params.temperature or 1.0) / tokens
            logits = ours.logits[:, -labels.shape[1] : -1].flatten(0, 1).float()
            entropy = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / tokens
            parts = {"kl": kl, "cross_entropy": entropy}
            loss = params.alpha * kl + (1 - params.alpha) * entropy
            if by_hidden:
                parts["hidden"] = self._hidden(ours.hidden_states, theirs.hidden_states, given["attention_mask"])
                loss = loss + params.hidden_weight * parts["hidden"]
            for name, part in parts.items():
                self._metrics["train"][name].append(part.item())
            return (loss, ours) if return_outputs else loss

        def _hidden(self, ours: Any, theirs: Any, mask: Any) -> Any:
            seen = mask.bool()
            distances = []
            for place, target in pairs:  # What comes before the first layer is the embedding.
                state = ours[place + 1][:, -mask.shape[1] :][seen]
                state = maps[place](state) if len(maps) else state
                distances.append(hidden_distance(state, theirs[target + 1][seen], params.hidden_loss))
            return torch.stack(distances).mean()

    trainer: Any = MatchTrainer(
        model=student,
        args=arguments(SFTConfig, job, params, folder),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config(params),
    )
    trainer.maps = maps if len(maps) else None
    return trainer


def gkd_trainer(
    job: Job, params: DistillParams, folder: str, *, student: Any, teacher: Any, tokenizer: Any, dataset: Dataset
) -> Any:
    """TRL's trainer of generalized knowledge distillation, on prompts and completions as well as on chats."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Trainer(GKDTrainer):
        # The tokens that count change with what is generated, so a mean is taken over those of each batch.
        loss_is_scaled_for_ga: Any = False

    own = ("temperature", "lmbda", "beta", "seq_kd", "max_new_tokens")
    return Trainer(
        model=student,
        teacher_model=teacher,
        args=arguments(GKDConfig, job, params, folder, **{name: getattr(params, name) for name in own}),
        data_collator=prompts_and_completions(tokenizer, params.max_length),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config(params),
    )


def prompts_and_completions(tokenizer: Any, max_length: int) -> Callable[[list[Mapping[str, Any]]], dict[str, Any]]:
    """Batches of what GKD reads: prompts to be completed, with padding before them, and rows with padding behind."""
    import torch
    from trl.trainer.utils import pad

    def batch(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        halves = [tokens_of(row, tokenizer) for row in rows]
        prompts = [torch.tensor(prompt[-max_length:]) for prompt, _ in halves]
        wholes = [torch.tensor((prompt + completion)[:max_length]) for prompt, completion in halves]
        labels = [whole.clone() for whole in wholes]
        for label, (prompt, _) in zip(labels, halves, strict=True):
            label[: len(prompt)] = -100
        ones, padding = torch.ones_like, tokenizer.pad_token_id
        return {
            "prompts": pad(prompts, padding, "left"),
            "prompt_attention_mask": pad([ones(prompt) for prompt in prompts], 0, "left"),
            "input_ids": pad(wholes, padding, "right"),
            "attention_mask": pad([ones(whole) for whole in wholes], 0, "right"),
            "labels": pad(labels, -100, "right"),
        }

    return batch


def tokens_of(row: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """A row's prompt and completion; of a chat, all turns but the last and the last. A prompt may stand alone."""
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    if row.get("messages"):
        row = {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    chat = is_conversational(dict(row))
    spelled = maybe_apply_chat_template(dict(row), tokenizer)
    completion = spelled.get("completion") or ""
    if completion and not chat and not completion.endswith(tokenizer.eos_token):
        completion += tokenizer.eos_token
    prompt = tokenizer(spelled["prompt"], add_special_tokens=not chat).input_ids
    return prompt, tokenizer(completion, add_special_tokens=False).input_ids
