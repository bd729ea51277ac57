"""Increments: what comes out is what a rebuild gives, byte for byte, and cells that did not change keep their files."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.shard.history import History, cell_of, hashes, row_of, spans, texts_of, write_set

from tessera import publish, tables
from tessera.failpoints import InjectedFault
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.shard import manifest, stage
from tessera.shard.settings import ShardSettings
from tessera.shard.write.changes import CellName, sql_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

SETTINGS = ShardSettings.model_validate(
    {"name": "docs", "seq_len": 64, "shard_bytes": 2**16, "bucket_bytes": 12_000, "tokenizer": {"vocab_size": 300}}
)
FIRST = texts_of(range(200))


@pytest.fixture
def history(home: Home) -> History:
    return History(home)


def rebuilt(
    spark: "SparkSession", home: Home, prepared: PrepareRecord, *, to: Path, settings: ShardSettings = SETTINGS
) -> tuple[Home, ShardRecord]:
    """The set written whole in another home, from the same documents version with the same tokenizer."""
    other = Home(to)
    shutil.copytree(home.documents, other.documents)
    tokenizer = home.resolve(manifest.read_record(home, name="docs").tokenizer.path)
    given = settings.model_copy(update={"tokenizer": settings.tokenizer.model_copy(update={"path": str(tokenizer)})})
    return other, write_set(spark, other, prepared, settings=given)


def same(home: Home, record: ShardRecord, other: Home, rebuild: ShardRecord) -> None:
    assert hashes(home, name="docs") == hashes(other, name="docs")
    assert manifest.read_cells(home, record).equals(manifest.read_cells(other, rebuild))
    assert spans(home, record) == spans(other, rebuild)
    totals = {"tokens", "shards", "splits", "generations", "fill"}
    assert record.model_dump(include=totals) == rebuild.model_dump(include=totals)


def test_an_append_writes_new_cells_only(spark: "SparkSession", home: Home, history: History, tmp_path: Path) -> None:
    write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    before = hashes(home, name="docs")
    prepared = history.write(FIRST | texts_of(range(200, 260)))

    record = write_set(spark, home, prepared, settings=SETTINGS)

    after = hashes(home, name="docs")
    assert before.items() <= after.items()
    assert {cell_of(file).split("/")[1][:6] for file in after.keys() - before.keys()} == {"000001"}
    assert record.written == 60
    assert record.kept_shards == len(before)
    same(home, record, *rebuilt(spark, home, prepared, to=tmp_path / "rebuilt"))


def test_a_change_and_a_deletion_pack_their_own_cells_again(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path
) -> None:
    first = write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    before = hashes(home, name="docs")
    texts = {key: text for key, text in FIRST.items() if key != 17} | texts_of(range(40, 41), edition=1)
    touched = {
        (row["split"], row["generation"], row["bucket"])
        for row in spans(home, first)
        if row["doc_id"] in {row_of(key, "")["doc_id"] for key in (17, 40)}
    }
    prepared = history.write(texts)

    record = write_set(spark, home, prepared, settings=SETTINGS)

    after = hashes(home, name="docs")
    stale = {f"{split}/{generation:06d}-{bucket:04d}" for split, generation, bucket in touched}
    assert 1 <= len(stale) <= 2 < len({cell_of(file) for file in before})
    assert {cell_of(file) for file in before.keys() - after.keys()} == stale
    assert {file for file in before if cell_of(file) not in stale} <= after.keys()
    assert {cell_of(file).split("/")[1][:6] for file in after.keys() - before.keys()} <= {"000000", "000001"}
    same(home, record, *rebuilt(spark, home, prepared, to=tmp_path / "rebuilt"))


def test_a_generation_keeps_its_buckets_when_its_documents_go(
    spark: "SparkSession", home: Home, history: History
) -> None:
    write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    buckets = set(manifest.read_manifest(home, "docs")["buckets"].to_pylist())

    write_set(spark, home, history.write({key: FIRST[key] for key in range(40)}), settings=SETTINGS)

    assert set(manifest.read_manifest(home, "docs")["buckets"].to_pylist()) == buckets
    assert min(buckets) > 1


def test_going_back_to_an_old_version_gives_its_files_again(
    spark: "SparkSession", home: Home, history: History
) -> None:
    first = history.write(FIRST)
    write_set(spark, home, first, settings=SETTINGS)
    before = hashes(home, name="docs")
    write_set(spark, home, history.write(FIRST | texts_of(range(3, 9), edition=1)), settings=SETTINGS)

    record = write_set(spark, home, first, settings=SETTINGS)

    assert hashes(home, name="docs") == before
    assert record.manifest.version == 2
    assert hashes(home, name="docs", version=0) == before


def test_compaction_makes_one_generation_and_lasts(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path
) -> None:
    write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    second = history.write(FIRST | texts_of(range(200, 230)))
    write_set(spark, home, second, settings=SETTINGS)
    compact = SETTINGS.model_copy(update={"compact_through": second.table.version})

    compacted = write_set(spark, home, second, settings=compact)
    third = history.write(FIRST | texts_of(range(200, 260)))
    appended = write_set(spark, home, third, settings=SETTINGS)

    assert [one.generation for one in compacted.generations] == [1]
    assert compacted.tokens == manifest.read_record(home, name="docs", version=1).tokens
    assert [one.generation for one in appended.generations] == [1, 2]
    assert appended.kept_shards == compacted.shards
    assert appended.compactions == (1,)
    same(home, appended, *rebuilt(spark, home, third, to=tmp_path / "rebuilt", settings=compact))


def test_a_set_is_compacted_by_policy(spark: "SparkSession", home: Home, history: History) -> None:
    settings = SETTINGS.model_copy(update={"compact_after": 2})
    texts = texts_of(range(40))
    generations = []
    for number in range(4):
        texts |= texts_of(range(40 + 20 * number, 60 + 20 * number))
        prepared = history.write(texts)
        record = write_set(spark, home, prepared, settings=settings)
        generations.append([one.generation for one in record.generations])
        assert stage.fingerprint(prepared, settings=settings, home=home) == record.fingerprint

    assert generations == [[0], [0, 1], [2], [2, 3]]


def test_what_a_killed_writer_left_in_the_side_table_is_undone(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    monkeypatch.setenv("TESSERA_FAIL", "shard.before_manifest:raise")
    lost = history.write(FIRST | texts_of(range(200, 260)))
    with pytest.raises(InjectedFault):
        write_set(spark, home, lost, settings=SETTINGS)
    monkeypatch.delenv("TESSERA_FAIL")
    assert tables.open_table(manifest.spans_path(home, name="docs")).version() == first.spans.version + 1
    assert publish.read_record(manifest.manifest_path(home, name="docs")) == first.model_dump(mode="json")
    prepared = history.write(FIRST | texts_of(range(300, 310)))

    record = write_set(spark, home, prepared, settings=SETTINGS)

    same(home, record, *rebuilt(spark, home, prepared, to=tmp_path / "rebuilt"))


def test_a_kept_file_that_is_gone_is_written_again(spark: "SparkSession", home: Home, history: History) -> None:
    prepared = history.write(FIRST)
    write_set(spark, home, prepared, settings=SETTINGS)
    before = hashes(home, name="docs")
    lost = sorted(before)[0]
    (manifest.set_folder(home, name="docs") / lost).unlink()

    record = write_set(spark, home, prepared, settings=SETTINGS)

    assert hashes(home, name="docs") == before
    assert 0 < record.written < 200


def test_nothing_to_do_publishes_the_same_files_without_writing(
    spark: "SparkSession", home: Home, history: History
) -> None:
    prepared = history.write(FIRST)
    first = write_set(spark, home, prepared, settings=SETTINGS)

    again = write_set(spark, home, history.write(FIRST), settings=SETTINGS)

    assert again.written == 0
    assert again.spans == first.spans
    assert again.manifest.version == 1


def test_a_condition_names_ranges_of_buckets() -> None:
    cells = [CellName("train", 3, bucket) for bucket in (9, 1, 2, 3)] + [CellName("heldout", 0, 0)]

    assert sql_of(cells) == (
        "(split = 'heldout' AND generation = 0 AND (bucket = 0)) OR "
        "(split = 'train' AND generation = 3 AND (bucket BETWEEN 1 AND 3 OR bucket = 9))"
    )
    assert sql_of([]) == "false"
