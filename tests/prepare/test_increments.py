"""Increments equal rebuilds: after random histories of a source, with and without its change data feed."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from tests.prepare.test_documents import prepare

from tessera import erasures, tables
from tessera.home import Home
from tessera.lineage import PrepareRecord

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("n", pa.int64())])
NEAR = {"near_duplicates": {"threshold": 0.6, "shingle_words": 2, "bands": 20, "rows": 3}}
WORDS = [f"w{number}" for number in range(40)]


class Table:
    """A source that rows are put into, changed in and taken out of at random."""

    def __init__(self, path: Path, *, seed: int, feed: bool) -> None:
        self.path, self.random = path, random.Random(seed)
        self.keys: list[str] = []
        configuration = {"delta.enableChangeDataFeed": "true"} if feed else {}
        write_deltalake(path, self.rows(60), configuration=configuration)

    def text(self) -> str:
        """One of few texts, with a word changed now and then: equal ones and chains of similar ones come about."""
        words = random.Random(self.random.randrange(12)).choices(WORDS, k=14)
        for _ in range(self.random.choice([0, 0, 1, 2])):
            words[self.random.randrange(len(words))] = self.random.choice(WORDS)
        return " ".join(words) if self.random.random() > 0.05 else self.random.choice(["", "short"])

    def rows(self, count: int) -> pa.Table:
        new = [f"k{len(self.keys) + number}" for number in range(count)]
        self.keys += new
        return pa.Table.from_pylist([{"id": key, "text": self.text(), "n": 0} for key in new], schema=SCHEMA)

    def insert(self) -> None:
        write_deltalake(self.path, self.rows(self.random.randrange(1, 8)), mode="append")

    def update(self) -> None:
        chosen = ", ".join(f"'{key}'" for key in self.random.sample(self.keys, 4))
        DeltaTable(self.path).update(new_updates(self.text()), predicate=f"id IN ({chosen})")

    def delete(self) -> None:
        chosen = ", ".join(f"'{key}'" for key in self.random.sample(self.keys, 5))
        DeltaTable(self.path).delete(f"id IN ({chosen})")

    def change(self) -> None:
        for _ in range(self.random.randrange(1, 3)):
            self.random.choice([self.insert, self.update, self.delete])()


def new_updates(text: str) -> dict[str, str]:
    return {"text": f"'{text}'"}


def outcome_of(home: Home, record: PrepareRecord) -> set[tuple[Any, ...]]:
    """What the two must agree on: every row's fate, and the documents with their content."""
    assert record.decisions is not None
    decided = tables.read(home.resolve(record.decisions.path), version=record.decisions.version).to_pylist()
    documents = tables.read(home.documents, version=record.table.version).to_pylist()
    names = ("source", "doc_id", "row_sha256", "rows", "sha256", "reason", "split", "group", "displaced_by")
    assert {(row["doc_id"], row["sha256"]) for row in decided if row["reason"] is None} == {
        (row["doc_id"], row["sha256"]) for row in documents
    }
    return {tuple(row[name] for name in names) for row in decided} | {
        (row["doc_id"], row["sha256"], row["split"], row["group"], row["text"]) for row in documents
    }


def check(spark: "SparkSession", home: Home, other: Home, source: dict[str, Any], **more: Any) -> PrepareRecord:
    """Prepares in a home that goes on, and in one that is new, and compares."""
    ours = prepare(spark, home, source=source, **more)
    whole = prepare(spark, other, source=source, **more)
    assert outcome_of(home, ours) == outcome_of(other, whole)
    names = ("rows", "documents", "dropped", "splits", "num_bytes")
    assert [getattr(ours, name) for name in names] == [getattr(whole, name) for name in names]
    assert whole.changes == {}
    return ours


