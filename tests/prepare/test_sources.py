"""Sources: pinned and checked without a JVM."""

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare import sources, stage
from tessera.prepare.settings import PrepareSettings, SourceSettings


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t"
    for count in (1, 2, 3):
        write_deltalake(
            path, pa.table({"id": ["a"] * count, "text": ["x"] * count, "n": [1] * count}), mode="overwrite"
        )
    return path


def test_latest_is_resolved_once_and_a_version_is_kept(table: Path, home: Home) -> None:
    latest = sources.resolve(SourceSettings(path=str(table)), home=home)
    pinned = sources.resolve(SourceSettings(path=str(table), version=0), home=home)

    assert (latest.pinned.name, latest.pinned.version) == ("t", 2)
    assert pinned.pinned.version == 0
    assert latest.pinned.table_id == pinned.pinned.table_id != ""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "body"}, "no column 'body' for prepare.sources.text; it has: id, text, n"),
        ({"id": ["id", "key"]}, "no column 'key' for prepare.sources.id"),
        ({"text": "n"}, "of type long, wanted string"),
        ({"version": 9}, "versions 0 to 2, wanted 9"),
        ({"timestamp": "soon"}, "ISO 8601"),
        ({"timestamp": "1999-01-01"}, "begins at"),
    ],
)
def test_what_does_not_fit_is_named(table: Path, home: Home, values: dict[str, object], expected: str) -> None:
    with pytest.raises(SourceError, match=expected):
        sources.resolve(SourceSettings.model_validate({"path": str(table), **values}), home=home)


def test_an_unknown_table_lists_what_there_is(home: Home) -> None:
    write_deltalake(home.tables / "pages", pa.table({"id": ["a"], "text": ["x"]}))

    with pytest.raises(SourceError, match=r"no table docs in .*it holds: pages"):
        sources.resolve(SourceSettings(table="docs"), home=home)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"table": "a", "path": "/b"},
        {"path": "/b", "version": 1, "timestamp": "2026-01-01"},
        {"path": "/b", "name": "a b"},
        {"path": "/b", "kind": "poem"},
    ],
)
def test_impossible_sources_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SourceSettings.model_validate(values)


@pytest.mark.parametrize(
    "where",
    ["day >= current_date() - 30", "rand() < 0.5", "at > NOW ()", "id IN (SELECT id FROM other)", "u = current_user"],
)
def test_a_condition_that_hangs_on_more_than_the_row_is_refused(where: str) -> None:
    with pytest.raises(ValueError, match="where may hang on the row alone, found"):
        SourceSettings(path="/a", where=where)


@pytest.mark.parametrize(
    "where", ["day >= date '2026-01-01'", "note = 'now() or current_date'", "`now` > 3", "known = 1 AND brand(id) = 2"]
)
def test_a_condition_on_the_row_is_taken(where: str) -> None:
    assert SourceSettings(path="/a", where=where).where == where


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two sources are called 't'"):
        PrepareSettings.model_validate({"sources": [{"path": "/a/t"}, {"path": "/b/t"}]})


def test_a_rolled_back_table_is_noticed(table: Path, home: Home) -> None:
    source = sources.resolve(SourceSettings(path=str(table)), home=home)
    (table / "_delta_log" / f"{2:020}.json").unlink()
    shorter = sources.resolve(SourceSettings(path=str(table)), home=home)

    sources.check_not_rolled_back(source, earlier=[source.pinned])
    with pytest.raises(SourceError, match="is at version 1, but version 2 was read before"):
        sources.check_not_rolled_back(shorter, earlier=[source.pinned])


def test_a_recorded_result_of_another_table_of_that_name_is_not_reused(table: Path, home: Home) -> None:
    write_deltalake(home.documents, pa.table({"doc_id": ["a"]}))
    source = sources.resolve(SourceSettings(path=str(table)), home=home)

    def recorded(table_id: str) -> PrepareRecord:
        pinned = source.pinned.model_copy(update={"table_id": table_id})
        documents = TableVersion(name="documents", path="tables/documents", version=0)
        return PrepareRecord(
            fingerprint="f", rows=1, documents=1, dropped={}, splits={}, num_bytes=1, table=documents, inputs=(pinned,)
        )

    assert stage.verify(recorded(source.pinned.table_id), sources=[source], home=home)
    assert not stage.verify(recorded("another"), sources=[source], home=home)


def test_the_fingerprint_is_of_names_and_versions_not_places(table: Path, home: Home, tmp_path: Path) -> None:
    settings = PrepareSettings.model_validate({"sources": [{"path": str(table)}]})
    elsewhere = tmp_path / "elsewhere" / "t"
    for count in (1, 2, 3):
        data = pa.table({"id": ["a"] * count, "text": ["x"] * count, "n": [1] * count})
        write_deltalake(elsewhere, data, mode="overwrite")
    moved = PrepareSettings.model_validate({"sources": [{"path": str(elsewhere)}]})
    other = PrepareSettings.model_validate({"sources": [{"path": str(table), "where": "n > 0"}]})

    def fingerprint(of: PrepareSettings) -> str:
        return stage.fingerprint([sources.resolve(source, home=home) for source in of.sources], settings=of)

    assert fingerprint(settings) == fingerprint(moved)
    assert fingerprint(settings) != fingerprint(other)
