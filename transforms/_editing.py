"""Writing facts into the MLP matrices of a model: ROME (Meng et al. 2022) and MEMIT (Meng et al. 2023).

A matrix W is a memory: the key k, read at the last token of a subject, has the value W·k. A fact is written by finding
the value v* that makes the model say the target, and then the smallest change of W that gives it to k*, measured by
the covariance C = E[k·kᵀ] of the keys of ordinary text, which the change is to leave alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mreg.registry.errors import MregError
from mreg.registry.transform import Progress, Report
from mreg.transforms._answers import Speaker, continuations, padded, spell
from mreg.transforms._facts import Fact
from mreg.transforms._mlp import Memory, keys, shifted, values
from mreg.transforms._tails import tails

if TYPE_CHECKING:
    import torch

STARTS = ("The", "Therefore", "Because", "I", "You")
"""What MEMIT lets the model go on from to get contexts in which the fact is to hold as well."""

ESSENCE = "{} is a"
"""What follows this of the subject is to stay: the edit must not turn it into something else."""

LOW_ENOUGH = 5e-2
"""The loss at which the search for a value ends, as in the papers' code."""

RIDGE = 1e-4
"""What ROME adds to the diagonal of C, as a share of its mean, so that it can be solved where text left a gap."""


class NotEdited(MregError):
    """The search for a value that says the fact went nowhere."""

    exit_code = 6


@dataclass(frozen=True)
class Search:
    """How a value is searched for, by the papers' names."""

    v_lr: float
    v_num_grad_steps: int
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    context_length: int


@dataclass(frozen=True)
class Update:
    """A change of one matrix, `left @ right` in float64: [out, n] and [n, in] for n facts, so of rank n at most."""

    memory: Memory
    left: torch.Tensor
    right: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        """[out, in], float32."""
        return (self.left @ self.right).float()

    @property
    def rank(self) -> int:
        """The numerical rank of the product, found from its factors alone."""
        import torch

        if self.left.shape[1] > min(self.left.shape[0], self.right.shape[1]):
            return int(torch.linalg.matrix_rank(self.left @ self.right))
        small = torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.T).R.T
        return int(torch.linalg.matrix_rank(small))


def contexts(speaker: Speaker, length: int) -> list[str]:
    """Texts to stand before a prompt: none, and what the model itself makes of STARTS in `length` tokens."""
    if not length:
        return [""]
    told = continuations(speaker, [(start, length) for start in STARTS])
    texts = [f"{start}{speaker.tokenizer.decode(ids)}" for start, ids in zip(STARTS, told, strict=True)]
    return ["", *(f"{' '.join(text.split())}. " for text in texts)]


def rome(
    speaker: Speaker,
    facts: Sequence[Fact],
    memories: Sequence[Memory],
    covariances: Mapping[int, torch.Tensor],
    search: Search,
    report: Report,
) -> list[Update]:
    """One fact after another, each by `ΔW = (v* - W·k*)·(C⁻¹k*)ᵀ / (C⁻¹k*)ᵀk*` (equation 2); the model is changed."""
    import torch

    (memory,) = memories
    covariance = covariances[memory.layer].double()
    covariance = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance))
    factor = torch.linalg.cholesky(covariance)
    before = contexts(speaker, search.context_length)
    left, right = [], []
    for done, fact in enumerate(facts, start=1):
        key = _keys(speaker, [memory], fact, before)[0]
        delta, loss = _search(speaker, fact, memory.module, before, search)
        at, batch = _place(speaker, fact)
        value = values(speaker, memory.module, batch)[0, at] + delta
        weight = memory.weight(speaker.model)
        module = speaker.model.get_submodule(memory.module)
        now = weight @ key + (module.bias if module.bias is not None else 0)
        direction = torch.cholesky_solve(key.cpu().double()[:, None], factor)[:, 0]
        left.append((value - now).cpu().double() / (direction @ key.cpu().double()))
        right.append(direction)
        weight += torch.outer(left[-1], direction).float().to(weight.device)
        report(Progress(done, len(facts), f"{fact.subject}: loss {loss:.2f}"))
    return [Update(memory, torch.stack(left, 1), torch.stack(right))]


