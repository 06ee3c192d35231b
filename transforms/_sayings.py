"""What language models say after the beginning of a row, kept as rows: samples, and where two versions differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mreg.registry.transform import Job
from mreg.transforms._evaluation import EvaluationParams
from mreg.transforms._spelling import Spelled, logits_of

if TYPE_CHECKING:
    from mreg.transforms._text_scores import Observed


def write_samples(
    job: Job,
    params: EvaluationParams,
    model: Any,
    tokenizer: Any,
    spelled: Sequence[Spelled],
    columns: tuple[str, ...],
) -> None:
    """What the model says after the beginning of each row, by the most probable token."""
    lines = []
    for one in spelled:
        # Of a plain text, half is given and half is to be said.
        cut = one.start if columns != ("text",) else max(1, len(one.ids) // 2)
        said = go_on(model, tokenizer, one.ids[:cut], params.max_new_tokens)
        lines.append(
            {
                "row": one.row,
                "prompt": tokenizer.decode(one.ids[:cut]),
                "generated": said,
                "expected": tokenizer.decode(one.ids[cut : cut + params.max_new_tokens]),
            }
        )
    write_made(job, "samples", lines)


def write_differences(
    job: Job,
    params: EvaluationParams,
    model: Any,
    other: Any,
    tokenizer: Any,
    spelled: Sequence[Spelled],
    observed: Sequence[Observed],
) -> None:
    """The rows with the greatest KL a token; each is shown at the token on which the two differ most."""
    order = sorted(range(len(observed)), key=lambda k: (-observed[k].kl / observed[k].count, k))
    lines = []
    for place in order[: params.differences]:
        one, seen = spelled[place], observed[place]
        cut = one.start + seen.worst
        sides = {}
        for side, each in (("a", other), ("b", model)):
            sides[side] = {
                "next": _most_probable(each, tokenizer, Spelled(one.row, one.ids[: cut + 1], cut)),
                "continuation": go_on(each, tokenizer, one.ids[:cut], params.max_new_tokens),
            }
        lines.append(
            {
                "row": one.row,
                "kl": round(seen.kl / seen.count, 6),
                "agreement": round(seen.agreed / seen.count, 6),
                "tokens": seen.count,
                "text": tokenizer.decode(one.ids[:cut]),
                "expected": tokenizer.decode(one.ids[cut : cut + params.max_new_tokens]),
                **sides,
            }
        )
    write_made(job, "differences", lines)


def go_on(model: Any, tokenizer: Any, ids: list[int], most: int) -> str:
    """The text that a model finds most probable after these tokens."""
    import torch

    given = torch.tensor([ids], device=model.device)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        out = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=most,
            do_sample=False,
            num_beams=1,
            pad_token_id=padding,
        )
    text: str = tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return text


def _most_probable(model: Any, tokenizer: Any, one: Spelled, most: int = 5) -> list[dict[str, Any]]:
    import torch

    (logits,) = logits_of(model, [one])
    shares, ids = torch.softmax(logits[-1].float(), dim=-1).topk(most)
    return [
        {"token": tokenizer.decode([int(token)]), "probability": round(float(share), 6)}
        for share, token in zip(shares, ids, strict=True)
    ]


def write_made(job: Job, name: str, lines: Sequence[dict[str, Any]]) -> None:
    """Leave rows behind as a dataset."""
    job.made.mkdir(exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (job.made / f"{name}.jsonl").write_text(text, encoding="utf-8")
