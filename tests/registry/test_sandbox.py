"""SQL typed by a person: it reads the projections and cannot do anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from mreg.registry import Registry
from mreg.registry.log.sandbox import BadQuery

from tests.histories import imported, made, moved


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    registry = Registry.init(tmp_path_factory.mktemp("registry"))
    for event in (imported(1), made(2, 1), moved("prod", None, 2)):
        registry.log.append(event)
    (registry.root.parent / "secret.csv").write_text("a\nsecret\n")
    return registry


def test_a_select_gives_names_and_rows(registry: Registry):
    names, rows = registry.sql(
        "SELECT r.name, v.number AS version FROM ref r JOIN version v USING (digest) WHERE v.parameters > 1e9"
    )

    assert (["name", "version"], [("prod", 2)]) == (names, rows)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{folder}/secret.csv')",
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "COPY version TO '{folder}/out.csv'",
        "EXPORT DATABASE '{folder}/out'",
        "ATTACH '{folder}/other.duckdb'",
        "ATTACH ':memory:' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "PRAGMA enable_external_access",
        "RESET lock_configuration",
        "CREATE TABLE mine AS SELECT 1",
        "DELETE FROM version",
        "UPDATE ref SET digest = 'x'",
        "DROP TABLE event",
        "SELECT 1; DELETE FROM version",
        "SELECT 1; SELECT 2",
        "",
        "SELEC 1",
        "SELECT nothing FROM nowhere",
    ],
)
def test_nothing_but_reading_this_database_is_possible(registry: Registry, statement: str):
    folder = registry.root.parent
    before = registry.log.path.read_bytes()

    with pytest.raises(BadQuery) as error:
        registry.sql(statement.format(folder=folder))

    assert error.value.fix
    assert before == registry.log.path.read_bytes()
    assert {".mreg", "secret.csv"} == {path.name for path in folder.iterdir()}


def test_a_query_after_the_database_was_lost_finds_it_healed(tmp_path: Path):
    registry = Registry.init(tmp_path)
    registry.log.append(imported(1))
    registry.log.path.unlink()

    assert (["n"], [(1,)]) == registry.sql("SELECT count(*) AS n FROM version")