@pytest.mark.parametrize(
    ("feed", "near"), [(True, True), *(pytest.param(False, near, marks=pytest.mark.slow) for near in (False, True))]
)
def test_an_increment_equals_a_rebuild(
    spark: "SparkSession", home: Home, tmp_path: Path, feed: bool, near: bool
) -> None:
    history(spark, home, tmp_path, seed=7, feed=feed, near=near, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_an_increment_equals_a_rebuild_after_long_histories(
    spark: "SparkSession", home: Home, tmp_path: Path, seed: int
) -> None:
    history(spark, home, tmp_path, seed=seed, feed=seed % 2 == 0, near=seed % 3 != 0, steps=8)


def history(
    spark: "SparkSession", home: Home, tmp_path: Path, *, seed: int, feed: bool, near: bool, steps: int
) -> None:
    """In long ones, rows are erased now and then, of which no forget has made documents without them yet."""
    table = Table(tmp_path / "t", seed=seed, feed=feed)
    source, more = {"path": str(table.path)}, NEAR if near else {}
    assert check(spark, home, Home(tmp_path / "whole"), source, **more).changes == {}
    pairs: list[tuple[str, str]] = []
    for step in range(steps):
        table.change()
        other = Home(tmp_path / f"whole{step}")
        if step % 3 == 2:
            held = tables.read(home.documents).to_pylist()
            chosen = [(row["doc_id"], row["sha256"]) for row in table.random.sample(held, 2)]
            erasures.record(home, pairs=chosen, why="asked")
            pairs += chosen
        if pairs:
            erasures.record(other, pairs=pairs, why="asked")
        record = check(spark, home, other, source, **more)
        assert record.changes == {"t": "feed" if feed else "compared"}, (seed, step)


def test_what_was_displaced_comes_back_when_its_displacer_goes(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    table = Table(tmp_path / "t", seed=1, feed=False)
    source = {"path": str(table.path)}
    first = prepare(spark, home, source=source)
    kept = {row["doc_id"]: row["text"] for row in tables.read(home.documents).to_pylist()}
    assert first.decisions is not None
    decided = tables.read(home.resolve(first.decisions.path)).to_pylist()
    displaced = next(row for row in decided if row["reason"] == "duplicate")
    rows = tables.read(table.path).to_pylist()
    keys = [row["id"] for row in rows if row["text"] == kept[displaced["displaced_by"]]]
    smallest = min(keys, key=lambda key: doc_id_of("t", key))
    DeltaTable(table.path).delete(f"id = '{smallest}'")

    record = check(spark, home, Home(tmp_path / "whole"), source)

    after = {row["doc_id"]: row["added"] for row in tables.read(home.documents).to_pylist()}
    assert doc_id_of("t", smallest) not in after
    back = next(
        row for row in tables.read(home.documents).to_pylist() if row["text"] == kept[displaced["displaced_by"]]
    )
    assert back["added"] == record.table.version


def doc_id_of(source: str, key: str) -> str:
    import hashlib
    import json

    return hashlib.sha256(f"{source}\n{json.dumps({'id': key}, separators=(',', ':'))}".encode()).hexdigest()


@pytest.mark.slow
def test_rows_without_key_and_equal_rows_are_counted_in_increments(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    table = Table(tmp_path / "t", seed=3, feed=False)
    twice = pa.Table.from_pylist(
        [{"id": None, "text": "a row without any key at all", "n": 0}] * 2
        + [{"id": "k1", "text": "a row of a key that is there already", "n": 1}] * 3,
        schema=SCHEMA,
    )
    source = {"path": str(table.path), "updated": "n"}
    for more in ({"on_duplicate": "last"}, {"on_duplicate": "all"}):
        at = Home(tmp_path / f"home {more['on_duplicate']}")
        check(spark, at, Home(at.root / "whole 1"), source, **more)
        write_deltalake(table.path, twice, mode="append")
        record = check(spark, at, Home(at.root / "whole 2"), source, **more)
        assert record.dropped["null_key"] == tables.read(table.path)["id"].null_count


def test_sources_come_and_go(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    from tessera.prepare import documents, sources, stage
    from tessera.prepare.settings import PrepareSettings

    for name in ("a", "b"):
        Table(tmp_path / name, seed=len(name), feed=False)

    def run(at: Home, *names: str) -> PrepareRecord:
        settings = PrepareSettings.model_validate(
            {"sources": [{"path": str(tmp_path / name)} for name in names], "holdout": 0.2}
        )
        resolved = [sources.resolve(one, home=at) for one in settings.sources]
        fingerprint = stage.fingerprint(resolved, settings=settings)
        return documents.write_documents(spark, sources=resolved, settings=settings, fingerprint=fingerprint, home=at)

    for step, (names, how) in enumerate(
        [(("a",), {}), (("a", "b"), {"a": "same", "b": "whole"}), (("b",), {"a": "gone", "b": "same"})]
    ):
        record = run(home, *names)
        other = Home(tmp_path / f"whole{step}")
        assert outcome_of(home, record) == outcome_of(other, run(other, *names))
        assert record.changes == how


@pytest.mark.slow
def test_other_settings_and_an_older_version_start_over_or_compare(
    spark: "SparkSession", home: Home, tmp_path: Path
) -> None:
    table = Table(tmp_path / "t", seed=5, feed=True)
    source = {"path": str(table.path)}
    prepare(spark, home, source=source)
    table.insert()
    assert prepare(spark, home, source=source).changes == {"t": "feed"}
    assert check(spark, home, Home(tmp_path / "w1"), {**source, "version": 0}).changes == {"t": "compared"}
    assert check(spark, home, Home(tmp_path / "w2"), source, min_chars=30).changes == {}
    assert check(spark, home, Home(tmp_path / "w3"), {**source, "where": "id <> 'k2'"}, min_chars=30).changes == {}


def test_a_change_feed_whose_files_were_vacuumed_is_compared(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    table = Table(tmp_path / "t", seed=4, feed=True)
    source = {"path": str(table.path)}
    prepare(spark, home, source=source)
    table.update()
    files = list((table.path / "_change_data").rglob("*.parquet"))
    assert files
    for file in files:
        file.unlink()

    assert check(spark, home, Home(tmp_path / "whole"), source).changes == {"t": "compared"}


def test_a_column_that_was_dropped_and_made_anew_is_compared(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    """Every row is another one, and the change data feed says nothing of it."""
    table = Table(tmp_path / "t", seed=6, feed=True)
    source = {"path": str(table.path)}
    prepare(spark, home, source=source)
    by_name = "'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', 'delta.minWriterVersion' = '5'"
    spark.sql(f"ALTER TABLE delta.`{table.path}` SET TBLPROPERTIES ({by_name})")
    spark.sql(f"ALTER TABLE delta.`{table.path}` DROP COLUMN text")
    spark.sql(f"ALTER TABLE delta.`{table.path}` ADD COLUMN text STRING")
    spark.sql(
        f"UPDATE delta.`{table.path}` SET text = concat('a new text that was given to row ', id) WHERE id LIKE 'k3%'"
    )

    record = check(spark, home, Home(tmp_path / "whole"), source)

    assert record.changes == {"t": "compared"}
    assert record.documents == 11


def test_an_erased_row_is_turned_in_an_increment(spark: "SparkSession", home: Home, tmp_path: Path) -> None:
    table = Table(tmp_path / "t", seed=9, feed=False)
    source = {"path": str(table.path)}
    prepare(spark, home, source=source, **NEAR)
    rows = tables.read(home.documents).to_pylist()
    pairs = [(row["doc_id"], row["sha256"]) for row in rows[:3]]
    other = Home(tmp_path / "whole")
    for at in (home, other):
        erasures.record(at, pairs=pairs, why="asked")
    table.insert()

    record = check(spark, home, other, source, **NEAR)

    assert record.changes == {"t": "compared"}
    assert record.dropped["erased"] >= 3
    assert not {pair[0] for pair in pairs} & {row["doc_id"] for row in tables.read(home.documents).to_pylist()}


@pytest.mark.parametrize(
    "point",
    [
        "audit.after_append:raise",
        pytest.param("prepare.before_commit:raise", marks=pytest.mark.slow),
        pytest.param("publish.after_commit:raise:2", marks=pytest.mark.slow),
    ],
)
def test_a_killed_increment_leaves_the_old_version_or_the_new(
    spark: "SparkSession", home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    from tessera.failpoints import InjectedFault

    table = Table(tmp_path / "t", seed=11, feed=False)
    source = {"path": str(table.path)}
    prepare(spark, home, source=source)
    before = tables.read(home.documents).to_pylist()
    table.change()
    monkeypatch.setenv("TESSERA_FAIL", point)
    with pytest.raises(InjectedFault):
        prepare(spark, home, source=source)
    monkeypatch.delenv("TESSERA_FAIL")
    if not point.startswith("publish"):
        assert tables.read(home.documents).to_pylist() == before

    check(spark, home, Home(tmp_path / "whole"), source)
