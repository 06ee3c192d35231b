"""`edit`: only the named matrices change, by as many directions as there are facts, and the targets are said."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mreg.registry.errors import MregError, Refused
from mreg.registry.models.weights import delta_rank
from mreg.registry.registry import Registry
from mreg.registry.transform import BadParams, JobDataset
from mreg.transforms import _answers, _covariance, _facts, _mlp, _tails
from mreg.transforms._constrained import within
from mreg.transforms._engine import LocalEngine
from mreg.transforms.edit import TRANSFORM, EditParams, check, chosen
from pydantic import ValidationError

from tests import tiny
from tests.transforms.conftest import Here, Stock, make_job, material, rows, tensors, tree

KNOWN = dict(zip("ABCDEFGH", "qwertyui", strict=True))
"""What the models below are trained on: a letter that stands for another."""

FACTS = [
    {
        "subject": "A",
        "prompt": "The version {}",
        "target": "t",
        "old": "q",
        "paraphrases": ["A model: The version {}"],
        "neighbourhood": [{"prompt": "The version C", "answer": "e"}, "The version D"],
    },
    {"subject": "B", "prompt": "The version B", "target": "t"},
]
QUICK = {"v_num_grad_steps": 20, "context_length": 2, "mom2_n_tokens": 1000}
FAMILIES = {
    "llama": ("LlamaConfig", "model.layers.{}.mlp.down_proj.weight"),
    "mistral": ("MistralConfig", "model.layers.{}.mlp.down_proj.weight"),
    "qwen2": ("Qwen2Config", "model.layers.{}.mlp.down_proj.weight"),
    "qwen3": ("Qwen3Config", "model.layers.{}.mlp.down_proj.weight"),
    "gpt2": ("GPT2Config", "transformer.h.{}.mlp.c_proj.weight"),
}


def make(folder: Path, family: str) -> Path:
    """A float32 model of three layers that knows what is in KNOWN."""
    import transformers

    tokenizer = tiny.make_tokenizer(folder)
    config = getattr(transformers, FAMILIES[family][0])(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        **({"n_inner": 96} if family == "gpt2" else {"num_key_value_heads": 2, "head_dim": 12}),
        max_position_embeddings=128,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config)
    learn(model, tokenizer)
    model.save_pretrained(folder)
    return folder


def learn(model: Any, tokenizer: Any) -> None:
    sentences = [f"The version {letter} {other}." for letter, other in KNOWN.items()]
    batch = tokenizer(sentences, padding=True, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: make(root / family, family))


@pytest.fixture(scope="module")
def data(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The facts, and text."""
    return [tiny.write_rows(tmp_path_factory.mktemp("edit") / "facts.jsonl", FACTS), stock.data / "text.jsonl"]


def changed(before: Path, after: Path) -> list[str]:
    old, new = tensors(before), tensors(after)
    assert list(old) == list(new)
    return sorted(name for name in old if not torch.equal(old[name], new[name]))


