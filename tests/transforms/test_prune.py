"""`prune`: exactly so many zeros, in the places that matter least, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError, Refused
from mreg.transforms._sparse import Pattern, find_cutoff, without_pattern, without_smallest
from mreg.transforms.prune import PruneParams, check, promise
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Here, Stock, material, rows, tensors

TEXT = {"num_calibration_samples": 40}


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99])
def test_every_linear_layer_has_exactly_so_many_zeros(here: Here, stock: Stock, sparsity: float):
    before = tensors(stock.sharded)
    after = tensors(here("prune", stock.sharded, sparsity=sparsity)[0])

    zeros = {name: int((after[name] == 0).sum()) for name in after if "proj" in name}
    assert {name: round(sparsity * before[name].numel()) for name in zeros} == zeros


def test_what_survives_is_unchanged_and_larger_than_what_went(here: Here, stock: Stock):
    before = tensors(stock.base)
    after = tensors(here("prune", stock.base, sparsity=0.4)[0])

    for name, tensor in after.items():
        kept = tensor != 0
        assert torch.equal(before[name][kept], tensor[kept])
        if "proj" in name:
            assert before[name][~kept].abs().max() <= before[name][kept].abs().min()


def test_embeddings_norms_and_the_head_keep_their_weights(here: Here, stock: Stock):
    before = tensors(stock.sharded)
    after = tensors(here("prune", stock.sharded, sparsity=0.9)[0])

    rest = [name for name in before if "proj" not in name]
    assert "lm_head.weight" in rest
    assert all(torch.equal(before[name], after[name]) for name in rest)


def test_ignored_layers_keep_their_weights(here: Here, stock: Stock):
    before = tensors(stock.base)
    after = tensors(here("prune", stock.base, sparsity=0.5, ignore=("re:.*mlp", "lm_head"))[0])

    changed = {name.split(".")[3] for name in before if not torch.equal(before[name], after[name])}
    assert {"self_attn"} == changed


def test_ignoring_everything_is_refused(here: Here, stock: Stock):
    with pytest.raises(Refused, match="none of the 15 linear layers of this LlamaForCausalLM is left"):
        here("prune", stock.base, sparsity=0.5, ignore=("re:.*",))


def test_of_equal_weights_the_first_go():
    tensor = torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, -0.5]])

    assert [[0.0, 0.0, 1.0], [2.0, 1.0, 0.0]] == without_smallest(tensor, 3).tolist()


def test_it_agrees_with_torch_where_no_weights_are_equal():
    from torch.nn.utils import prune as reference

    layer = torch.nn.Linear(30, 20)
    expected = reference.l1_unstructured(layer, "weight", amount=0.35)

    assert torch.equal(expected.weight, without_smallest(layer.weight_orig.detach(), round(0.35 * 600)))


def test_the_facts_say_the_sparsity_reached(here: Here, stock: Stock):
    _, facts = here("prune", stock.base, sparsity=0.5)

    assert (14, 0.5) == (facts["matrices"], facts["sparsity"])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_sparsity_out_of_range_is_refused(sparsity: float):
    with pytest.raises(ValidationError, match="sparsity"):
        PruneParams(sparsity=sparsity)


def test_an_adapter_is_refused(stock: Stock):
    with pytest.raises(Refused, match="fuse it into its base first"):
        check(PruneParams(sparsity=0.5), (material(stock.adapter),), ())


def test_every_output_loses_as_much_if_weights_compete_by_row(here: Here, stock: Stock):
    output, _ = here("prune", stock.base, sparsity=0.25, scope="per-row")

    zeros = {name: (each == 0).sum(1).unique().tolist() for name, each in tensors(output).items() if "proj" in name}
    assert {name: [32] if "down" in name else [16] for name in zeros} == zeros


@pytest.mark.parametrize("model", ["base", "sharded"])
def test_weights_of_all_layers_may_compete(here: Here, stock: Stock, model: str):
    before = tensors(getattr(stock, model))
    output, facts = here("prune", getattr(stock, model), sparsity=0.4, scope="global")

    after = {name: each for name, each in tensors(output).items() if "proj" in name}
    gone = torch.cat([before[name][each == 0].abs() for name, each in after.items()])
    left = torch.cat([each[each != 0].abs() for each in after.values()])
    assert round(0.4 * 73728) == len(gone) == facts["zeros"]
    assert gone.max() <= left.min()
    assert len({int((each == 0).sum()) for each in after.values()}) > 2
    assert all(torch.equal(each, before[name]) for name, each in tensors(output).items() if "proj" not in name)


def test_the_shards_do_not_matter_to_what_goes(here: Here, tmp_path: Path):
    whole = tiny.make_model(tmp_path / "whole", seed=0)
    apart = tiny.make_model(tmp_path / "apart", seed=0, max_shard_size="50KB")
    pruned = [tensors(here("prune", model, sparsity=0.5, scope="global")[0]) for model in (whole, apart)]

    assert len(list(apart.glob("*.safetensors"))) > 1
    assert all(torch.equal(pruned[0][name], pruned[1][name]) for name in pruned[0])


def test_it_agrees_with_torch_over_a_whole_model():
    from torch.nn.utils import prune as reference

    torch.manual_seed(0)
    layers = {"a": torch.nn.Linear(30, 20), "b": torch.nn.Linear(20, 10).double(), "c": torch.nn.Linear(5, 5).half()}
    weights = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    wide = {name: layer.double() for name, layer in layers.items()}
    reference.global_unstructured([(layer, "weight") for layer in wide.values()], reference.L1Unstructured, amount=300)
    cutoff = find_cutoff([*weights], weights.__getitem__, 300, lambda progress: None)

    for name, weight in weights.items():
        assert torch.equal(wide[name].weight, cutoff.without(name, weight).double())


@pytest.mark.parametrize(("dtype", "count"), [("bfloat16", 0), ("bfloat16", 7), ("float32", 5), ("float16", 12)])
def test_of_equal_weights_in_a_model_the_first_by_name_go(dtype: str, count: int):
    held = {name: torch.ones(2, 3, dtype=getattr(torch, dtype)) for name in ("b", "a")}
    cutoff = find_cutoff(["b", "a"], held.__getitem__, count, lambda progress: None)

    gone = [(cutoff.without(name, held[name]) == 0).reshape(-1).tolist() for name in ("a", "b")]
    assert [True] * count + [False] * (12 - count) == [*gone[0], *gone[1]]


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "5:8"])
def test_of_every_so_many_neighbours_the_largest_stay(here: Here, stock: Stock, pattern: str):
    keep, group = map(int, pattern.split(":"))
    before = tensors(stock.base)
    output, facts = here("prune", stock.base, pattern=pattern)

    for name, after in tensors(output).items():
        if "proj" in name:
            groups, were = after.reshape(-1, group), before[name].reshape(-1, group).abs()
            assert {keep} == set((groups != 0).sum(1).tolist())
            assert torch.equal(were.sort(dim=1).values[:, group - keep :], groups.abs().sort(dim=1).values[:, -keep:])
    assert 1 - keep / group == facts["sparsity"]


def test_the_first_of_equal_neighbours_go():
    matrix = torch.tensor([[1.0, -1.0, 2.0, 1.0], [3.0, 3.0, 3.0, 3.0]])

    assert [[0, 0, 2, 1], [0, 0, 3, 3]] == without_pattern(matrix, Pattern(2, 4)).tolist()


def inputs_of(model: Any, number: int, texts: list[str], folder: Path) -> dict[str, torch.Tensor]:
    """What goes into each linear layer of a decoder layer, [tokens, inputs]."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: dict[str, list[torch.Tensor]] = {}
    prefix = f"model.layers.{number}."
    hooks = [
        module.register_forward_pre_hook(
            lambda _, given, name=name: seen.setdefault(f"{name}.weight", []).append(given[0][0])
        )
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for text in texts:
            model(tokenizer(text, return_tensors="pt").input_ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def layer_by_layer(folder: Path, pruned: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What goes into each linear layer if those before it in the model are pruned and its own is not yet."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts = [row["text"] for row in tiny.text_rows()][:40]
    found: dict[str, torch.Tensor] = {}
    for number in range(2):
        found |= inputs_of(model, number, texts, folder)
        mine = {name: each.float() for name, each in pruned.items() if f"layers.{number}." in name}
        model.load_state_dict(mine, strict=False)
    return found


def test_wanda_is_what_the_paper_says(here: Here, stock: Stock):
    before = tensors(stock.base)
    output, facts = here("prune", stock.base, data="text", method="wanda", sparsity=0.5, **TEXT)
    after = tensors(output)

    assert (14, 0.5, 40) == (facts["matrices"], facts["sparsity"], facts["calibration_samples"])
    for name, given in layer_by_layer(stock.base, after).items():
        score = before[name].float().abs() * given.norm(dim=0)
        lowest = score.sort(dim=1, stable=True).indices[:, : score.shape[1] // 2]
        expected = before[name].scatter(1, lowest, 0)
        assert (expected != after[name]).float().mean() < 1e-3, name


def test_wanda_keeps_a_pattern(here: Here, stock: Stock):
    output, _ = here("prune", stock.base, data="chat", method="wanda", pattern="1:4", num_calibration_samples=6)

    left = torch.cat([each.reshape(-1, 4) for name, each in tensors(output).items() if "proj" in name])
    assert {1} == set((left != 0).sum(1).tolist())


def sparsegpt(weight: torch.Tensor, inputs: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Algorithm 1 of the paper for a matrix of one block, in float64."""
    hessian = inputs.double().T @ inputs.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian)).T
    scores = (weight.double() / inverse.diagonal()) ** 2
    gone = scores <= scores.flatten().sort().values[int(sparsity * scores.numel())]
    made = weight.double().clone()
    for column in range(made.shape[1]):
        error = torch.where(gone[:, column], made[:, column], 0) / inverse[column, column]
        made[:, column:] -= error[:, None] * inverse[column, column:]
        made[gone[:, column], column] = 0
    return made


def test_sparsegpt_is_what_the_paper_says(here: Here, stock: Stock):
    before = tensors(stock.sharded)
    output, facts = here("prune", stock.sharded, data="text", method="sparsegpt", sparsity=0.5, **TEXT)
    after = tensors(output)

    assert 0.5 <= facts["sparsity"] < 0.501
    for name, given in layer_by_layer(stock.sharded, after).items():
        expected = sparsegpt(before[name], given, 0.5)
        assert ((expected == 0) != (after[name] == 0)).double().mean() < 0.01, name
        assert (expected - after[name]).norm() < 0.05 * expected.norm(), name


def test_sparsegpt_changes_what_comes_out_least(here: Here, stock: Stock):
    ways: list[dict[str, Any]] = [{"data": "text", "method": "sparsegpt", **TEXT}, {"method": "magnitude"}]
    made = [tensors(here("prune", stock.sharded, pattern="2:4", **way)[0]) for way in ways]
    before = tensors(stock.sharded)

    for name, given in layer_by_layer(stock.sharded, made[0]).items():
        off = [(given @ (each[name] - before[name]).T).norm() for each in made]
        assert off[0] < 0.9 * off[1], name
        assert {2} == set((made[0][name].reshape(-1, 4) != 0).sum(1).tolist())


def with_zeros(big: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """The weights of `big` with zeros wherever `small` has lost a slice, found by comparing what they hold."""
    made = {}
    for name, whole in big.items():
        left = small.get(name, torch.zeros_like(whole))
        made[name] = left
        if left.shape != whole.shape:
            (axis,) = (axis for axis in range(whole.dim()) if left.shape[axis] != whole.shape[axis])
            slices, places = list(whole.unbind(axis)), []
            for each in left.unbind(axis):
                start = places[-1] + 1 if places else 0
                places.append(next(at for at in range(start, len(slices)) if torch.equal(slices[at], each)))
            made[name] = torch.zeros_like(whole).index_copy(axis, torch.tensor(places), left)
    return made


def build(kind: str, folder: Path) -> Path:
    """A tiny model of another kind, with biases where it has some that are not zero."""
    import transformers

    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    configs = {
        "mistral": lambda: transformers.MistralConfig(**small, **heads),
        "qwen2": lambda: transformers.Qwen2Config(**small, num_attention_heads=4, num_key_value_heads=4),
        "qwen3": lambda: transformers.Qwen3Config(**small, **heads),
        "roberta": lambda: transformers.RobertaConfig(**small, num_attention_heads=4, pad_token_id=0),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4),
    }
    auto = transformers.AutoModelForMaskedLM if kind == "roberta" else transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = auto.from_config(configs[kind]())
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def logits(folder: Path, weights: dict[str, Any] | None = None) -> torch.Tensor:
    """What plain transformers computes, in float64."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    if weights is not None:
        model.load_state_dict({name: each.double() for name, each in weights.items()}, strict=False)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(5, 30)[None]).logits
    return found


@pytest.mark.parametrize(
    ("kind", "structure", "sparsity", "told"),
    [
        ("sharded", "heads", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}),
        ("sharded", "channels", 0.3, {"intermediate_size": 90}),
        ("mistral", "heads", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}),
        ("qwen2", "heads", 0.25, {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}),
        ("qwen3", "heads", 0.5, {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}),
        ("qwen3", "channels", 0.25, {"intermediate_size": 36}),
        ("gpt2", "channels", 0.5, {"n_inner": 64}),
        ("roberta", "channels", 0.5, {"intermediate_size": 24}),
    ],
)
def test_a_smaller_model_computes_what_the_whole_one_does_with_those_parts_zero(
    here: Here, stock: Stock, tmp_path: Path, kind: str, structure: str, sparsity: float, told: dict[str, int]
):
    source = stock.sharded if kind == "sharded" else build(kind, tmp_path / kind)
    output, facts = here("prune", source, method="structured", structure=structure, sparsity=sparsity)

    config, before, after = material(output).config, tensors(source), tensors(output)
    assert told == {key: config[key] for key in told}
    assert facts["parameters"] == sum(each.numel() for each in after.values()) < facts["parameters_before"]
    assert not torch.allclose(logits(source), logits(output), atol=1e-3)
    assert torch.allclose(logits(source, with_zeros(before, after)), logits(output), atol=1e-9)


@pytest.mark.parametrize("importance", ["magnitude", "activations"])
def test_a_model_without_a_layer_computes_what_it_did_with_nothing_in_it(here: Here, tmp_path: Path, importance: str):
    source = tiny.make_model(tmp_path / "deep", layers=3, dtype="float32", tied=False)
    data = {"data": "text", **TEXT} if importance == "activations" else {}
    output, facts = here(
        "prune", source, method="structured", structure="layers", sparsity=0.34, importance=importance, **data
    )

    (gone,) = facts["removed"]
    silent = {name: each for name, each in tensors(source).items() if not name.startswith(f"model.layers.{gone}.")}
    silent |= {name: torch.zeros_like(each) for name, each in tensors(source).items() if name not in silent}
    assert 2 == material(output).config["num_hidden_layers"]
    assert torch.equal(logits(source, silent), logits(output))


def test_gpt2_loses_layers_too(here: Here, tmp_path: Path):
    output, facts = here(
        "prune", build("gpt2", tmp_path / "gpt2"), method="structured", structure="layers", sparsity=0.3
    )

    assert (3, 2, 2) == (facts["parts_before"], facts["parts"], material(output).config["n_layer"])
    assert logits(output).isfinite().all()


def test_the_weights_of_gpt2_stand_the_other_way_round(here: Here, tmp_path: Path):
    source = build("gpt2", tmp_path / "gpt2")
    patterned = tensors(here("prune", source, pattern="2:4")[0])
    by_row = tensors(here("prune", source, sparsity=0.25, scope="per-row")[0])

    for name in (name for name in patterned if ".c_" in name and name.endswith("weight")):
        assert {2} == set((patterned[name].T.reshape(-1, 4) != 0).sum(1).tolist())
        assert {len(by_row[name]) // 4} == set((by_row[name] == 0).sum(0).tolist())


def test_what_the_data_never_uses_goes_first_if_asked_for(here: Here, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    source = tiny.make_model(tmp_path / "odd", dtype="float32", tied=False)
    weights = load_file(source / "model.safetensors")
    dead = [number for number in range(128) if number % 4 == 1]
    for layer in range(2):
        weights[f"model.layers.{layer}.mlp.up_proj.weight"][dead] = 0
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, dead] = 3
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    cut = {"method": "structured", "structure": "channels", "sparsity": 0.25}
    by_data = logits(here("prune", source, data="text", importance="activations", **cut, **TEXT)[0])
    by_weights = logits(here("prune", source, **cut)[0])

    assert torch.allclose(logits(source), by_data, atol=1e-9)
    assert not torch.allclose(logits(source), by_weights, atol=1e-3)


def test_an_encoder_is_measured_on_text_as_well(here: Here, tmp_path: Path):
    source = tiny.make_encoder(tmp_path / "encoder")
    data = tiny.write_rows(tmp_path / "colours.jsonl", tiny.colour_rows())
    cut = {"method": "structured", "structure": "channels", "sparsity": 0.5, "importance": "activations"}
    output, facts = here("prune", source, data=[data], num_calibration_samples=20, **cut)

    assert (64, 32, 20) == (facts["parts_before"], facts["parts"], facts["calibration_samples"])
    assert torch.allclose(logits(source, with_zeros(tensors(source), tensors(output))), logits(output), atol=1e-9)


def test_only_what_looks_at_data_depends_on_the_machine():
    kept = [PruneParams(sparsity=0.5), PruneParams(sparsity=0.5, method="structured", structure="heads")]
    measured = [PruneParams(sparsity=0.5, method="wanda"), PruneParams(pattern="2:4", method="sparsegpt")]

    assert ["exact"] * 2 + ["same-machine"] * 2 == [promise(params) for params in [*kept, *measured]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "how much is to go is not said"),
        ({"pattern": "2/4"}, "'2/4' is no pattern: 2:4 keeps 2 of every 4"),
        ({"pattern": "4:4"}, "'4:4' is no pattern"),
        ({"pattern": "2:4", "sparsity": 0.6}, "the pattern 2:4 means a sparsity of 0.5, not of 0.6"),
        ({"pattern": "2:4", "scope": "global"}, "scope does nothing with a pattern"),
        ({"method": "wanda", "sparsity": 0.5, "scope": "global"}, "scope does nothing with wanda"),
        ({"sparsity": 0.5, "structure": "heads"}, "structure does nothing with magnitude"),
        ({"sparsity": 0.5, "method": "structured"}, "structured needs a structure"),
        ({"method": "structured", "structure": "heads", "pattern": "2:4"}, "pattern does nothing with structured"),
        ({"method": "sparsegpt", "pattern": "2:6"}, "blocks of 128 columns do not hold whole groups of 2:6"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        PruneParams(**options)


HEADS = {"method": "structured", "structure": "heads"}
WANDA = {"method": "wanda", "sparsity": 0.5}


@pytest.mark.parametrize(
    ("options", "data", "said"),
    [
        ({"pattern": "2:5"}, 0, r"groups of 5 do not divide the 128 columns of model\.layers\.0\.mlp\.down_proj"),
        ({"sparsity": 0.5}, 4, "^magnitude looks at no data"),
        (WANDA, 0, "wanda needs data to measure on"),
        (WANDA, 5, "128 calibration samples are asked for and the data has 5 rows.*--num-calibration-samples 5"),
        ({**WANDA, "ignore": ("re:model",)}, 200, "every layer of base is ignored"),
        (
            {**HEADS, "sparsity": 0.2},
            0,
            "removes none of the 2 key-value groups of heads of base: give 0.5",
        ),
        ({**HEADS, "sparsity": 0.9}, 0, "removes all of the 2 key-value groups of heads of base"),
        ({**HEADS, "sparsity": 0.5}, 4, "importance by magnitude looks at no data"),
        ({**HEADS, "sparsity": 0.5, "importance": "activations"}, 0, "importance by activations needs data"),
    ],
)
def test_what_cannot_be_pruned_so_is_said_before(stock: Stock, options: dict[str, Any], data: int, said: str):
    given = (rows((tiny.text_rows(20))[:data]),) if data else ()

    with pytest.raises(MregError, match=said):
        check(PruneParams(**options), (material(stock.base),), given)


def test_structures_that_a_model_does_not_have_are_refused_and_those_that_work_named(tmp_path: Path):
    encoder = material(tiny.make_encoder(tmp_path / "encoder"))
    gpt2 = material(build("gpt2", tmp_path / "gpt2"))

    with pytest.raises(
        Refused, match="model of type bert: use --structure channels or layers, or a model of type llama"
    ):
        check(PruneParams(**HEADS, sparsity=0.5), (encoder,), ())
    with pytest.raises(Refused, match="those of gpt2 are Conv1D: use magnitude"):
        check(PruneParams(**WANDA), (gpt2,), (rows(tiny.text_rows(20)),))
    with pytest.raises(Refused, match="which does not predict text"):
        check(PruneParams(**WANDA), (encoder,), (rows(tiny.text_rows(20)),))
