"""Datasets: the same rows have the same digest, whatever file they came in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mreg.registry import Registry
from mreg.registry.models import datasets
from mreg.registry.models.datasets import BadDataset, UnknownDataset, read_rows
from mreg.registry.revs import MalformedName

ROWS = [
    {"label": "good", "text": "one, two"},
    {"label": "bad", "text": 'three "four"\nfive'},
    {"label": "", "text": "é"},
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry.init(tmp_path_factory.mktemp("registry"))


def _jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def _json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False))


def _csv(path: Path) -> None:
    path.write_text('﻿label,text\ngood,"one, two"\nbad,"three ""four""\nfive"\n,é\n')


def _tsv(path: Path) -> None:
    path.write_text('label\ttext\ngood\tone, two\nbad\t"three ""four""\nfive"\n\té\n')


def _parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path], None]] = {
    "jsonl": _jsonl,
    "ndjson": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
    "parquet": _parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str):
    WRITERS[suffix](tmp_path / f"rows.{suffix}")

    assert ROWS == list(read_rows(tmp_path / f"rows.{suffix}"))


def test_the_same_rows_are_one_dataset_from_any_format(registry: Registry, tmp_path: Path):
    for suffix, write in WRITERS.items():
        write(tmp_path / f"same.{suffix}")
    added = [registry.add_dataset(tmp_path / f"same.{suffix}") for suffix in WRITERS]

    assert 1 == len({dataset.digest for dataset in added})
    assert (3, ("label", "text"), "jsonl") == (added[0].rows, added[0].columns, added[0].format)
    assert ROWS == list(datasets.rows(registry, added[0].digest))


def test_text_is_a_row_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n\n  two\r\nthree")

    assert [{"text": "one"}, {"text": "  two"}, {"text": "three"}] == list(read_rows(tmp_path / "a.txt"))


def test_the_order_of_rows_counts_and_that_of_columns_does_not(registry: Registry, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"a":1,"b":2}\n{"a":3,"b":4}\n')
    (tmp_path / "b.jsonl").write_text('{"b":2, "a":1.0}\n{"b":4,"a":3}\n')
    (tmp_path / "c.jsonl").write_text('{"a":3,"b":4}\n{"a":1,"b":2}\n')
    a, b, c = (registry.add_dataset(tmp_path / f"{name}.jsonl").digest for name in "abc")

    assert a == b
    assert a != c


def test_a_dataset_is_found_by_name_digest_or_path(registry: Registry, tmp_path: Path):
    (tmp_path / "found.txt").write_text("found\n")
    dataset = registry.add_dataset(tmp_path / "found.txt", name="found")
    again = registry.add_dataset(tmp_path / "found.txt", name="found")

    assert dataset == again
    assert dataset == datasets.find(registry, "found")
    assert dataset == datasets.find(registry, dataset.digest[:8])
    assert dataset == datasets.find(registry, tmp_path / "found.txt")
    (tmp_path / "by-path.txt").write_text("by itself\n")
    assert "txt" == datasets.find(registry, str(tmp_path / "by-path.txt")).format


def test_a_name_may_come_to_mean_other_rows(registry: Registry, tmp_path: Path):
    path = tmp_path / "moving.txt"
    path.write_text("one\n")
    first = registry.add_dataset(path, name="moving")
    path.write_text("two\n")
    second = registry.add_dataset(path, name="moving")

    assert second.digest == datasets.find(registry, "moving").digest
    assert () == datasets.find(registry, first.digest).names


def test_an_unknown_dataset_gets_a_suggestion(registry: Registry, tmp_path: Path):
    (tmp_path / "training.txt").write_text("a\n")
    registry.add_dataset(tmp_path / "training.txt", name="training")

    with pytest.raises(UnknownDataset, match=r"no dataset is called 'trainin'.*did you mean training"):
        datasets.find(registry, "trainin")


BAD = {
    "empty.jsonl": (b"", "holds no rows"),
    "broken.jsonl": (b'{"a": 1}\n{"a": \n', "line 2 of broken.jsonl is not JSON"),
    "list.jsonl": (b"[1, 2]\n", "row 1 of list.jsonl is not an object"),
    "object.json": (b'{"a": 1}', "object.json is not a list of objects"),
    "deep.json": (b"[" * 100_000, "is not JSON"),
    "latin.txt": (b"caf\xe9\n", "latin.txt is not UTF-8"),
    "huge.jsonl": (b'{"n": 9007199254740993}\n', "row 1 of huge.jsonl: this value cannot be written"),
    "nan.jsonl": (b'{"n": 1}\n{"n": NaN}\n', "row 2 of nan.jsonl: this value cannot be written"),
    "lone.jsonl": (b'{"n": "\\ud800"}\n', "row 1 of lone.jsonl"),
    "more.csv": (b"a,b\n1,2\n1,2,3\n", "row 2 of more.csv has another number of fields than the header"),
    "fewer.csv": (b"a,b\n1\n", "row 1 of fewer.csv has another number of fields"),
    "quote.csv": (b'a,b\n"1"2,3\n', "quote.csv is not well formed"),
    "twice.csv": (b"a,a\n1,2\n", "twice.csv names the column 'a' twice"),
    "fake.parquet": (b"PAR1 no PAR1", "fake.parquet is not Parquet"),
    "weights.bin": (b"x", "weights.bin is of no known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_without_rows_is_refused_and_leaves_nothing(registry: Registry, tmp_path: Path, name: str):
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    before = registry.events()

    with pytest.raises(BadDataset, match=said):
        registry.add_dataset(tmp_path / name)
    assert before == registry.events()
    assert [] == list((registry.root / "tmp").iterdir())


def test_a_row_that_json_cannot_say_is_refused(registry: Registry, tmp_path: Path):
    pq.write_table(pa.table({"when": pa.array([0], pa.timestamp("s"))}), tmp_path / "times.parquet")

    with pytest.raises(BadDataset, match=r"row 1 of times\.parquet"):
        registry.add_dataset(tmp_path / "times.parquet")


def test_a_missing_file_and_a_bad_name_are_told_apart(registry: Registry, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a\n")

    with pytest.raises(UnknownDataset, match="there is no file"):
        registry.add_dataset(tmp_path / "b.txt")
    with pytest.raises(MalformedName, match="'A b' cannot be a dataset's name"):
        registry.add_dataset(tmp_path / "a.txt", name="A b")


_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(st.text("abé", min_size=1, max_size=3), _VALUES, max_size=3), max_size=4))
def test_rows_of_any_json_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert rows == list(read_rows(path))


def test_rows_longer_than_a_piece_are_read_whole(registry: Registry, tmp_path: Path):
    rows = [{"text": "x" * 3_000_000}, {"text": "y"}, {"text": "z" * 1_500_000}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = registry.add_dataset(tmp_path / "long.jsonl")

    assert rows == list(datasets.rows(registry, dataset.digest))
