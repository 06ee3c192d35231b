"""What a training claims, of which weights can only tell that it could be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mreg.registry.digests import Digest
from mreg.registry.models.layer_names import count as layer_count
from mreg.registry.models.layer_names import number_of, renumbered
from mreg.registry.models.weight_sources import TensorSource
from mreg.registry.models.weights import Tensor
from mreg.registry.proof import evidence
from mreg.registry.proof.claim import Claim, Made, common
from mreg.registry.proof.matching import is_equal

TOKENIZER = "tokenizer.json"

MOST_CHANGE = 0.5
"""A training that moves a matrix by more than half its norm made another model of it."""


HEADS = re.compile(r"^(?:lm_head|embed_out|cls|score|classifier|classification_head|qa_outputs)\b")
"""The layers that tell what a model is for, of which another task has others."""

TASKS = ("sequence-classification", "token-classification")


def trained(made: Made) -> Iterator[Claim]:
    """That it could be a training of its source: more cannot be told without doing it again."""
    yield from _trained(made, made.source, new_head=made.params.get("task") in TASKS)


def rewarded(made: Made) -> Iterator[Claim]:
    """That it could be a training of its source, with a head that gives one number."""
    heads = [name for name in sorted(made.output.names()) if HEADS.search(name) and name.endswith(".weight")]
    widths = {made.output.layout(name)[1][0] for name in heads}
    said = f"{heads[-1]} gives {made.output.layout(heads[-1])[1][0]}" if heads else "it has no head"
    yield Claim("its head gives one number", "proved" if 1 in widths else "contradicted", said)
    yield from _trained(made, made.source, new_head=True)


def distilled(made: Made) -> Iterator[Claim]:
    """That it could be a training of the student, or of the layers of it that were kept, on a teacher of one
    vocabulary."""
    yield from _vocabulary(made)
    if not (made.params.get("keep_layers") or made.params.get("num_hidden_layers")):
        yield from _trained(made, made.source, new_head=False)
        return
    layers, left = layer_count(made.source.names()), layer_count(made.output.names())
    keep = [int(one) for one in made.numbers("keep_layers", [])]
    if not keep:
        asked = int(made.number("num_hidden_layers", 1))
        keep = [round(place * (layers - 1) / max(1, asked - 1)) for place in range(asked)]
    if left != len(keep) or any(not 0 <= one < layers for one in keep):
        yield Claim(f"layers {keep} of the student's {layers} were kept", "contradicted", f"there are {left}")
        return
    yield from _trained(made, _Renumbered(made.source, keep), new_head=False)


def _vocabulary(made: Made) -> Iterator[Claim]:
    if moved := _tokens(made, "source", "teacher"):
        yield Claim("student and teacher have one vocabulary", "contradicted", moved)


def _trained(made: Made, source: TensorSource, *, new_head: bool) -> Iterator[Claim]:
    names, missing = _kept(source, made.output, new_head)
    if missing and not made.params.get("add_tokens"):
        yield Claim("a training keeps the architecture", "contradicted", missing)
        return
    if renamed := _tokens(made, "source", "output"):
        yield Claim("a training keeps the tokens", "contradicted", renamed)
    worst, where, changed = 0.0, "", 0
    frozen = _frozen(made.params, names)
    for name in names:
        if is_equal(source, name, made.output, name):
            continue
        changed += 1
        if name in frozen:
            yield Claim("frozen layers are what they were", "contradicted", f"{name} changed")
            return
        before, after = source.tensor(name), made.output.tensor(name)
        if before.shape == after.shape:
            # Biases begin at zero and gains are few, so any change of them may be a large one.
            is_matrix = len(before.shape) > 1 and evidence.is_float(before) and evidence.is_float(after)
            moved = evidence.rounding_error(before, evidence.numbers(after)) if is_matrix else 0.0
            if moved > worst:
                worst, where = moved, name
        elif not (_gets_rows(made, before, after) or (new_head and HEADS.search(name))):
            yield Claim("a training keeps the architecture", "contradicted", f"{name} has another shape")
            return
    if frozen:
        yield Claim("frozen layers are what they were", "proved", f"{len(frozen)} tensors, bit for bit")
    what = "it could be a training of its source"
    if not changed and not new_head:
        yield Claim(what, "contradicted", "no tensor changed")
    elif worst > MOST_CHANGE:
        yield Claim(what, "contradicted", f"{where} moved by {worst:.2g} of its norm")
    else:
        moved_most = f", {where} most: {worst:.2g} of its norm" if where else ""
        yield Claim(what, "consistent", f"{changed} of {len(names)} tensors moved{moved_most}")


def _gets_rows(made: Made, before: Tensor, after: Tensor) -> bool:
    """Whether a tensor may have other rows than before, as new tokens bring them."""
    return bool(made.params.get("add_tokens")) and before.shape[1:] == after.shape[1:]


def _kept(source: TensorSource, output: TensorSource, new_head: bool) -> tuple[list[str], str]:
    """The tensors of both, and what is amiss. Another task has another head, and may have no pooler or a new one."""
    names, missing = common(source, output)
    if not missing or not new_head:
        return names, missing
    apart = set(source.names()) ^ set(output.names())
    amiss = sorted(name for name in apart if not HEADS.search(name) and ".pooler." not in name)
    if not names:
        return names, "it has no tensor in common with its source"
    return names, f"{amiss[0]} is in one of the two only" if amiss else ""


def _tokens(made: Made, before: str, after: str) -> str:
    """Which token has another number in the second model than in the first; nothing where none has."""
    held = [made.beside.get(role, ()) for role in (before, after)]
    if not all(held):
        return ""
    files = [beside[0].files.get(TOKENIZER) for beside in held]
    if None in files or files[0] == files[1]:
        return ""
    there, here = (vocabulary(beside[0].read(TOKENIZER)) for beside in held)
    moved = sorted(token for token, number in there.items() if here.get(token) != number)
    return f"token {moved[0]!r} is {there[moved[0]]} there and {here.get(moved[0], 'missing')} here" if moved else ""


def vocabulary(content: bytes) -> dict[str, int]:
    """The number of each token of a tokenizer.json."""
    parsed = json.loads(content)
    listed = parsed.get("model", {}).get("vocab", {})
    if isinstance(listed, list):  # Unigram: pairs of token and score, in the order of their numbers.
        listed = {token: number for number, (token, _) in enumerate(listed)}
    return {**listed, **{added["content"]: added["id"] for added in parsed.get("added_tokens", [])}}


class _Renumbered:
    """A model of which only some layers are left, numbered anew."""

    def __init__(self, source: TensorSource, keep: Sequence[int]) -> None:
        places = {old: new for new, old in enumerate(keep)}
        self._source = source
        self._named = {
            renumbered(name, places[number] if number is not None else 0): name
            for name in source.names()
            if (number := number_of(name)) is None or number in places
        }

    def names(self) -> Iterable[str]:
        return self._named.keys()

    def digest(self, name: str) -> Digest | None:
        return self._source.digest(self._named[name])

    def layout(self, name: str) -> tuple[str, tuple[int, ...]]:
        return self._source.layout(self._named[name])

    def tensor(self, name: str) -> Tensor:
        return self._source.tensor(self._named[name])


def _frozen(params: Mapping[str, Any], names: list[str]) -> set[str]:
    """The tensors that the params say were not trained."""
    layers, patterns = params.get("layers") or (), [str(one) for one in params.get("freeze") or ()]
    frozen = set()
    for name in names:
        if HEADS.search(name) and params.get("task") in TASKS:
            continue  # A new head is always trained.
        layer = number_of(name)
        outside = bool(layers) and (layer is None or layer not in layers)
        backbone = "backbone" in patterns and not HEADS.search(name)
        if outside or backbone or any(pattern != "backbone" and re.search(pattern, name) for pattern in patterns):
            frozen.add(name)
    return frozen