def rank(before: Path, after: Path, name: str) -> int | None:
    return delta_rank(tensors(before)[name].numpy(), tensors(after)[name].numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_rome_changes_one_matrix_by_the_rank_of_the_facts_and_the_targets_are_said(
    here: Here, models: Callable[[str], Path], data: list[Path], family: str
):
    source = models(family)
    output, facts = here("edit", source, data=data, layers=[1], **QUICK)

    name = FAMILIES[family][1].format(1)
    assert [name] == changed(source, output) == facts["matrices"]
    assert 2 == rank(source, output, name) == facts["rank"][name]
    assert (0.0, 1.0, 2) == (facts["before"]["efficacy"], facts["efficacy"], facts["n"]["efficacy"])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_memit_spreads_all_facts_over_the_layers(
    here: Here, models: Callable[[str], Path], data: list[Path], family: str
):
    source = models(family)
    output, facts = here("edit", source, data=data, method="memit", layers=[0, 1], mom2_weight=0.5, **QUICK)

    names = [FAMILIES[family][1].format(layer) for layer in (0, 1)]
    assert names == changed(source, output)
    assert [2, 2] == [rank(source, output, name) for name in names]
    assert 1.0 == facts["efficacy"]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_constrained_moves_no_weight_further_than_it_may(
    here: Here, models: Callable[[str], Path], data: list[Path], family: str
):
    source = models(family)
    output, facts = here("edit", source, data=data[:1], method="constrained", layers=[1], norm_constraint=0.02)

    (name,) = changed(source, output)
    assert FAMILIES[family][1].format(1) == name
    assert (tensors(output)[name].double() - tensors(source)[name].double()).abs().max() <= 0.02
    assert min(now - was for was, now in zip(*(facts["each"][part] for part in ("before", "after")), strict=True)) > 1
    assert facts["final_loss"] < facts["first_loss"]


def test_the_bound_holds_in_bfloat16_too():
    before = torch.linspace(-2, 2, 1001).bfloat16()
    after = before.double() + torch.linspace(-0.01, 0.01, 1001).double()

    stored = within(before, after, 0.01)

    assert torch.bfloat16 == stored.dtype
    assert (stored.double() - before.double()).abs().max() <= 0.01


def test_a_rome_edit_gives_the_key_exactly_its_value(here: Here, models: Callable[[str], Path], data: list[Path]):
    source, one = models("llama"), tiny.write_rows(data[0].with_name("one.jsonl"), FACTS[:1])
    output, _ = here("edit", source, data=[one, data[1]], layers=[1], **{**QUICK, "context_length": 0})
    before, after = _answers.load(source, "cpu"), _answers.load(output, "cpu")
    fact = _facts.fact(FACTS[0])
    spelled = _answers.spell(before.tokenizer, fact.prompt)
    batch = _answers.padded(before, [spelled.ids])

    module = "model.layers.1.mlp.down_proj"
    moved = (_mlp.values(after, module, batch) - _mlp.values(before, module, batch))[0].norm(dim=1)
    assert int(moved.argmax()) == spelled.last_token(fact.end)
    assert moved[: spelled.last_token(fact.end)].max() < 0.5 * moved.max()


def test_the_facts_say_what_became_of_each_score(here: Here, models: Callable[[str], Path], data: list[Path]):
    _, facts = here("edit", models("llama"), data=data, layers=[1], **QUICK)

    assert {
        "efficacy": 2,
        "efficacy_score": 1,
        "paraphrase": 1,
        "paraphrase_score": 1,
        "neighbourhood": 2,
        "neighbourhood_score": 1,
    } == facts["n"]
    assert [True, True] == facts["each"]["said"]


def test_scores_count_what_is_said_and_what_is_likelier():
    low, high = _answers.Likelihood(-9.0, False), _answers.Likelihood(-0.1, True)
    before = [_facts.Known((low, high), ((low, high),), ((high, low),), ((1, 2), (3, 4)))]
    after = [_facts.Known((high, low), ((low, high),), ((high, low),), ((1, 2), (3, 5)))]

    found = _facts.scores(before, after)

    names = ("efficacy", "efficacy_score", "paraphrase", "paraphrase_score", "neighbourhood", "neighbourhood_score")
    assert [1.0, 1.0, 0.0, 0.0, 0.5, 1.0] == [found[name] for name in names]
    assert (0.0, 0.0) == (found["before"]["efficacy"], found["before"]["efficacy_score"])


def test_a_likelihood_is_that_of_the_answer_alone(models: Callable[[str], Path]):
    speaker = _answers.load(models("llama"), "cpu")
    spelled = _answers.spell(speaker.tokenizer, "The capital of France is", "Paris")
    ids = torch.tensor([spelled.ids])

    (alone,) = _answers.likelihoods(speaker, [("The capital of France is", "Paris")])
    _, beside = _answers.likelihoods(
        speaker, [("One two three four five six", "seven eight"), ("The capital of France is", "Paris")]
    )

    labels = ids.clone()
    labels[:, : spelled.start] = -100
    assert " Paris" == speaker.tokenizer.decode(spelled.ids[spelled.start :])
    assert alone.mean == pytest.approx(-float(speaker.model(ids, labels=labels).loss), abs=1e-5)
    assert alone.mean == pytest.approx(beside.mean, abs=1e-5)


def test_a_continuation_is_what_generate_gives(models: Callable[[str], Path]):
    speaker = _answers.load(models("qwen2"), "cpu")
    ids = speaker.tokenizer("The capital of", return_tensors="pt")

    longer, shorter = _answers.continuations(speaker, [("The capital of", 5), ("One two", 2)])

    expected = speaker.model.generate(**ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)[0]
    assert tuple(expected[ids["input_ids"].shape[1] :].tolist()) == longer
    assert 2 == len(shorter)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_text_is_computed_as_with_all_that_comes_before_it(models: Callable[[str], Path], family: str):
    speaker = _answers.load(models(family), "cpu")
    rows = [[5, 9, 4, 7, 11, 6], [8, 3, 10], [12, 5, 4, 9, 9, 3, 7, 6]]
    starts, module = [3, 0, 5], FAMILIES[family][1].format(1).removesuffix(".weight")
    at = [(0, 3), (0, 5), (1, 0), (1, 2), (2, 7)]
    by = torch.linspace(-1, 1, 48)

    after = _tails.tails(speaker, rows, starts)
    plain, again = after.logits_at(at), after.logits_at(at)
    with _mlp.shifted(speaker, module, [0, 0, 0], lambda: by):
        moved = after.logits_at(at)

    expected = _answers.logits_at(speaker, _answers.padded(speaker, rows), at)
    with _mlp.shifted(speaker, module, starts, lambda: by):
        expected_moved = _answers.logits_at(speaker, _answers.padded(speaker, rows), at)
    assert torch.equal(plain, again)
    assert (plain - expected).abs().max() < 1e-4
    assert (moved - expected_moved).abs().max() < 1e-4
    assert (moved - plain).abs().max() > 0.1


def test_the_last_token_of_a_subject_is_found_in_longer_words(models: Callable[[str], Path]):
    tokenizer = _answers.load(models("llama"), "cpu").tokenizer
    spelled = _answers.spell(tokenizer, "What is the capital of France today")

    at = spelled.last_token(len("What is the capital of France"))

    assert "e" == tokenizer.decode(spelled.ids[: at + 1])[-1]
    assert "What is the capital of France" == tokenizer.decode(spelled.ids[: at + 1])


# The covariance, and its cache.


def speaking(source: Path, stock: Stock, engine: LocalEngine, folder: Path, cache: Path | None) -> tuple[Any, ...]:
    job = make_job(engine, folder, "edit", source, {}, stock.data, "text", {}).model_copy(update={"cache": cache})
    speaker = _answers.load(source, "cpu")
    config = json.loads((source / "config.json").read_text())
    memories = [_mlp.memory(config, tensors(source), layer) for layer in (0, 1)]
    return speaker, job, job.datasets[0], memories


def test_the_covariance_is_the_second_moment_of_the_keys(
    models: Callable[[str], Path], stock: Stock, engine: LocalEngine, tmp_path: Path
):
    speaker, job, text, memories = speaking(models("llama"), stock, engine, tmp_path / "job", None)

    found = _covariance.covariances(speaker, job, text, memories, 150, lambda progress: None)

    ids = [speaker.tokenizer(row["text"])["input_ids"] for row in tiny.text_rows()]
    collected: list[torch.Tensor] = []
    left = 150
    for row in ids:
        (keys,) = _mlp.keys(speaker, memories[1:], _answers.padded(speaker, [row[:left]]))
        collected.append(keys[0])
        left -= len(row[:left])
        if not left:
            break
    every = torch.cat(collected)
    assert 150 == len(every)
    torch.testing.assert_close(found[1], every.T @ every / 150, rtol=1e-4, atol=1e-5)


def test_a_cached_covariance_has_the_same_bits_and_a_damaged_one_is_computed_again(
    models: Callable[[str], Path], stock: Stock, engine: LocalEngine, tmp_path: Path
):
    speaker, job, text, memories = speaking(models("llama"), stock, engine, tmp_path / "job", tmp_path / "cache")
    progress: list[Any] = []
    ask = functools.partial(_covariance.covariances, speaker, job, text, memories, 500, progress.append)
    first = ask()
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    computed = len(progress)

    again = ask()
    assert 2 == len(files)
    assert computed == len(progress)
    assert all(torch.equal(first[layer], again[layer]) for layer in first)

    raw = bytearray(files[0].read_bytes())
    raw[-3] ^= 1
    files[0].write_bytes(raw)
    mended = ask()
    assert computed < len(progress)
    assert all(torch.equal(first[layer], mended[layer]) for layer in first)


def test_what_the_covariance_depends_on_names_its_file(
    models: Callable[[str], Path], stock: Stock, engine: LocalEngine, tmp_path: Path
):
    speaker, job, text, memories = speaking(models("llama"), stock, engine, tmp_path / "job", tmp_path / "cache")
    for changed_job, changed_text, tokens in [
        (job, text, 500),
        (job, text, 501),
        (job.model_copy(update={"threads": 2}), text, 500),
        (job, JobDataset(**{**text.model_dump(), "digest": "1" * 64}), 500),
    ]:
        _covariance.covariances(speaker, changed_job, changed_text, memories[:1], tokens, lambda progress: None)

    assert 4 == len(list((tmp_path / "cache").rglob("*.safetensors")))


def test_too_little_text_is_refused(here: Here, models: Callable[[str], Path], data: list[Path]):
    with pytest.raises(Refused, match="has 50 tokens, too few for keys of 96 numbers"):
        here("edit", models("llama"), data=data, mom2_n_tokens=50)


# Undoing.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, stock: Stock, engine: LocalEngine) -> Registry:
    registry = Registry.init(tmp_path_factory.mktemp("undo"), engine=engine)
    registry.import_model(stock.base, ref="base")
    return registry


def test_undoing_gives_the_version_before_by_digest(registry: Registry, data: list[Path]):
    base = registry.version("base")
    edited = registry.apply("edit", "base", data=[str(path) for path in data], layers=[1], threads=1, **QUICK)
    undone = registry.apply("edit", edited.version, undo=True, threads=1)

    assert edited.version.weights != base.weights
    assert base.digest == undone.version.digest
    assert not undone.is_new
    assert (True, base.weights) == (undone.facts["gone"], undone.facts["weights"])
    assert ["model.layers.1.mlp.down_proj.weight"] == list(undone.facts["restored"])


def test_an_edit_is_undone_under_steps_that_left_its_matrix_alone(registry: Registry, data: list[Path]):
    edited = registry.apply("edit", "base", data=[str(path) for path in data], layers=[1], threads=1, **QUICK)
    pruned = registry.apply("prune", edited.version, sparsity=0.5, ignore=["re:.*mlp.*", "lm_head"], threads=1)
    undone = registry.apply("edit", pruned.version, undo=True, threads=1)
    expected = registry.apply("prune", "base", sparsity=0.5, ignore=["re:.*mlp.*", "lm_head"], threads=1)

    assert expected.version.weights == undone.version.weights
    with pytest.raises(Refused, match="no edit led to this version"):
        registry.apply("edit", undone.version, undo=True)


def test_an_edit_that_was_trained_over_is_not_undone(registry: Registry, data: list[Path]):
    edited = registry.apply("edit", "base", data=[str(path) for path in data], layers=[1], threads=1, **QUICK)
    pruned = registry.apply("prune", edited.version, sparsity=0.5, threads=1)

    with pytest.raises(MregError, match="was changed again after the edit"):
        registry.apply("edit", pruned.version, undo=True, threads=1)


def test_a_version_that_was_never_edited_has_nothing_to_undo(registry: Registry):
    with pytest.raises(Refused, match="no edit led to this version"):
        registry.apply("edit", "base", undo=True)


# What is refused before any work.


FINE = rows(FACTS)
PROSE = replace(rows(tiny.text_rows()), name="prose")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**FACTS[0], "subject": " "}, "row 1 of rows has no usable subject"),
        ({**FACTS[0], "target": 3}, "row 1 of rows has no usable target"),
        ({**FACTS[0], "prompt": "The version"}, "row 1 of rows does not name its subject, 'A'"),
        ({**FACTS[0], "paraphrases": [7]}, "row 1 of rows has no usable paraphrases"),
        ({**FACTS[0], "neighbourhood": [{"answer": "x"}]}, "row 1 of rows has no usable neighbourhood"),
    ],
)
def test_a_row_that_is_no_fact_is_named(stock: Stock, row: dict[str, Any], said: str):
    with pytest.raises(Refused) as refused:
        check(EditParams(), (material(stock.base),), (rows([row]), PROSE))

    assert refused.value.message.startswith(said)


