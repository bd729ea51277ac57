"""Increments: what comes out is what a rebuild gives, byte for byte, and cells that did not change keep their files."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from tests.shard.history import History, cell_of, hashes, row_of, spans, texts_of, write_set

from tessera import failpoints, publish, tables
from tessera.errors import ShardSetError, TokenizerError
from tessera.failpoints import InjectedFault
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.pipeline import Pipeline
from tessera.settings import load_settings
from tessera.shard import artefact, manifest, recipe, stage
from tessera.shard.format import mds
from tessera.shard.settings import ShardSettings
from tessera.shard.write import totals
from tessera.shard.write.changes import CellName, covering, sql_of
from tessera.shard.write.imported import import_folder

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


def test_a_condition_names_ranges_and_lists_of_buckets() -> None:
    cells = [CellName("train", 3, bucket) for bucket in (3, 1, 2)]
    cells += [CellName("train", 4, bucket) for bucket in (9, 1)] + [CellName("heldout", 0, 0)]

    assert sql_of(cells) == (
        "(split = 'heldout' AND generation = 0 AND bucket BETWEEN 0 AND 0) OR "
        "(split = 'train' AND generation = 3 AND bucket BETWEEN 1 AND 3) OR "
        "(split = 'train' AND generation = 4 AND bucket IN (1, 9))"
    )
    assert sql_of([]) == "false"


def test_a_covering_condition_is_short_whatever_the_number_of_cells(tmp_path: Path) -> None:
    rows = [{"split": "train", "generation": 0, "bucket": bucket} for bucket in range(1000)]
    write_deltalake(tmp_path / "spans", pa.Table.from_pylist(rows))
    scattered = covering([CellName("train", 0, bucket) for bucket in range(2, totals.MAX_BUCKETS, 2)])

    found = tables.query(tmp_path / "spans", version=0, sql=f"SELECT count(*) AS n FROM rows WHERE {scattered}")

    assert found["n"].to_pylist() == [998]


@pytest.mark.slow
def test_cells_that_are_no_neighbours_change_together(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path
) -> None:
    settings = SETTINGS.model_copy(update={"bucket_bytes": 2**10})
    record = write_set(spark, home, history.write(FIRST), settings=settings)
    cells = {(row["split"], row["bucket"]): row["doc_id"] for row in spans(home, record)}
    chosen = {doc_id for (_, bucket), doc_id in cells.items() if bucket % 2}
    changed = [key for key in FIRST if row_of(key, "")["doc_id"] in chosen]
    prepared = history.write(FIRST | {key: f"{key} another text of it" for key in changed})

    record = write_set(spark, home, prepared, settings=settings)

    assert len(chosen) > 20
    same(home, record, *rebuilt(spark, home, prepared, to=tmp_path / "rebuilt", settings=settings))


def test_compaction_counts_what_was_changed_often_once(spark: "SparkSession", home: Home, history: History) -> None:
    first = write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    for edition in range(1, 9):
        prepared = history.write(texts_of(range(200), edition=edition))

    compact = SETTINGS.model_copy(update={"compact_through": prepared.table.version})
    record = write_set(spark, home, prepared, settings=compact)

    assert [one.generation for one in record.generations] == [8]
    assert record.shards == first.shards


def test_a_smaller_compaction_undoes_a_larger_one(spark: "SparkSession", home: Home, history: History) -> None:
    for number in range(3):
        prepared = history.write(texts_of(range(100 + 30 * number)))
    compact = {through: SETTINGS.model_copy(update={"compact_through": through}) for through in (2, 1)}
    write_set(spark, home, prepared, settings=compact[2])

    smaller = write_set(spark, home, prepared, settings=compact[1])
    again = write_set(spark, home, prepared, settings=SETTINGS)

    assert [one.generation for one in smaller.generations] == [1, 2]
    assert recipe.recorded(smaller, home=home).compacted == 1
    assert again.written == 0


def test_a_side_table_that_was_vacuumed_is_written_anew(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path
) -> None:
    first = write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    path = manifest.spans_path(home, name="docs")
    for file in tables.data_files(path, version=first.spans.version):
        tables.remove_data_file(path / file)
    prepared = history.write(FIRST | texts_of(range(200, 230)))

    record = write_set(spark, home, prepared, settings=SETTINGS)

    assert stage.verify(record, home=home)
    same(home, record, *rebuilt(spark, home, prepared, to=tmp_path / "rebuilt"))


def test_direct_mode_does_not_hold_a_stored_set_whose_files_are_gone(
    spark: "SparkSession", home: Home, history: History
) -> None:
    prepared = history.write(FIRST)
    stored = write_set(spark, home, prepared, settings=SETTINGS)
    assert stage.verify(stored, home=home, stored=False)
    shutil.rmtree(manifest.set_folder(home, name="docs") / "train")

    assert not stage.verify(stored, home=home, stored=False)

    direct = write_set(spark, home, prepared, settings=SETTINGS.model_copy(update={"mode": "direct"}))
    assert direct.direct
    assert stage.verify(direct, home=home, stored=False)
    assert not stage.verify(direct, home=home)


def test_the_tokenizer_of_a_killed_first_writer_is_its_successors_own(
    spark: "SparkSession", home: Home, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the set's fingerprint is the same after it was published as before."""
    prepared = history.write(FIRST)
    monkeypatch.setenv("TESSERA_FAIL", "shard.before_manifest:raise")
    with pytest.raises(InjectedFault):
        write_set(spark, home, prepared, settings=SETTINGS)
    monkeypatch.delenv("TESSERA_FAIL")
    other = SETTINGS.model_copy(update={"seq_len": 128})

    record = write_set(spark, home, prepared, settings=other)

    assert stage.fingerprint(prepared, settings=other, home=home) == record.fingerprint


