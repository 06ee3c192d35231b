"""`merge`: each method against the formula and against mergekit, and parents that cannot be merged."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from mreg.registry.errors import Refused
from mreg.registry.transform import BadParams
from mreg.transforms import _merging
from mreg.transforms._mergekit import METHODS, adopt
from mreg.transforms.merge import MergeParams, check

from tests import tiny
from tests.transforms.conftest import Here, Run, Stock, material, tensors, tree


def by_hand(parents: list[Path], weights: list[float]) -> dict[str, Any]:
    held = [tensors(parent) for parent in parents]
    sums = {}
    for name in held[0]:
        total = numpy.zeros(held[0][name].shape, dtype=numpy.float32)
        for tensor, weight in zip(held, weights, strict=True):
            total = total + tensor[name].float().numpy() * numpy.float32(weight)
        sums[name] = torch.from_numpy(total).to(held[0][name].dtype)
    return sums


def test_the_mean_of_two_is_numpys_to_the_last_bit(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other})

    expected = by_hand([stock.base, stock.other], [0.5, 0.5])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_three_parents_have_a_weight_each(run: Run, stock: Stock, tmp_path: Path):
    third = tiny.make_model(tmp_path / "third", seed=5)
    parents = [stock.base, stock.other, third]

    ran = run("merge", stock.base, more={"others": [stock.other, third]}, weights=(3, 2, 1))

    expected = by_hand(parents, [3 / 6, 2 / 6, 1 / 6])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_weights_are_taken_as_they_are_when_asked(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other}, weights=(1, -0.25), normalize=False)

    expected = by_hand([stock.base, stock.other], [1, -0.25])
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors(ran.output).items())


def test_all_weight_on_the_source_gives_the_source(run: Run, stock: Stock):
    ran = run("merge", stock.base, more={"others": stock.other}, weights=(1, 0))

    assert tree(stock.base) == tree(ran.output)


def test_the_result_has_the_dtype_and_the_files_of_the_source(run: Run, stock: Stock, tmp_path: Path):
    wide = tiny.make_model(tmp_path / "wide", seed=4, dtype="float32")

    ran = run("merge", stock.base, more={"others": wide})

    assert {torch.bfloat16} == {tensor.dtype for tensor in tensors(ran.output).values()}
    assert (stock.base / "config.json").read_bytes() == (ran.output / "config.json").read_bytes()


def refusal(params: Any, *folders: Path, base: Path | None = None) -> str:
    roles = ["source", *["others"] * (len(folders) - 1)]
    held = [material(folder, role) for folder, role in zip(folders, roles, strict=True)]
    with pytest.raises((Refused, BadParams)) as told:
        check(params, (*held, *([material(base, "base")] if base else [])), ())
    return str(told.value)


def test_other_shapes_are_refused_by_the_first_name(stock: Stock, tmp_path: Path):
    deep = tiny.make_model(tmp_path / "deep", layers=3)

    assert refusal(MergeParams(), stock.base, deep).startswith(
        "model.layers.2.input_layernorm.weight is missing in base and 64 in deep"
    )


def test_another_architecture_is_refused(stock: Stock, tmp_path: Path):
    other = shutil.copytree(stock.base, tmp_path / "mistral")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))

    assert refusal(MergeParams(), stock.base, other).startswith("model_type is llama in base and mistral in mistral")


def test_weights_must_be_as_many_as_the_parents(stock: Stock):
    assert refusal(MergeParams(weights=(1,)), stock.base, stock.other).startswith("1 weights for 2 models")


def test_weights_that_cancel_cannot_be_normalized(stock: Stock):
    assert refusal(MergeParams(weights=(1, -1)), stock.base, stock.other).startswith("weights that sum to 0")


def test_one_parent_is_refused(stock: Stock):
    assert refusal(MergeParams(), stock.base).startswith("a merge needs two models or more")


def test_an_adapter_among_the_parents_is_refused(stock: Stock):
    assert refusal(MergeParams(), stock.base, stock.adapter).startswith("adapter is an adapter")


def test_other_vocabularies_are_refused_by_the_first_token(stock: Stock, tmp_path: Path):
    other = shutil.copytree(stock.base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))

    assert refusal(MergeParams(), stock.base, other).startswith("token 'a' is ")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base in float32 and three models near it."""
    folder = tmp_path_factory.mktemp("family")
    base = tiny.make_model(folder / "base", dtype="float32")
    return [base, *(near(base, folder / f"tuned{seed}", seed) for seed in (1, 2, 3))]