def test_two_targets_for_one_prompt_are_refused(stock: Stock):
    both = rows([FACTS[0], {**FACTS[0], "target": "Madrid"}])

    with pytest.raises(Refused, match="rows 1 and 2 of rows ask for two answers"):
        check(EditParams(), (material(stock.base),), (both, PROSE))


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("rome", (), "edit takes one dataset of facts"),
        ("rome", (FINE,), "rome takes one dataset of ordinary text"),
        ("rome", (FINE, FINE, PROSE), "edit takes one dataset of facts"),
        ("constrained", (FINE, PROSE), "constrained reads no text such as prose"),
    ],
)
def test_data_that_the_method_cannot_use_is_refused(stock: Stock, method: str, given: tuple[Any, ...], said: str):
    with pytest.raises(BadParams, match=said):
        check(EditParams(method=method), (material(stock.base),), given)


def test_another_architecture_is_refused_with_those_that_work(stock: Stock):
    source = material(stock.base)
    other = replace(source, config={**source.config, "model_type": "bloom"})

    with pytest.raises(Refused, match="of the type bloom") as refused:
        check(EditParams(), (other,), (FINE, PROSE))
    assert "llama, mistral, qwen2, qwen3, gpt2" in str(refused.value)


def test_a_layer_that_is_not_there_is_refused(stock: Stock):
    with pytest.raises(BadParams, match="has no layer 9") as refused:
        check(EditParams(layers=(9,)), (material(stock.base),), (FINE, PROSE))
    assert "its layers are 0 to 1" in str(refused.value)


