"""Datasets: rows from a file, in one canonical spelling, so that the same rows have the same digest from any format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mreg.registry import canonical, digests, files
from mreg.registry.digests import Digest
from mreg.registry.errors import MregError
from mreg.registry.log.events import DatasetAdded
from mreg.registry.models import hub_datasets
from mreg.registry.revs import REF_NAME, MalformedName, suggest
from mreg.registry.store.holding import shared

if TYPE_CHECKING:
    from mreg.registry.log.reading import Reader
    from mreg.registry.registry import Registry

Row = dict[str, Any]
_PIECE = 1 << 20


class UnknownDataset(MregError):
    """No dataset has this name or digest, and no file is there."""

    exit_code = 4


class BadDataset(MregError):
    """A file does not hold rows."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that are known. `names` are what they are called now."""

    digest: Digest
    rows: int
    bytes: int
    columns: tuple[str, ...]
    format: str
    source: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """What to call it: its first name, or the start of its digest."""
        return self.names[0] if self.names else self.digest[:12]


def add(registry: Registry, path: Path, *, name: str, message: str, source: str = "") -> Dataset:
    """Store the rows of a file, or of `hf:org/name[@revision][:split]`, and record them.

    `source` says where they came from when that is not the file. Raises BadDataset naming the row, MalformedName, and
    HubFailed.
    """
    if name and not REF_NAME.fullmatch(name):
        raise MalformedName(f"{name!r} cannot be a dataset's name", fix="use a-z, 0-9, . _ / and -, at most 128")
    is_file = not str(path).startswith(hub_datasets.PREFIX)
    with ExitStack() as held:
        with registry.scratch(f"data-{registry.log.new_id()}") as scratch:
            spelled = scratch / "rows.jsonl"
            if is_file:
                found = read_rows(path)
            else:
                fetched = hub_datasets.fetch(str(path), scratch / "hub")
                found, source = fetched.rows, fetched.source
            columns, count = _write(found, path, spelled)
            held.enter_context(shared(registry))
            with registry.store.batch() as batch:
                digest = _stored(batch, spelled)
            size = spelled.stat().st_size
        present = _find(registry, digest)
        if present is None or (name and name not in present.names):
            event = DatasetAdded(
                digest=digest,
                name=name,
                rows=count,
                bytes=size,
                columns=columns,
                format=path.suffix.lower().lstrip(".") if is_file else "hf",
                source=source or str(path.absolute()),
                message=message,
            )
            registry.log.append(event)
            present = _find(registry, digest)
    assert present is not None
    return present


def find(registry: Registry, text: str | Path) -> Dataset:
    """The dataset that `known_as` finds, or one that a path or `hf:…` means, which is added. Raises UnknownDataset."""
    found = registry.log.ask(lambda reader: known_as(reader, str(text)))
    if found is not None:
        return found
    if Path(text).is_file() or str(text).startswith(hub_datasets.PREFIX):
        return add(registry, Path(text), name="", message="")
    raise registry.log.ask(lambda reader: unknown(reader, str(text)))


def known_as(reader: Reader, text: str) -> Dataset | None:
    """The dataset that a name, or a digest prefix of 6 or more, means."""
    everything = known(reader)
    for dataset in everything:
        if text in dataset.names:
            return dataset
    matches = [dataset for dataset in everything if len(text) >= 6 and dataset.digest.startswith(text)]
    return matches[0] if len(matches) == 1 else None


def unknown(reader: Reader, text: str) -> UnknownDataset:
    """The error for a dataset that is not there, with the nearest that is."""
    names = [name for dataset in known(reader) for name in dataset.names]
    return UnknownDataset(
        f"no dataset is called {text!r} and no file is there",
        fix=suggest(text, names, "`mreg data list` shows them, `mreg data add PATH --as NAME` adds one"),
    )


def known(reader: Reader) -> list[Dataset]:
    """Every dataset, in order of appearance."""
    rows = reader.rows(
        """SELECT d.*, coalesce((SELECT list(n.name ORDER BY n.seq) FROM dataset_name n WHERE n.digest = d.digest), [])
           AS names FROM dataset d ORDER BY d.seq"""
    )
    return [
        Dataset(
            digest=row["digest"],
            rows=row["rows"],
            bytes=row["bytes"],
            columns=tuple(row["columns"]),
            format=row["format"],
            source=row["source"],
            names=tuple(row["names"]),
        )
        for row in rows
    ]


