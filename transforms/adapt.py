"""Train a language model further on raw text of a domain, with general text mixed in against forgetting."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mreg.registry.errors import Refused
from mreg.registry.transform import Facts, FileText, Input, Job, Material, Progress, Report, Rows, Transform
from mreg.transforms import _check, _lengths, _rows
from mreg.transforms._supervised import SupervisedParams, check_supervised, held_out, load_causal, supervise
from mreg.transforms._training import has_tokenizer, rows_of, sampled, save_whole
from mreg.transforms._tuning import PROMPTS, AnyKind, save_trained
from mreg.transforms._vocabulary import add_tokens
from pydantic import Field, model_validator

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = (_rows.TEXT,)


class AdaptParams(SupervisedParams):
    """The options of `adapt`, by the names that transformers and PEFT give them."""

    tuning: AnyKind = "full"
    """What is trained: every weight (full), or an adapter of that kind beside the weights (adapter: bottlenecks)."""

    max_length: int = Field(1024, ge=2)
    """Tokens of a block: texts stand one after the other, each with its end, and are cut into blocks of this length."""

    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """The share of the texts, picked by the seed, that is not trained on but measured before and after."""

    general_fraction: float = Field(0.2, gt=0, lt=1)
    """The share of blocks that come from the second and further datasets, which are taken to be general text."""

    add_tokens: tuple[str, ...] = ()
    """New tokens; each begins as the mean of those that spelled it before."""

    tokens_file: Annotated[str, FileText()] = ""
    """A file with more new tokens, one a line."""

    @model_validator(mode="after")
    def _fit_together(self) -> AdaptParams:
        if self.tuning in PROMPTS:
            raise ValueError(f"{self.tuning} learns tokens to put before a prompt, and raw text has none")
        if self.new_tokens and self.tuning != "full":
            raise ValueError("new tokens change the embedding of the model itself: use tuning full")
        return self

    @property
    def new_tokens(self) -> tuple[str, ...]:
        """All tokens to add."""
        lines = (line.strip() for line in self.tokens_file.splitlines())
        return tuple(dict.fromkeys((*self.add_tokens, *(line for line in lines if line))))


def check(params: AdaptParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse what cannot be trained and rows without text."""
    (source,) = materials
    _check.tunable(source, params)
    _check.causal_model(source)
    has_tokenizer(source)
    for dataset in rows:
        check_supervised(params, (dataset,))
    _rows.check_rows(source, rows, FORMATS)
    if len(rows) == 1 and params.general_fraction != AdaptParams.model_fields["general_fraction"].default:
        raise Refused("there is no general text to mix in", fix="give it as a second --data")
    for dataset in rows:
        _lengths.check_blocks(source, (dataset,), "text", params.max_length)


def run(job: Job, params: AdaptParams, report: Report) -> Facts:
    """Next-token training on whole blocks by TRL; the same job gives the same weights on the same machine.

    `eval` is held-out text of the domain, `general` of the general corpus: how much was learnt and forgotten.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not params.new_tokens:
            return _train(job, params, job.path("source"), report)
        added = add_tokens(job.path("source"), params.new_tokens, Path(folder), report)
        return {**_train(job, params, Path(folder), report), "added_tokens": added}


def _train(job: Job, params: AdaptParams, source: Path, report: Report) -> Facts:
    from transformers import AutoTokenizer

    report(Progress(0, params.max_steps or 0, "loading"))
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    domain, *others = ([row["text"] for row in rows_of(given, ("text",))] for given in job.datasets)
    domain = [row["text"] for row in sampled(job, [{"text": text} for text in domain])]
    measured: dict[str, Dataset] = {}
    blocks: list[list[list[int]]] = []
    for name, texts in (("eval", domain), ("general", [text for other in others for text in other])):
        held = set(random.Random(job.seed).sample(range(len(texts)), held_out(len(texts), params.eval_fraction)))  # noqa: S311
        blocks.append(_blocks(tokenizer, [text for place, text in enumerate(texts) if place not in held], params))
        if held:
            measured[name] = _dataset(_blocks(tokenizer, [texts[place] for place in sorted(held)], params))
        if not others:
            break
    mixed = _mix(*blocks, fraction=params.general_fraction, seed=job.seed) if others else blocks[0]
    model, facts = supervise(
        job,
        params,
        report,
        model=load_causal(source, params),
        tokenizer=tokenizer,
        rows=_dataset(mixed),
        measured=measured,
    )
    saved = (
        save_whole(job, model, report, like=source)
        if params.tuning == "full"
        else save_trained(job, params, model, report)
    )
    for name, spelled in (("eval", "perplexity"), ("general", "general_perplexity")):
        if name in measured:
            facts |= {f"{spelled}_{when}": _perplexity(facts[f"{name}_loss_{when}"]) for when in ("before", "after")}
    return {**facts, "general_blocks": len(mixed) - len(blocks[0]), **saved}


def _blocks(tokenizer: Any, texts: Sequence[str], params: AdaptParams) -> list[list[int]]:
    """Texts one after the other, each with its end, cut into blocks of `max_length` tokens; the last may be shorter."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [number for text in texts for number in [*tokenizer(text).input_ids, *end]]
    starts = range(0, len(ids), params.max_length)
    return [ids[start : start + params.max_length] for start in starts if len(ids) - start > 1]


def _mix(domain: list[list[int]], general: list[list[int]], *, fraction: float, seed: int) -> list[list[int]]:
    """The blocks of the domain, and so many general ones, picked by the seed, that they are `fraction` of the whole."""
    wanted = max(1, round(len(domain) * fraction / (1 - fraction)))
    return domain + random.Random(seed).sample(general, min(wanted, len(general)))  # noqa: S311 no secret hangs on it


def _dataset(blocks: list[list[int]]) -> Dataset:
    import datasets

    datasets.disable_caching()
    return datasets.Dataset.from_list([{"input_ids": block} for block in blocks])


def _perplexity(loss: float) -> float:
    return round(math.exp(min(loss, 100.0)), 4)


TRANSFORM = Transform(
    params=AdaptParams,
    inputs=(Input("source", "the model to train"),),
    datasets="required",
    determinism="same-machine",
    version=1,
    run=run,
    check=check,
    resumes=True,
    distributed=True,
)
