"""Shard sets written by Spark: the same bytes however the work is cut, every token there, published whole or not."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tessera import publish, tables
from tessera.errors import Conflict, ShardingFailed, TokenizerError
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord, TableVersion
from tessera.shard import artefact, manifest, stage, tokenizer
from tessera.shard.cell import Recipe
from tessera.shard.format import mds
from tessera.shard.read.batches import open_split
from tessera.shard.settings import ShardSettings
from tessera.shard.tokenizer import Definition
from tessera.shard.write import tokenizers, totals
from tessera.shard.write.shard_set import write_shards
from tessera.shard.write.totals import Group, num_buckets

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

SETTINGS = ShardSettings.model_validate(
    {"name": "docs", "seq_len": 64, "shard_bytes": 2**16, "bucket_bytes": 24_000, "tokenizer": {"vocab_size": 300}}
)
SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("text", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64()),
     ("split", pa.string()), ("added", pa.int64())]
)  # fmt: skip
NOUNS = ("array", "axis", "value", "shape", "matrix", "index", "dtype", "error", "number", "result")


def make_rows(number: int) -> list[dict[str, object]]:
    """Documents of all lengths, from a word to several sequences, in two generations."""
    random = np.random.default_rng(5)
    rows = []
    for key in range(number):
        words = random.choice(NOUNS, int(random.integers(1, 60)) * (20 if key % 50 == 0 else 1))
        text = f"{key} " + " ".join(words)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        rows.append(
            {"doc_id": hashlib.sha256(f"source {key}".encode()).hexdigest(), "text": text, "sha256": sha256,
             "num_bytes": len(text.encode()), "split": "heldout" if key % 10 == 3 else "train", "added": key % 7 // 6}
        )  # fmt: skip
    return rows


ROWS = make_rows(500)


def write_documents(home: Home, rows: list[dict[str, object]] | None = None) -> TableVersion:
    write_deltalake(home.documents, pa.Table.from_pylist(rows or ROWS, schema=SCHEMA), mode="overwrite")
    version = tables.open_table(home.documents).version()
    return TableVersion(name="documents", path="tables/documents", version=version)


def shard(spark: "SparkSession", home: Home, documents: TableVersion | None = None, **changes: Any) -> ShardRecord:
    settings = SETTINGS.model_copy(update={key: changes.pop(key) for key in list(changes) if key != "partitions"})
    return write_shards(
        spark,
        documents=documents or write_documents(home),
        settings=settings,
        fingerprint="f" * 64,
        home=home,
        **changes,
    )


def files_of(home: Home, *, name: str = "docs") -> dict[str, str]:
    """Name -> hash of every file of the set that readers are given, index.json too."""
    folder = manifest.set_folder(home, name=name)
    found = {
        str(path.relative_to(folder)): path for split in ("train", "heldout") for path in (folder / split).iterdir()
    }
    assert not [name for name in found if "/." in name], "no passing name is left behind"
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in found.items()}


@contextmanager
def failing(spark: "SparkSession", value: str) -> Iterator[None]:
    """A fault on the driver and in the workers, which take their environment from the Spark context."""
    environment = spark.sparkContext.environment
    os.environ["TESSERA_FAIL"] = environment["TESSERA_FAIL"] = value
    try:
        yield
    finally:
        del os.environ["TESSERA_FAIL"], environment["TESSERA_FAIL"]


def prepared_as(documents: TableVersion, *, fingerprint: str) -> PrepareRecord:
    """What prepare would have recorded of a documents table."""
    return PrepareRecord(
        fingerprint=fingerprint, rows=1, documents=1, dropped={}, splits={}, num_bytes=1, table=documents
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, ShardRecord]:
    """A set with 7 input partitions; tests that use it change nothing."""
    home = Home(tmp_path_factory.mktemp("written") / "home")
    documents = write_documents(home)
    fingerprint = stage.fingerprint(prepared_as(documents, fingerprint="a" * 64), settings=SETTINGS, home=home)
    record = write_shards(
        spark, documents=documents, settings=SETTINGS, fingerprint=fingerprint, home=home, partitions=7
    )  # fmt: skip
    return home, record


@pytest.fixture
def copied(written: tuple[Home, ShardRecord], home: Home) -> tuple[Home, ShardRecord]:
    """The same, moved as a whole, to be changed."""
    shutil.copytree(written[0].root, home.root)
    return home, written[1]


@pytest.mark.parametrize("partitions", [1, 40])
def test_bytes_depend_on_neither_partitions_nor_home(
    spark: "SparkSession", written: tuple[Home, ShardRecord], home: Home, partitions: int
) -> None:
    reference_home, reference = written
    documents = write_documents(home, list(reversed(ROWS)))

    record = shard(spark, home, documents, partitions=partitions)

    assert files_of(home) == files_of(reference_home)
    assert record.tokenizer == reference.tokenizer
    assert record.splits == reference.splits


@pytest.mark.parametrize("action", ["raise", pytest.param("kill", marks=pytest.mark.slow)])
def test_a_task_that_failed_once_leaves_the_same_bytes(
    spark: "SparkSession", written: tuple[Home, ShardRecord], home: Home, tmp_path: Path, action: str
) -> None:
    marker = tmp_path / "failed once"
    documents = write_documents(home)
    with failing(spark, f"shard.after_file:{action}:1:{marker}"):
        shard(spark, home, documents)

    assert marker.exists()
    assert files_of(home) == files_of(written[0])


def test_golden_hashes(written: tuple[Home, ShardRecord]) -> None:
    home, record = written
    rows = manifest.read_manifest(home, "docs", record.manifest.version)
    digest = hashlib.sha256("".join(rows["sha256"].to_pylist()).encode()).hexdigest()

    assert digest == "bd9a0f10801f3f91f740ab68834286b33675d9020fd250a535e74a6888a087a1", (
        "shards change: raise tessera.shard.stage.SEMANTICS, then this hash"
    )


def test_every_document_is_there_once_and_whole(written: tuple[Home, ShardRecord]) -> None:
    home, record = written
    loaded = tokenizer.load(home.resolve(record.tokenizer.path))
    encoded = loaded.encode_batch([str(row["text"]) for row in ROWS])
    folder = manifest.set_folder(home, name="docs")
    spans = tables.read(home.resolve(record.spans.path), version=record.spans.version).to_pylist()
    samples = {file: list(mds.read_samples(folder / file)) for file in {span["file"] for span in spans}}
    found: dict[str, list[int]] = {}
    for span in sorted(spans, key=lambda span: (span["doc_id"], span["piece"])):
        tokens = samples[span["file"]][span["sample"]]["tokens"]
        found.setdefault(span["doc_id"], []).extend(tokens[span["start"] : span["start"] + span["num_tokens"]].tolist())

    assert found == {
        row["doc_id"]: [*ids, loaded.end_id] for row, ids in zip(ROWS, encoded, strict=True)
    }  # fmt: skip
    assert sum(len(tokens) for tokens in found.values()) == record.tokens
    assert {span["doc_id"]: span["split"] for span in spans} == {row["doc_id"]: row["split"] for row in ROWS}


def test_cells_hold_a_range_of_ids_of_one_generation(written: tuple[Home, ShardRecord]) -> None:
    home, record = written
    added = {row["doc_id"]: row["added"] for row in ROWS}
    spans = tables.read(home.resolve(record.spans.path), version=record.spans.version).to_pylist()

    for span in spans:
        assert span["generation"] == added[span["doc_id"]]
        assert span["bucket"] == int(span["doc_id"], 16) * span["buckets"] >> 256
        assert span["file"].startswith(f"{span['split']}/{span['generation']:06d}-{span['bucket']:04d}-")
    assert {(span["generation"], span["buckets"]) for span in spans} == {(0, 8), (1, 1)}


def test_the_record_counts_what_is_there(written: tuple[Home, ShardRecord]) -> None:
    home, record = written
    rows = manifest.read_manifest(home, "docs", record.manifest.version).to_pylist()
    manifest.write_run_manifest(manifest.read_manifest(home, "docs"), home.root / "shards.arrow")

    assert record.shards == len(rows) == len([name for name in files_of(home) if name.endswith(".mds")])
    assert [(row["split"], row["generation"], row["bucket"], row["ordinal"]) for row in rows] == sorted(
        (row["split"], row["generation"], row["bucket"], row["ordinal"]) for row in rows
    )
    for split, total in record.splits.items():
        mine = [row for row in ROWS if row["split"] == split]
        assert (total.documents, total.num_bytes) == (len(mine), sum(int(str(row["num_bytes"])) for row in mine))
        shards = open_split(home.root / "shards.arrow", split=split, shards_root=home.shards / "docs")
        samples = shards.gather(*_everything(shards.samples_per_shard))
        tokens, starts, counts = samples.tokens_BT, samples.starts_P, samples.num_starts_B
        last = starts[np.cumsum(counts) - 1].astype(int)
        padding = np.where(tokens[np.arange(len(tokens)), last] == record.tokenizer.end_id, 64 - last, 0).sum()
        assert (total.sequences, total.padding) == (len(tokens), padding)
        assert total.tokens == tokens.size - padding == shards.num_tokens
        assert (shards.text_bytes, shards.num_documents, total.shards) == (
            total.num_bytes, total.documents, len(shards.files)
        )  # fmt: skip
    assert record.fill == pytest.approx(record.tokens / sum(64 * total.sequences for total in record.splits.values()))


def _everything(samples_per_shard: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shards = np.repeat(np.arange(len(samples_per_shard)), samples_per_shard)
    return shards, np.concatenate([np.arange(number) for number in samples_per_shard])


def test_the_index_names_its_manifest_and_all_files(written: tuple[Home, ShardRecord]) -> None:
    home, record = written
    rows = manifest.read_manifest(home, "docs").to_pylist()
    for split in ("train", "heldout"):
        index = json.loads((home.shards / "docs" / split / "index.json").read_text())
        assert index["tessera_manifest_version"] == record.manifest.version
        listed = [(e["raw_data"]["basename"], e["raw_data"]["bytes"], e["samples"]) for e in index["shards"]]
        mine = [row for row in rows if row["split"] == split]
        assert listed == [(Path(row["file"]).name, row["num_bytes"], row["samples"]) for row in mine]


def test_nothing_is_published_before_the_manifest(spark: "SparkSession", home: Home) -> None:
    documents = write_documents(home)
    with failing(spark, "shard.before_manifest:raise"), pytest.raises(Exception, match=r"shard\.before_manifest"):
        shard(spark, home, documents)
    assert publish.read_record(manifest.manifest_path(home, name="docs")) is None
    assert not (home.shards / "docs" / "train" / "index.json").exists()

    record = shard(spark, home, documents)

    assert record.manifest.version == 0
    assert stage.verify(record, home=home)


def test_a_second_version_keeps_the_tokenizer_and_the_first_stays_readable(
    spark: "SparkSession", copied: tuple[Home, ShardRecord]
) -> None:
    home, first = copied
    reference = manifest.read_manifest(home, "docs", 0)
    new = [{**row, "doc_id": str(row["doc_id"])[::-1], "text": f"{row['text']} zebra", "added": 2} for row in ROWS[:40]]
    for row in new:
        row["num_bytes"] = len(str(row["text"]).encode())
    later = prepared_as(write_documents(home, [*ROWS, *new]), fingerprint="b" * 64)
    earlier = prepared_as(first.inputs[0], fingerprint="a" * 64)

    assert stage.fingerprint(earlier, settings=SETTINGS, home=home) == first.fingerprint
    alone = stage.fingerprint(later, settings=SETTINGS, home=Home(home.root / "another"))
    assert stage.fingerprint(later, settings=SETTINGS, home=home) != alone, "its tokenizer is of the first version"

    second = shard(spark, home, later.table)

    assert second.manifest.version == 1
    assert second.tokenizer == first.tokenizer
    assert manifest.read_manifest(home, "docs", 0).equals(reference)
    assert stage.fingerprint(earlier, settings=SETTINGS, home=home) == first.fingerprint
    assert stage.verify(first, home=home)
    assert stage.verify(second, home=home)
    old_files = set(reference["file"].to_pylist())
    new_files = set(manifest.read_manifest(home, "docs", 1)["file"].to_pylist())
    assert old_files < new_files, "old generations keep their files, byte for byte"


@pytest.mark.parametrize("what", ["nothing", "a shard", "the tokenizer", "the side table"])
def test_a_recorded_set_holds_until_something_of_it_is_gone(copied: tuple[Home, ShardRecord], what: str) -> None:
    home, record = copied
    if what == "a shard":
        hurt = home.shards / "docs" / manifest.read_manifest(home, "docs")["file"][3].as_py()
        hurt.write_bytes(hurt.read_bytes()[:-1])
    elif what == "the tokenizer":
        (home.resolve(record.tokenizer.path) / "tokenizer_config.json").write_text("{}")
    elif what == "the side table":
        next(home.resolve(record.spans.path).glob("*.parquet")).unlink()

    assert stage.verify(record, home=home) == (what == "nothing")


def test_a_tokenizer_folder_is_copied_and_enters_by_its_contents(
    spark: "SparkSession", written: tuple[Home, ShardRecord], home: Home, tmp_path: Path
) -> None:
    given = tmp_path / "given"
    shutil.copytree(written[0].resolve(written[1].tokenizer.path), given)
    settings = SETTINGS.model_copy(update={"tokenizer": SETTINGS.tokenizer.model_copy(update={"path": str(given)})})

    record = write_shards(
        spark, documents=write_documents(home), settings=settings, fingerprint="f" * 64, home=home
    )  # fmt: skip

    assert record.tokenizer.sha256 == written[1].tokenizer.sha256
    assert files_of(home) == files_of(written[0])
    assert artefact.holds(home, record.tokenizer)
    (given / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="no download is tried"):
        stage.fingerprint(prepared_as(record.inputs[0], fingerprint=""), settings=settings, home=home)


def test_a_document_without_tokens_is_named_and_nothing_else_is_said(
    spark: "SparkSession", home: Home, written: tuple[Home, ShardRecord]
) -> None:
    empty = {**ROWS[0], "text": "", "num_bytes": 0, "doc_id": "e" * 64}

    with pytest.raises(TokenizerError, match=f"no token for 1 documents, such as doc_id {'e' * 64}") as caught:
        shard(spark, home, write_documents(home, [*ROWS[1:], empty]))

    assert "matrix" not in str(caught.value)
    assert publish.read_record(manifest.manifest_path(home, name="docs")) is None


def test_the_second_of_two_writers_is_refused(
    spark: "SparkSession", copied: tuple[Home, ShardRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, record = copied
    begin = publish.begin

    def begin_early(path: Path, *, name: str) -> publish.Publication:
        """What a writer holds that started before the other one had published."""
        started = begin(path, name=name)
        return publish.Publication(path=path, name=name, parent=started.parent - 1, publish_id=started.publish_id)

    monkeypatch.setattr(publish, "begin", begin_early)
    with pytest.raises(Conflict):
        shard(spark, home, record.inputs[0])
    assert len(list(publish.records(manifest.manifest_path(home, name="docs")))) == 1


def test_the_tokenizers_sample_is_the_smallest_hashes(spark: "SparkSession", home: Home) -> None:
    write_documents(home)
    table = spark.read.format("delta").load(str(home.documents))
    train = sorted((row for row in ROWS if row["split"] == "train"), key=lambda row: str(row["sha256"]))
    total = sum(int(str(row["num_bytes"])) for row in train)

    for sample_bytes in (total // 5, 1, 2 * total):
        texts = tokenizers.sample_texts(table, train_bytes=total, sample_bytes=sample_bytes)
        assert texts == [row["text"] for row in train[: len(texts)]]
        taken = sum(len(text.encode()) for text in texts)
        assert taken <= sample_bytes or len(texts) == 1
        left = train[len(texts) :]
        assert not left or taken + int(str(left[0]["num_bytes"])) > sample_bytes or len(texts) == 1


RECIPE = Recipe(
    buckets={0: 1},
    compacted=-1,
    tokenizer=Definition("{}", end_id=0, vocab_size=9),
    seq_len=16,
    seed=1,
    shard_bytes=2**16,
)
GROUPS = [Group(0, "heldout", 1, 10), Group(0, "train", 3, 50)]
FILES = [
    {"generation": 0, "split": split, "documents": documents, "text_bytes": size, "tokenized": tokens, "tokens": tokens,
     "samples": samples, "padding": 16 * samples - tokens}
    for split, documents, size, tokens, samples in
    (("heldout", 1, 10, 5, 1), ("train", 2, 30, 30, 2), ("train", 1, 20, 16, 1))
]  # fmt: skip


@pytest.mark.parametrize("column", ["documents", "text_bytes", "tokenized", "tokens", "samples", "padding"])
@pytest.mark.parametrize("row", [0, 2])
def test_a_count_that_is_off_is_found(column: str, row: int) -> None:
    totals.check(pa.Table.from_pylist(FILES), groups=GROUPS, recipe=RECIPE)
    wrong = [{**file, column: file[column] + (number == row)} for number, file in enumerate(FILES)]

    with pytest.raises(ShardingFailed, match="went in"):
        totals.check(pa.Table.from_pylist(wrong), groups=GROUPS, recipe=RECIPE)


def test_a_split_that_is_lost_is_found() -> None:
    with pytest.raises(ShardingFailed, match="heldout: documents: 1 went in, 0 came out"):
        totals.check(pa.Table.from_pylist(FILES[1:]), groups=GROUPS, recipe=RECIPE)


@pytest.mark.parametrize(("num_bytes", "buckets"), [(0, 1), (100, 1), (101, 2), (200, 2), (201, 4), (900, 16)])
def test_buckets_are_a_power_of_two_of_the_text(num_bytes: int, buckets: int) -> None:
    assert num_buckets(num_bytes, bucket_bytes=100) == buckets