def spell_out(path: Path, destination: Path) -> tuple[Digest, tuple[str, ...], int]:
    """Write the rows of a file to `destination` as they would be stored; their digest, columns and number."""
    columns, count = _write(read_rows(path), path, destination)
    return Digest(digests.file_hasher().update_mmap(destination).hexdigest()), columns, count


def lay_out(registry: Registry, digest: Digest, path: Path) -> None:
    """Write a dataset's rows to `path` as JSON Lines, verified."""
    with files.disk_errors(path), open(path, "wb") as out:
        registry.store.copy_to(digest, out.write)


def rows(registry: Registry, digest: Digest) -> Iterator[Row]:
    """The rows of a stored dataset, in order."""
    payload = registry.store.open(digest).payload
    rest = b""
    for start in range(0, len(payload), _PIECE):
        *lines, rest = (rest + bytes(payload[start : start + _PIECE])).split(b"\n")
        yield from map(json.loads, lines)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, as its suffix says to read it. Raises BadDataset."""
    if not path.is_file():
        raise UnknownDataset(f"there is no file {path}", fix="give the path of a dataset")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(sorted(_READERS))
        raise BadDataset(f"{path.name} is of no known format", fix=f"give one of {kinds}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise BadDataset(
            f"{path.name} is not UTF-8 ({error.reason} at byte {error.start})", fix="save it as UTF-8"
        ) from error


def _find(registry: Registry, digest: Digest) -> Dataset | None:
    return next((dataset for dataset in registry.log.ask(known) if dataset.digest == digest), None)


def _stored(batch: Any, path: Path) -> Digest:
    from mreg.registry.store.spans import Span

    with open(path, "rb") as file:
        digest: Digest = batch.put_file(Span(file.fileno(), 0, path.stat().st_size))
    return digest


def _write(found: Iterable[Row], path: Path, destination: Path) -> tuple[tuple[str, ...], int]:
    """Spell rows, which came from `path`, at `destination`; their columns, sorted, and their number."""
    columns: dict[str, None] = {}
    count = 0
    with files.disk_errors(path), open(destination, "wb") as out:
        for count, row in enumerate(found, start=1):
            columns.update(dict.fromkeys(row))
            out.write(_spelled(row, path, count))
    if not count:
        raise BadDataset(f"{path} holds no rows", fix="give a file with at least one row")
    return tuple(sorted(columns)), count


def _spelled(row: Row, path: Path, number: int) -> bytes:
    try:
        return canonical.dumps(row) + b"\n"
    except canonical.NotCanonical as error:
        raise BadDataset(f"row {number} of {path.name}: {error.message}", fix=error.fix) from error


def _json_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(_parsed(line, path, number), path, number)


def _json(path: Path) -> Iterator[Row]:
    value = _parsed(path.read_text(encoding="utf-8"), path, 1)
    if not isinstance(value, list):
        raise BadDataset(
            f"{path.name} is not a list of objects", fix="wrap the rows in [ ], or give JSON Lines as .jsonl"
        )
    for number, row in enumerate(value, start=1):
        yield _row(row, path, number)


def _parsed(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"line {number} of {path.name} is not JSON ({error})", fix="correct that line") from error


def _row(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise BadDataset(f"row {number} of {path.name} is not an object", fix='write rows such as {"text": "…"}')
    return value


def _separated(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            try:
                columns = list(rows.fieldnames or ())
                for place, column in enumerate(columns):
                    if column in columns[:place]:
                        raise BadDataset(f"{path.name} names the column {column!r} twice", fix="rename one of them")
                for number, row in enumerate(rows, start=1):
                    if None in row or None in row.values():
                        problem = f"row {number} of {path.name} has another number of fields than the header"
                        raise BadDataset(problem, fix="correct that row")
                    yield dict(row)
            except csv.Error as error:
                raise BadDataset(f"{path.name} is not well formed ({error})", fix="correct it") from error

    return read


def _text(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield {"text": line.rstrip("\r\n")}


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except ArrowException as error:
        raise BadDataset(f"{path.name} is not Parquet ({error})", fix="write it again") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".txt": _text,
    ".parquet": _parquet,
}