def near(base: Path, folder: Path, seed: int) -> Path:
    """The base with noise on it, more in some places than in others, as training leaves it."""
    from safetensors.torch import save_file

    shutil.copytree(base, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        noisy = {name: one + 0.02 * torch.randn(one.shape) ** 3 for name, one in tensors(base).items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


PLAIN: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "linear": (2, {"weights": (0.7, 0.2)}, {"weight": [0.7, 0.2]}),
    "slerp": (2, {"t": 0.3}, {"t": 0.3}),
    "task-arithmetic": (2, {"weights": (0.6, 0.5), "lambda": 0.5}, {"weight": [0.6, 0.5], "lambda": 0.5}),
    "ties": (
        2,
        {"weights": (1, 0.5), "density": (0.3,), "lambda": 1.5},
        {"weight": [1, 0.5], "density": 0.3, "lambda": 1.5},
    ),
    "model-stock": (3, {}, {}),
}
"""By method: how many models, our options, and those of mergekit."""

TOLERANCE = {"linear": 2.4e-7, "slerp": 2.4e-7, "model-stock": 1e-6}
"""How far we may be from mergekit, whose linear merge fuses multiplications and additions and divides at the end; the
lengths and angles it takes in float32, we in float64. The rest is equal to the last bit."""


def as_mergekit(method: str, models: list[Path], base: Path, shared: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in shared.items() if isinstance(value, list)}
    config: dict[str, Any] = {
        "merge_method": method.replace("-", "_"),
        "models": [
            {"model": str(model), "parameters": {name: value[place] for name, value in own.items()}}
            for place, model in enumerate(models)
        ],
        "parameters": {name: value for name, value in shared.items() if name not in own},
    }
    return config | ({} if method == "linear" else {"base_model": str(base)})


def by_mergekit(output: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What mergekit itself makes, called as its own documentation says."""
    pytest.importorskip("mergekit", reason="mergekit is the extra `merge`")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    run_merge(MergeConfiguration.model_validate(config), str(output), MergeOptions(quiet=True, write_model_card=False))
    return tensors(output)


def apart(these: dict[str, Any], those: dict[str, Any]) -> float:
    assert these.keys() == those.keys()
    return max(float((these[name] - those[name]).abs().max()) for name in these)


@pytest.mark.parametrize("method", PLAIN)
def test_a_method_agrees_with_mergekit(method: str, here: Here, family: list[Path], tmp_path: Path):
    base, *tuned = family
    count, ours, theirs = PLAIN[method]
    if method == "slerp":  # Its base is one of the two ends.
        base, tuned = tuned[0], tuned[1:]
        models, more = [base, tuned[0]], {"others": [tuned[0]]}
    else:
        models, more = tuned[:count], {"others": tuned[1:count]}
        more |= {} if method == "linear" else {"base": [base]}

    output, _ = here("merge", models[0], more=more, method=method, **ours)

    expected = by_mergekit(tmp_path / "theirs", as_mergekit(method, models, base, theirs))
    assert apart(expected, tensors(output)) <= TOLERANCE.get(method, 0.0)


@pytest.mark.parametrize("method", ["dare-linear", "dare-ties"])
def test_dare_merges_what_it_kept_as_mergekit_does(method: str, here: Here, family: list[Path], tmp_path: Path):
    from safetensors.torch import save_file

    base, first, second = family[:3]
    start, dropped = tensors(base), []
    for place, folder in enumerate((first, second)):
        kept = {}
        for name, tuned in tensors(folder).items():
            stays = _merging.drawn(7, name, place, 0.25, tuned.shape)
            kept[name] = start[name] + torch.where(stays, (tuned - start[name]) / 0.25, torch.zeros(()))
        dropped.append(shutil.copytree(folder, tmp_path / folder.name))
        save_file(kept, dropped[-1] / "model.safetensors", metadata={"format": "pt"})
    given = {"weight": [0.6, 0.4], **({} if method == "dare-linear" else {"density": 1.0, "normalize": False})}

    output, _ = here(
        "merge", first, more={"others": second, "base": base}, method=method, weights=(0.6, 0.4), density=(0.25,)
    )

    plain = "task-arithmetic" if method == "dare-linear" else "ties"
    expected = by_mergekit(tmp_path / "theirs", as_mergekit(plain, dropped, base, given))
    assert apart(expected, tensors(output)) < 2e-6  # Theirs has been rounded once more, when it was added to the base.


def test_what_dare_drops_is_drawn_with_the_density_and_anew_for_each_tensor_model_and_seed():
    masks = [
        _merging.drawn(seed, name, place, 0.2, (300, 400))
        for seed, name, place in [(0, "a", 0), (0, "b", 0), (0, "a", 1), (1, "a", 0)]
    ]

    # Five deviations of a binomial distribution with 120,000 draws.
    assert all(abs(float(mask.float().mean()) - 0.2) < 0.006 for mask in masks)
    assert all(abs(float((masks[0] & mask).float().mean()) - 0.04) < 0.003 for mask in masks[1:])
    assert [False, True, True, True, True] == _merging.drawn(0, "a", 0, 0.5, (5,)).tolist()


def test_ties_leaves_out_what_disagrees_with_the_elected_sign():
    base = torch.zeros(4)
    tuned = [torch.tensor([1.0, -4.0, 0.0, 0.5]), torch.tensor([3.0, 1.0, 2.0, -0.25])]

    mean = _merging.ties(base, tuned, [1, 1], [1, 1], 1.0, normalize=True)

    assert [2.0, -4.0, 2.0, 0.5] == mean.tolist()


def test_trimming_keeps_the_first_of_equals_and_never_nothing():
    assert [0.0, -2.0, 2.0, 0.0] == _merging.largest(torch.tensor([1.0, -2.0, 2.0, 2.0]), 0.5).tolist()
    assert [0.0, 0.0, 3.0] == _merging.largest(torch.tensor([1.0, 2.0, 3.0]), 0.1).tolist()


def test_models_that_learnt_the_same_are_their_mean_and_opposed_ones_the_base():
    base = torch.tensor([1.0, 2.0])

    same, ratio = _merging.model_stock(base, [torch.tensor([2.0, 3.0]), torch.tensor([3.0, 4.0])])
    opposed, none = _merging.model_stock(base, [torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])])

    assert ([2.5, 3.5], 1.0) == (same.tolist(), pytest.approx(ratio))
    assert ([1.0, 2.0], 0.0) == (opposed.tolist(), none)


def test_the_middle_of_an_arc_keeps_the_length():
    middle = _merging.slerp(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)

    assert pytest.approx([3 / 2**0.5] * 2) == middle.tolist()


def test_sums_over_a_tensor_are_exact_to_a_few_bits():
    values = torch.randn(2_500_001, generator=torch.Generator().manual_seed(0))

    exact = math.fsum((values.double() ** 2).tolist())
    assert pytest.approx(exact, rel=2e-15) == _merging.dot(values, values)


def test_layers_are_stacked_as_mergekit_stacks_them(here: Here, family: list[Path], tmp_path: Path):
    from transformers import AutoModelForCausalLM

    _, first, second = family[:3]
    slices = [(first, [0, 2]), (second, [0, 1]), (second, [0, 2])]

    output, facts = here(
        "merge", first, more={"others": second}, method="passthrough", slices=("0:0-2", "1:0-1", "1:0-2")
    )

    sources = [{"sources": [{"model": str(model), "layer_range": span}]} for model, span in slices]
    expected = by_mergekit(tmp_path / "theirs", {"merge_method": "passthrough", "slices": sources})
    assert 0.0 == apart(expected, tensors(output))
    assert (5, 5) == (facts["layers"], AutoModelForCausalLM.from_pretrained(output).config.num_hidden_layers)


def test_one_model_can_be_made_deeper_or_shallower_out_of_itself(here: Here, stock: Stock):
    from transformers import AutoModelForCausalLM

    for slices, layers in ((("0:0-2", "0:1-2"), 3), (("0:1-2",), 1)):
        output, _ = here("merge", stock.sharded, method="passthrough", slices=slices)

        model = AutoModelForCausalLM.from_pretrained(output)
        assert layers == len(model.model.layers)
        assert model(torch.arange(10, 30)[None]).logits.isfinite().all()


CONFIG = {
    "merge_method": "dare_ties",
    "base_model": "chat/base",
    "models": [
        {"model": "v2", "parameters": {"weight": 0.6, "density": 0.5}},
        {"model": "prod@{1}", "parameters": {"weight": [0.1, 0.9], "density": 0.5}},
    ],
    "dtype": "float32",
}


def test_a_configuration_of_mergekit_names_its_inputs():
    asked = adopt(CONFIG)

    assert asked is not None
    assert ("v2", (("others", "prod@{1}"), ("base", "chat/base"))) == (asked.source, asked.others)
    recorded = asked.params["mergekit"]
    assert ("base", ["source", "others[0]"]) == (recorded["base_model"], [one["model"] for one in recorded["models"]])


def test_other_files_of_options_are_no_configuration_of_mergekit():
    assert adopt({"method": "ties", "density": [0.2]}) is None


def test_what_mergekit_makes_of_a_configuration_comes_out(here: Here, family: list[Path], tmp_path: Path):
    base, first, second = family[:3]
    asked = adopt({**CONFIG, "merge_method": "breadcrumbs"})
    assert asked is not None

    output, facts = here("merge", first, more={"others": second, "base": base}, **asked.params)

    settings = {"merge_method": "breadcrumbs", "base_model": str(base)}
    paths = zip(CONFIG["models"], (first, second), strict=True)  # type: ignore[arg-type]  # a list of dicts
    models = [{**given, "model": str(path)} for given, path in paths]  # type: ignore[dict-item]
    expected = by_mergekit(tmp_path / "theirs", {**CONFIG, **settings, "models": models})
    assert 0.0 == apart(expected, tensors(output))
    assert {"method": "breadcrumbs", "tensors": len(expected)} == facts


def test_our_table_of_mergekits_methods_is_mergekits():
    methods = pytest.importorskip("mergekit.merge_methods", reason="mergekit is the extra `merge`").registered_methods()

    theirs = {}
    for one in methods:
        own = tuple(p.name for p in one.spec.input_parameters if p.required)
        shared = tuple(p.name for p in one.spec.shared_parameters if p.required)
        contract = one.spec.contract
        theirs[one.spec.name] = (
            contract.base.value == "required",
            contract.min_inputs,
            contract.max_inputs,
            own,
            shared,
        )
    assert theirs == {name: tuple(method) for name, method in METHODS.items()}


def changed(**changes: Any) -> Any:
    return MergeParams(method="mergekit", mergekit={**adopt(CONFIG).params["mergekit"], **changes})  # type: ignore[union-attr]


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: changed(merge_method="average"), "mergekit has no method 'average'"),
    (lambda: changed(base_model=None), "dare_ties needs a base_model"),
    (lambda: changed(models=[{"model": "source"}]), "dare_ties needs a weight for base"),
    (lambda: changed(models=[{"model": "others[4]"}]), "the configuration names others[4], which is no input"),
    (lambda: changed(slices=[{"sources": [{"model": "base"}]}]), "the configuration has models and slices"),
    (lambda: changed(merge_method="slerp", base_model="source"), "slerp needs t"),
    (lambda: changed(merge_method="passthrough"), "passthrough merges 1 models, not 2"),
    (lambda: changed(methods="ties"), "a configuration of mergekit has no 'methods'"),
    (
        lambda: changed(models=None, slices=[{"sources": [{"model": "base", "layer_range": [0, 9]}]}]),
        "slice 1 takes layers [0, 9] of",
    ),
]


@pytest.mark.parametrize(("params", "said"), BAD, ids=[said for _, said in BAD])
def test_a_configuration_that_mergekit_would_stumble_over_is_refused(
    params: Callable[[], Any], said: str, stock: Stock
):
    assert refusal(params(), stock.base, stock.other, base=stock.base).startswith(said)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"method": "ties", "density": (0.2,)}, "ties needs the base that the models were tuned from"),
        ({"method": "slerp", "weights": (1, 2)}, "--weights has no effect on slerp"),
        ({"method": "linear", "lambda": 2.0}, "--lambda has no effect on linear"),
        ({"method": "passthrough"}, "passthrough needs --slices"),
        ({"method": "passthrough", "slices": ("0:0-3",)}, "the slice 0:0-3 takes layers that are not there"),
        ({"method": "passthrough", "slices": ("2:0-1",)}, "the slice 2:0-1 takes layers of model 2, of 2"),
        ({"method": "passthrough", "slices": ("first half",)}, "'first half' is no slice of layers"),
        ({"method": "mergekit", "mergekit": {"merge_method": "linear"}, "t": 0.1}, "--t has no effect on mergekit"),
        ({"mergekit": {"merge_method": "linear"}}, "--mergekit has no effect on linear"),
        ({"method": "mergekit"}, "mergekit needs a configuration"),
    ],
)
def test_options_that_do_not_fit_the_method_are_refused(params: dict[str, Any], said: str, stock: Stock):
    assert refusal(MergeParams(**params), stock.base, stock.other).startswith(said)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"method": "ties"}, "ties needs --density"),
        ({"method": "dare-ties", "density": (0.2, 1.5)}, "a density is a share"),
        ({"method": "dare-ties", "density": (0.2, 0.2, 0.2)}, "3 densities for 2 models"),
        ({"method": "linear"}, "linear has no use for a base"),
    ],
)
def test_options_that_do_not_fit_the_inputs_are_refused(params: dict[str, Any], said: str, stock: Stock):
    assert refusal(MergeParams(**params), stock.base, stock.other, base=stock.other).startswith(said)
