"""Write facts into the weights of a language model, or take the last edit back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mreg.registry.chains.recipe import Step
from mreg.registry.runs.curves import facts_of as curve_facts
from mreg.registry.transform import BadParams, Facts, Input, Job, Material, Params, Report, Rows, Transform
from mreg.transforms import _check, _facts, _undo
from mreg.transforms._folder import ModelFolder, Slot, copy_rest, rewrite
from mreg.transforms._mlp import Memory, check_memories, layers_of, memory
from mreg.transforms._rows import TEXT, check_rows
from mreg.transforms._training import has_tokenizer
from pydantic import Field, model_validator

if TYPE_CHECKING:
    import torch
    from mreg.registry.proof.claim import Made
    from mreg.registry.store.prediction import Prediction
    from mreg.transforms._answers import Speaker

DEPTH = {"rome": 0.18, "memit": 0.3, "constrained": 0.3}
"""Unless layers are said: how deep the last of them is, as a share of all; for rome and memit as with GPT-J."""

SPREAD = {"rome": 1, "memit": 5, "constrained": 5}
"""How many layers there are unless they are said."""

SEARCH = {
    "v_lr": 0.5,
    "v_num_grad_steps": 25,
    "v_weight_decay": 0.5,
    "clamp_norm_factor": 4.0,
    "kl_factor": 0.0625,
    "context_length": 10,
    "mom2_n_tokens": 100_000,
}


class EditParams(Params):
    """The options of `edit`; what a method does not use stays empty."""

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rome": SEARCH,
        "memit": {**SEARCH, "mom2_weight": 1000.0},
        "constrained": {"learning_rate": 1e-3, "num_steps": 50, "norm_constraint": 5e-3},
    }

    method: Literal["rome", "memit", "constrained"] | None = None
    """`rome` (Meng et al. 2022; the default) writes the facts one after another into one matrix, `memit` (Meng et al.
    2023) all at once into those of several layers, `constrained` (Zhu et al. 2020) fine-tunes with a bound on the
    change. The facts are the rows of --data; rome and memit take ordinary text as a second --data."""

    undo: bool = False
    """Take the last edit on the way to the source back, exactly; takes no other option and no data."""

    layers: tuple[int, ...] = ()
    """The layers whose MLP matrix is changed, from 0; unless said, one at 18 % of the depth for rome, or five
    up to 30 % of it."""

    v_lr: float | None = Field(None, gt=0)
    """rome, memit: the learning rate of the search for the value that says the target."""

    v_num_grad_steps: int | None = Field(None, ge=1)
    """rome, memit: the steps of that search; it ends earlier at a loss of 0.05."""

    v_weight_decay: float | None = Field(None, ge=0)
    """rome, memit: how strongly a value far from the one before is punished."""

    clamp_norm_factor: float | None = Field(None, gt=0)
    """rome, memit: the largest change of a value, as a multiple of the norm of what is there."""

    kl_factor: float | None = Field(None, ge=0)
    """rome, memit: how strongly a change of what follows `{subject} is a` is punished."""

    context_length: int | None = Field(None, ge=0)
    """rome, memit: tokens of the model's own text to put before the prompt, in five ways; 0 for the prompt alone."""

    mom2_n_tokens: int | None = Field(None, ge=1)
    """rome, memit: tokens of the text from which the covariance of the keys is taken, at most."""

    mom2_weight: float | None = Field(None, gt=0)
    """memit: how much that covariance weighs against the facts: the larger, the less else changes (λ)."""

    learning_rate: float | None = Field(None, gt=0)
    """constrained: the learning rate of Adam."""

    num_steps: int | None = Field(None, ge=1)
    """constrained: steps of fine-tuning, all facts in each; it ends earlier at a loss of 0.05."""

    norm_constraint: float | None = Field(None, gt=0)
    """constrained: how far any one weight may move (L∞)."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        # The event records what was used, so the defaults that hang on the method are filled in here.
        said = {name: value for name, value in given.items() if value not in (None, (), [])}
        if said.get("undo"):
            for name in said.keys() - {"undo"}:
                raise ValueError(f"undo takes an edit back as it was made, leave {name} out")
            return {**given}
        method = said.get("method", "rome")
        own = cls.DEFAULTS.get(method, {})
        for other, names in cls.DEFAULTS.items():
            for name in names.keys() & said.keys() - own.keys():
                raise ValueError(f"{name} is an option of {other}, not of {method}")
        return {**own, **said, "method": method}

    @model_validator(mode="after")
    def _layers(self) -> EditParams:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError("layers must rise, each named once")
        if self.method == "rome" and len(self.layers) > 1:
            raise ValueError("rome changes one layer; memit spreads facts over several")
        return self


def check(params: EditParams, materials: tuple[Material, ...], rows: tuple[Rows, ...]) -> None:
    """Refuse other kinds of models, facts that cannot be read, and data that the method does not take."""
    if params.undo:
        if rows:
            raise BadParams("undo takes no data", fix="leave --data out")
        return
    source = materials[0]
    _check.complete_model(source, "edited")
    _check.causal_model(source)
    check_memories(source, params.layers)
    has_tokenizer(source)
    facts = [each for each in rows if _facts.is_facts(each.columns)]
    text = [each for each in rows if not _facts.is_facts(each.columns)]
    if len(facts) != 1:
        raise BadParams("edit takes one dataset of facts", fix=f"give it with --data: {_facts.TOLD}")
    _facts.check_facts(facts[0])
    if params.method == "constrained":
        if text:
            raise BadParams(f"constrained reads no text such as {text[0].name}", fix="leave it out")
        return
    if len(text) != 1:
        raise BadParams(
            f"{params.method} takes one dataset of ordinary text, to tell what to leave alone",
            fix="give rows of `text` with a second --data",
        )
    check_rows(source, text, [TEXT])


def run(job: Job, params: EditParams, report: Report) -> Facts:
    """Edit in float32, write what changed, and ask the model for the facts, before and as it is in the files after."""
    if params.undo:
        return _undo.undo(job, report)
    from mreg.transforms import _answers

    (told,) = [given for given in job.datasets if _facts.is_facts(given.columns)]
    facts = _facts.read(told.path)
    sizes: dict[str, dict[str, Any]] = {}

    def make(slot: Slot) -> Iterator[torch.Tensor]:
        tensor = source.tensor(slot.name)
        if slot.name in changes:
            tensor, sizes[slot.name] = _changed(tensor, changes[slot.name], params.norm_constraint)
        yield tensor

    with ModelFolder(job.path("source")) as source:
        memories = [memory(source.config, source.slots, layer) for layer in chosen(params, layers_of(source.config))]
        speaker = _answers.load(source.path, job.device)
        before = _facts.known(speaker, facts)
        changes, measured = _edited(job, params, speaker, facts, memories, report)
        left_out = copy_rest(source.path, job.output)
        rewrite(source, job.output, lambda slot: [slot], make, lambda progress: None)
    after = _facts.known(_answers.load(job.output, job.device), facts)
    return {
        "edits": len(facts),
        "layers": [each.layer for each in memories],
        "matrices": [each.tensor for each in memories],
        **_facts.scores(before, after),
        "change": sizes,
        **measured,
        "left_out": left_out,
    }


def chosen(params: EditParams, count: int) -> list[int]:
    """The layers to change, of so many that the model has."""
    assert params.method is not None
    last = min(count - 1, round(DEPTH[params.method] * count))
    return list(params.layers) or list(range(max(0, last + 1 - SPREAD[params.method]), last + 1))


def _edited(
    job: Job,
    params: EditParams,
    speaker: Speaker,
    facts: Sequence[_facts.Fact],
    memories: Sequence[Memory],
    report: Report,
) -> tuple[dict[str, torch.Tensor], Facts]:
    """What to add to each tensor, in float32 and as the files have it, and what was measured on the way."""
    from mreg.transforms import _constrained, _covariance, _editing

    if params.method == "constrained":
        assert params.learning_rate is not None
        assert params.num_steps is not None
        assert params.norm_constraint is not None
        tuning = (params.learning_rate, params.num_steps, params.norm_constraint)
        moved, curve = _constrained.fine_tune(speaker, facts, memories, *tuning, report)
        return moved, curve_facts("loss", curve)
    (text,) = [given for given in job.datasets if not _facts.is_facts(given.columns)]
    assert params.mom2_n_tokens is not None
    moments = _covariance.covariances(speaker, job, text, memories, params.mom2_n_tokens, report)
    search = _editing.Search(**{name: getattr(params, name) for name in _editing.Search.__annotations__})
    if params.method == "rome":
        updates = _editing.rome(speaker, facts, memories, moments, search, report)
    else:
        assert params.mom2_weight is not None
        updates = _editing.memit(speaker, facts, memories, moments, params.mom2_weight, search, report)
    ranks = {each.memory.tensor: each.rank for each in updates}
    return {each.memory.tensor: each.memory.stored(each.change) for each in updates}, {"rank": ranks}


def _changed(before: torch.Tensor, change: torch.Tensor, limit: float | None) -> tuple[torch.Tensor, dict[str, float]]:
    """The tensor with its change, rounded once to its dtype, and within the limit; and how large the change is.

    `rel_l2` is its norm by that of the tensor, `rounding` the norm of what rounding made of it, by its own.
    """
    import torch
    from mreg.transforms._constrained import within

    exact = before.double() + change.double()
    after = exact.to(before.dtype) if limit is None else within(before, exact, limit)
    moved = after.double() - before.double()
    norm = torch.linalg.vector_norm
    return after, {
        "rel_l2": float(norm(moved) / norm(before.double())),
        "max_abs": float(moved.abs().max()),
        "rounding": float(norm(moved - change.double()) / norm(change.double()).clamp_min(1e-30)),
    }


def _edited_before(params: EditParams, steps: Sequence[Step]) -> str | None:
    return _undo.last_edit(steps).version if params.undo else None


def _before(params: EditParams, steps: Sequence[Step]) -> str | None:
    return dict(_undo.last_edit(steps).inputs)["source"] if params.undo else None


def predict(params: EditParams, made: Made) -> Iterable[tuple[str, Prediction]]:
    """What rome and memit add has few directions; what is taken back is there already."""
    from mreg.transforms._predict_edit import predictions

    return predictions(made) if params.method in ("rome", "memit") and not params.undo else ()


TRANSFORM = Transform(
    params=EditParams,
    inputs=(
        Input("source", "the model to edit, or to take the last edit out of"),
        Input("edited", "the version that the edit to undo made", derived=True, optional=True, trace=_edited_before),
        Input("before", "the version that it was made from", derived=True, optional=True, trace=_before),
    ),
    determinism="same-machine",
    version=2,
    run=run,
    datasets="optional",
    check=check,
    predict=predict,
)
