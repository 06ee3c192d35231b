"""Bisect by what is measured: a metric's bound or what a version says, with the fewest evaluations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.chains import opinions
from mreg.registry.chains.bisecting import ToTest
from mreg.registry.errors import Refused
from mreg.registry.measures.guards import MalformedGuard
from mreg.registry.measures.judging import Bench
from mreg.registry.models.datasets import UnknownDataset
from mreg.registry.transform import BadParams
from mreg.registry.versions import Version
from mreg.transforms._engine import LocalEngine

from tests import tiny

PROMPT = "What is the capital of"
BENCH = Bench(threads=1)
HARMED = 3


@dataclass(frozen=True)
class Chain:
    """A base and six steps, of which one spoils the model and the others only add a file."""

    registry: Registry
    versions: list[Version]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, engine: LocalEngine) -> Iterator[Chain]:
    root = tmp_path_factory.mktemp("chain")
    registry = Registry.init(root / "registry", engine=engine)
    folder = tiny.make_model(root / "0", seed=5)
    versions = [registry.import_model(folder).version]
    for number in range(1, 7):
        names = ["model.embed_tokens.weight"] if number == HARMED else []
        folder = tiny.make_changed(root / str(number), folder, *names)
        (folder / "notes.txt").write_text(f"step {number}")
        versions.append(registry.record_version(folder, transform="tweak", source=versions[-1]).version)
    rows = tiny.write_rows(root / "rows.jsonl", tiny.text_rows(copies=1))
    registry.add_dataset(rows, name="general")
    yield Chain(registry, versions)
    shutil.rmtree(root)


def evaluations(registry: Registry) -> int:
    return sum(event["kind"].startswith("evaluation-recorded") for event in registry.events())


def test_a_metric_finds_the_step_that_spoiled_it_and_asks_the_log_first(chain: Chain):
    registry, versions = chain.registry, chain.versions
    before = evaluations(registry)
    question = opinions.by_metric(
        registry, "perplexity(general)", below=f"1.01 * {versions[0]}", above=None, good=versions[:1], bench=BENCH
    )
    first = registry.bisect(versions[:1], versions[-1], question)
    taken = evaluations(registry) - before
    asked: list[ToTest] = []
    again = registry.bisect(
        versions[:1],
        versions[-1],
        question,
        report=lambda said: asked.append(said) if isinstance(said, ToTest) else None,
    )

    assert ((versions[HARMED],), (versions[HARMED],)) == (first.first_bad, again.first_bad)
    assert taken <= 1 + 3, "the bound's own, and three for six suspects"
    assert not any(one.from_log for one in first.tested)
    assert all(one.from_log for one in again.tested)
    assert [] == asked
    assert all("perplexity(general) is" in one.words for one in first.tested)
    # What is known without asking narrows it down before anything is measured.
    middle = registry.bisect(versions[1:2], versions[5], question)
    assert (versions[HARMED],) == middle.first_bad
    assert taken == evaluations(registry) - before


def test_what_a_version_says_finds_the_step_that_changed_it(chain: Chain):
    registry, versions = chain.registry, chain.versions
    sample = tiny.write_rows(registry.root / "tmp" / "said.jsonl", [{"prompt": PROMPT, "completion": " x"}])
    found = registry.evaluate(versions[0], data=sample, samples=1, max_new_tokens=6, threads=1)
    (row,) = [row for one in found.made for row in registry_rows(registry, one.digest)]
    before = evaluations(registry)
    question = opinions.by_prompt(registry, PROMPT, expect=row["generated"], reject=None, max_new_tokens=6, bench=BENCH)
    first = registry.bisect(versions[:1], versions[-1], question)
    taken = evaluations(registry) - before
    rejected = opinions.by_prompt(
        registry, PROMPT, expect=row["generated"], reject=first.tested[-1].words, max_new_tokens=6, bench=BENCH
    )

    assert row["generated"]
    assert (versions[HARMED],) == first.first_bad
    assert taken <= 3
    assert (versions[HARMED],) == registry.bisect(versions[:1], versions[-1], rejected).first_bad
    assert taken == evaluations(registry) - before, "the same prompt was asked before"


def registry_rows(registry: Registry, digest: str) -> Iterator[dict[str, str]]:
    from mreg.registry.models import datasets

    return datasets.rows(registry, digest)  # type: ignore[arg-type]  # digests are text


def test_a_good_one_that_is_known_to_be_bad_is_refused(chain: Chain):
    registry, versions = chain.registry, chain.versions
    by_size = opinions.by_metric(registry, "size", below=1, above=None, good=versions[:1])

    with pytest.raises(Refused, match=f"{versions[0]} is said to be good, and is bad: size is"):
        registry.bisect(versions[:1], versions[-1], by_size)
    above = opinions.by_metric(registry, "size", below=None, above=1, good=versions[:1])
    with pytest.raises(Refused, match=f"{versions[-1]} is said to be bad, and is good"):
        registry.bisect(versions[:1], versions[-1], above)


def test_a_question_without_a_bound_is_refused(chain: Chain):
    registry, good = chain.registry, chain.versions[:1]

    with pytest.raises(BadParams, match="one bound"):
        opinions.by_metric(registry, "size", below=None, above=None, good=good)
    with pytest.raises(BadParams, match="what a good answer is"):
        opinions.by_prompt(registry, PROMPT, expect=None, reject=None)
    unknown = opinions.by_metric(registry, "kl(x)", below=1, above=None, good=good)
    with pytest.raises(UnknownDataset, match="no dataset is called 'x'"):
        registry.bisect(good, chain.versions[-1], unknown)
    with pytest.raises(MalformedGuard, match="parent is another version"):
        opinions.by_metric(registry, "size", below="parent", above=None, good=good)


def test_a_version_that_cannot_be_measured_is_skipped(chain: Chain, tmp_path: Path):
    registry, versions = chain.registry, chain.versions
    mute = tiny.make_changed(tmp_path / "mute", tmp_path_of(registry, versions[2], tmp_path))
    for path in mute.glob("*token*"):
        path.unlink()
    skipped = registry.record_version(mute, transform="tweak", source=versions[2]).version
    whole = tiny.make_changed(tmp_path / "whole", tmp_path / "in", "model.embed_tokens.weight")
    last = registry.record_version(whole, transform="tweak", source=skipped).version
    question = opinions.by_metric(
        registry, "perplexity(general)", below=f"1.01 * {versions[0]}", above=None, good=versions[:1], bench=BENCH
    )
    found = registry.bisect([versions[2]], last, question)

    assert (skipped, last) == found.first_bad
    assert [("skip", f"{skipped} has no tokenizer")] == [(one.answer, one.words) for one in found.tested]


def tmp_path_of(registry: Registry, version: Version, folder: Path) -> Path:
    registry.check_out(version, folder / "in")
    return folder / "in"