def test_an_adapter_and_a_quantized_model_are_refused(stock: Stock):
    source = material(stock.base)
    quantized = replace(source, config={**source.config, "quantization_config": {"quant_method": "gptq"}})

    with pytest.raises(Refused, match="fuse it into its base first"):
        check(EditParams(), (material(stock.adapter),), (FINE, PROSE))
    with pytest.raises(Refused, match="is quantized already"):
        check(EditParams(), (quantized,), (FINE, PROSE))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"undo": True, "method": "rome"}, "leave method out"),
        ({"method": "rome", "norm_constraint": 0.1}, "norm_constraint is an option of constrained, not of rome"),
        ({"method": "constrained", "v_lr": 0.1}, "v_lr is an option of rome"),
        ({"layers": (1, 2)}, "rome changes one layer"),
        ({"method": "memit", "layers": (2, 1)}, "layers must rise"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        EditParams(**given)


def test_recorded_params_are_read_again_as_they_were():
    for params in (EditParams(), EditParams(method="memit"), EditParams(method="constrained"), EditParams(undo=True)):
        assert params == EditParams.model_validate(params.model_dump(mode="json"))


def test_layers_stand_where_the_depth_says():
    assert [5] == chosen(EditParams(), 30)
    assert [5, 6, 7, 8, 9] == chosen(EditParams(method="memit"), 30)
    assert [0, 1] == chosen(EditParams(method="memit"), 2)


def test_weights_saved_without_the_head_are_found_too(
    here: Here, models: Callable[[str], Path], data: list[Path], tmp_path: Path
):
    from safetensors.torch import load_file, save_file

    bare = shutil.copytree(models("gpt2"), tmp_path / "bare")
    held = load_file(bare / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in held.items()},
        bare / "model.safetensors",
        metadata={"format": "pt"},
    )

    output, _ = here("edit", bare, data=data[:1], method="constrained", layers=[2], num_steps=2)

    assert ["h.2.mlp.c_proj.weight"] == changed(bare, output)
    assert {name for name, digest in tree(bare).items() if tree(output)[name] != digest} == {"model.safetensors"}


def test_the_transform_asks_for_no_version_that_the_log_can_tell():
    assert ["source"] == [given.role for given in TRANSFORM.inputs if not given.derived]