def test_a_tokenizer_without_its_record_is_told(spark: "SparkSession", home: Home, history: History) -> None:
    prepared = history.write(FIRST)
    ref = write_set(spark, home, prepared, settings=SETTINGS).tokenizer
    (home.resolve(ref.path) / artefact.RECORD).unlink()

    with pytest.raises(TokenizerError, match=r"record.json cannot be read.* restore it"):
        stage.fingerprint(prepared, settings=SETTINGS, home=home)


def test_an_imported_set_is_not_written_over(
    spark: "SparkSession", home: Home, history: History, tmp_path: Path
) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    config = mds.make_config({"text": "str"}, size_limit=2**16, hashes=["sha256"])
    samples = [{"text": text} for text in FIRST.values()]
    entries = []
    for number, (data, size) in enumerate(mds.shard_bytes(config, samples)):
        name = f"shard.{number:05d}.mds"
        (folder / name).write_bytes(data)
        hashed = {"sha256": hashlib.sha256(data).hexdigest()}
        entries.append(mds.index_entry(config, basename=name, num_bytes=len(data), samples=size, hashes=hashed))
    (folder / "index.json").write_text(mds.index_json(entries))
    import_folder(home, folder=folder, settings=SETTINGS, holdout=0.2)
    prepared = history.write(FIRST)

    for fresh in (False, True):
        with pytest.raises(ShardSetError, match="docs is of mds:foreign, not of documents"):
            write_set(spark, home, prepared, settings=SETTINGS, fresh=fresh)


def test_the_index_of_a_killed_writer_is_derived_by_the_next_command(
    spark: "SparkSession", home: Home, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(spark, home, history.write(FIRST), settings=SETTINGS)
    prepared = history.write(FIRST | texts_of(range(200, 260)))
    monkeypatch.setenv("TESSERA_FAIL", "publish.after_commit:raise")
    failpoints._passed.clear()
    with pytest.raises(InjectedFault):
        write_set(spark, home, prepared, settings=SETTINGS)
    monkeypatch.delenv("TESSERA_FAIL")
    index = manifest.set_folder(home, name="docs") / "train" / "index.json"
    assert json.loads(index.read_text())["tessera_manifest_version"] == 0

    Pipeline(load_settings("local"), home=home).history()

    listed = json.loads(index.read_text())
    named = {file.removeprefix("train/") for file in hashes(home, name="docs") if file.startswith("train/")}
    assert listed["tessera_manifest_version"] == 1
    assert {shard["raw_data"]["basename"] for shard in listed["shards"]} == named