def memit(
    speaker: Speaker,
    facts: Sequence[Fact],
    memories: Sequence[Memory],
    covariances: Mapping[int, torch.Tensor],
    mom2_weight: float,
    search: Search,
    report: Report,
) -> list[Update]:
    """All facts at once, spread over the layers in their order; the model is changed.

    `ΔW = R·Kᵀ·(λC + K·Kᵀ)⁻¹` (equation 14), where R is what the last layer's output lacks of what it should be, shared
    among the layers that are left.
    """
    import torch

    before = contexts(speaker, search.context_length)
    last = memories[-1].block
    wanted = []
    for done, fact in enumerate(facts, start=1):
        delta, loss = _search(speaker, fact, last, before, search)
        at, batch = _place(speaker, fact)
        wanted.append(values(speaker, last, batch)[0, at] + delta)
        report(Progress(done, len(facts), f"{fact.subject}: loss {loss:.2f}"))
    updates = []
    for left_over, memory in zip(range(len(memories), 0, -1), memories, strict=True):
        found = torch.stack([_keys(speaker, [memory], fact, before)[0] for fact in facts], 1).cpu().double()
        lacks = []
        for fact, value in zip(facts, wanted, strict=True):
            at, batch = _place(speaker, fact)
            lacks.append(value - values(speaker, last, batch)[0, at])
        residual = torch.stack(lacks, 1).cpu().double() / left_over
        moment = mom2_weight * covariances[memory.layer].double() + found @ found.T
        update = Update(memory, residual, torch.linalg.solve(moment, found).T)
        weight = memory.weight(speaker.model)
        weight += update.change.to(weight.device)
        updates.append(update)
    return updates


def _place(speaker: Speaker, fact: Fact) -> tuple[int, dict[str, torch.Tensor]]:
    """The fact's prompt as a batch of one, and the place of the subject's last token."""
    spelled = spell(speaker.tokenizer, fact.prompt)
    return spelled.last_token(fact.end), padded(speaker, [spelled.ids])


def _keys(speaker: Speaker, memories: Sequence[Memory], fact: Fact, before: Sequence[str]) -> list[torch.Tensor]:
    """k*: the mean key [in] of each matrix at the subject's last token, over the contexts."""
    import torch

    spelled = [spell(speaker.tokenizer, text + fact.prompt) for text in before]
    places = [each.last_token(len(text) + fact.end) for each, text in zip(spelled, before, strict=True)]
    found = keys(speaker, memories, padded(speaker, [each.ids for each in spelled]))
    return [each[torch.arange(len(places)), torch.tensor(places)].mean(0) for each in found]


def _search(
    speaker: Speaker, fact: Fact, module: str, before: Sequence[str], search: Search
) -> tuple[torch.Tensor, float]:
    """What to add to the output of a module at the subject's last token, so that the model says the target; the loss.

    The loss (equation 4): `-log P(target)` over the contexts, KL divergence at ESSENCE times `kl_factor`, and the norm
    of what is added, by the square of what is there, times `v_weight_decay`.
    """
    import torch

    spelled = [spell(speaker.tokenizer, text + fact.prompt, fact.target) for text in before]
    places = [each.last_token(len(text) + fact.end) for each, text in zip(spelled, before, strict=True)]
    essence = spell(speaker.tokenizer, ESSENCE.format(fact.subject))
    places.append(essence.last_token(len(fact.subject)))
    # Nothing before the subject's last token can change, so no step computes it.
    after = tails(speaker, [*(each.ids for each in spelled), essence.ids], places)
    there = values(speaker, module, padded(speaker, [spelled[0].ids]))[0, places[0]].norm()
    with torch.no_grad():
        kept = after.logits_at([(len(spelled), len(essence.ids) - 1)])[0].log_softmax(-1)
    said = [(row, place) for row, each in enumerate(spelled) for place in range(each.start, len(each.ids))]
    at = [*((row, place - 1) for row, place in said), (len(spelled), len(essence.ids) - 1)]
    wanted = torch.tensor([spelled[row].ids[place] for row, place in said], device=speaker.device)
    delta = torch.zeros_like(values(speaker, module, padded(speaker, [essence.ids]))[0, 0]).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=search.v_lr)
    told = float("inf")
    with shifted(speaker, module, [0] * len(places), lambda: delta):
        for step in range(search.v_num_grad_steps):
            scores = after.logits_at(at).log_softmax(-1)
            drift = (kept.exp() * (kept - scores[-1])).sum()
            # The target has as many tokens in every context: the mean over both is the mean over the contexts.
            loss = search.kl_factor * drift - scores[:-1].gather(1, wanted[:, None]).mean()
            loss = loss + search.v_weight_decay * delta.norm() / there**2
            told = loss.item()
            if told != told:
                raise NotEdited(f"the loss for {fact.prompt!r} is no number", fix="lower --v-lr")
            if told < LOW_ENOUGH or step == search.v_num_grad_steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta *= (search.clamp_norm_factor * there / delta.norm().clamp_min(1e-12)).clamp(max=1)
    return delta.detach(), told
