"""`prune`: exactly so many zeros, in the smallest places, and nothing else changed."""

from __future__ import annotations

import pytest
import torch
from mreg.registry.errors import Refused
from mreg.transforms.prune import PruneParams, check, without_smallest
from pydantic import ValidationError

from tests.transforms.conftest import Run, Stock, material, tensors


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99])
def test_every_linear_layer_has_exactly_so_many_zeros(run: Run, stock: Stock, sparsity: float):
    before = tensors(stock.sharded)
    after = tensors(run("prune", stock.sharded, sparsity=sparsity).output)

    zeros = {name: int((after[name] == 0).sum()) for name in after if "proj" in name}
    assert {name: round(sparsity * before[name].numel()) for name in zeros} == zeros


def test_what_survives_is_unchanged_and_larger_than_what_went(run: Run, stock: Stock):
    before = tensors(stock.base)
    after = tensors(run("prune", stock.base, sparsity=0.4).output)

    for name, tensor in after.items():
        kept = tensor != 0
        assert torch.equal(before[name][kept], tensor[kept])
        if "proj" in name:
            assert before[name][~kept].abs().max() <= before[name][kept].abs().min()


def test_embeddings_norms_and_the_head_keep_their_weights(run: Run, stock: Stock):
    before = tensors(stock.sharded)
    after = tensors(run("prune", stock.sharded, sparsity=0.9).output)

    rest = [name for name in before if "proj" not in name]
    assert "lm_head.weight" in rest
    assert all(torch.equal(before[name], after[name]) for name in rest)


def test_ignored_layers_keep_their_weights(run: Run, stock: Stock):
    before = tensors(stock.base)
    after = tensors(run("prune", stock.base, sparsity=0.5, ignore=("re:.*mlp", "lm_head")).output)

    changed = {name.split(".")[3] for name in before if not torch.equal(before[name], after[name])}
    assert {"self_attn"} == changed


def test_ignoring_everything_is_refused(run: Run, stock: Stock):
    ran = run("prune", stock.base, sparsity=0.5, ignore=("re:.*",))

    assert (ran.outcome.error or "").startswith("none of the 15 linear layers of this LlamaForCausalLM is left")


def test_of_equal_weights_the_first_go():
    tensor = torch.tensor([[1.0, -1.0, 1.0], [2.0, 1.0, -0.5]])

    assert [[0.0, 0.0, 1.0], [2.0, 1.0, 0.0]] == without_smallest(tensor, 3).tolist()


def test_it_agrees_with_torch_where_no_weights_are_equal():
    from torch.nn.utils import prune as reference

    layer = torch.nn.Linear(30, 20)
    expected = reference.l1_unstructured(layer, "weight", amount=0.35)

    assert torch.equal(expected.weight, without_smallest(layer.weight_orig.detach(), round(0.35 * 600)))


def test_the_facts_say_the_sparsity_reached(run: Run, stock: Stock):
    facts = run("prune", stock.base, sparsity=0.5).outcome.facts

    assert (14, 0.5) == (facts["matrices"], facts["sparsity"])


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_sparsity_out_of_range_is_refused(sparsity: float):
    with pytest.raises(ValidationError, match="sparsity"):
        PruneParams(sparsity=sparsity)


def test_an_adapter_is_refused(stock: Stock):
    with pytest.raises(Refused, match="fuse it into its base first"):
        check(PruneParams(sparsity=0.5), (material(stock.adapter),), ())
