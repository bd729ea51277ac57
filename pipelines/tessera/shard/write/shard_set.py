"""A documents table becomes a published shard set: count, tokenizer, tokenize and pack, check, commit.

The text is read twice, once for the tokenizer's sample and once to tokenize it, and shuffled as tokens. The driver
holds the sample and a row a file. What a worker writes is visible to nobody until the manifest's commit, and that is
made only when every document, byte and token of the table is accounted for in files that exist.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from tessera import failpoints, lineage, publish, tables, tasks
from tessera.errors import ShardingFailed, ShardSetError
from tessera.home import Home
from tessera.lineage import ShardRecord, SplitTotals, TableVersion, TokenizerRef
from tessera.progress import Tell, silent
from tessera.shard import artefact, encode, manifest, tokenizer
from tessera.shard.cell import SPANS, Recipe
from tessera.shard.run_manifest import SPLITS
from tessera.shard.settings import ShardSettings
from tessera.shard.write import cells

SPANS_STATS_COLUMNS = "doc_id,sha256,split,generation,bucket,piece,file"
MAX_BUCKETS = 2**16
TASKS_PER_CORE = 2
SMALL_BYTES = 2**26
"""Text for each core below which a table is spread over all of them before it is tokenized."""

COUNT_SQL = """
SELECT added AS generation, split, count(*) AS documents, sum(num_bytes) AS num_bytes
FROM rows GROUP BY added, split ORDER BY added, split
"""

FILES_SQL = """
SELECT split, generation, bucket, ordinal, file, buckets, file_bytes AS num_bytes, file_sha256 AS sha256,
    file_samples AS samples, file_padding AS padding, sum(num_tokens) AS tokens, sum(document_bytes) AS text_bytes,
    sum(CASE WHEN piece = 0 THEN 1 ELSE 0 END) AS documents, sum(document_tokens) AS tokenized
FROM rows
GROUP BY split, generation, bucket, ordinal, file, buckets, file_bytes, file_sha256, file_samples, file_padding
"""
"""A row a shard file; `tokenized` is what the tokenizer gave for the documents that begin there."""


@dataclass(frozen=True)
class Group:
    """The documents of one generation and split, as the table counts them."""

    generation: int
    split: str
    documents: int
    num_bytes: int


def write_shards(
    spark: SparkSession,
    *,
    documents: TableVersion,
    settings: ShardSettings,
    fingerprint: str,
    home: Home,
    partitions: int | None = None,
    progress: Tell = silent,
) -> ShardRecord:
    """Writes and publishes the set `settings.name` from a documents table at its pinned version.

    Args:
        fingerprint: see `tessera.shard.stage.fingerprint`.
        partitions: of the input; None leaves it to Spark. The shards do not depend on it.
        progress: told what happens, and how many of Spark's tasks are done.

    Raises:
        ShardSetError: a split has no documents.
        TokenizerError: the tokenizer folder is unfit, or the tokenizer does not fit the text.
        ShardingFailed: what was written is not what was read; nothing was published.
        Conflict: another writer published first.
    """
    began = time.monotonic()
    folder = manifest.set_folder(home, name=settings.name)
    publication = publish.begin(manifest.manifest_path(home, name=settings.name), name=f"shards/{settings.name}")
    table = _read(spark, home.resolve(documents.path), version=documents.version)
    progress("counting documents")
    counted = tables.query(home.resolve(documents.path), version=documents.version, sql=COUNT_SQL)
    groups = [Group(**row) for row in counted.to_pylist()]
    _refuse_empty(groups, documents=documents)
    progress("making the tokenizer")
    ref = _tokenizer(table, groups=groups, settings=settings, fingerprint=fingerprint, home=home)
    recipe = _recipe(groups, tokenizer_folder=home.resolve(ref.path), settings=settings)
    spread = _spread(spark, table, groups=groups, partitions=partitions)
    with tasks.watched(spark, "tokenizing and packing", tell=progress):
        spans = _write_spans(
            spark, spread, recipe=recipe, home=home, settings=settings, publish_id=publication.publish_id
        )
    files = tables.query(home.resolve(spans.path), version=spans.version, sql=FILES_SQL)
    progress("checking and publishing")
    check_totals(files, groups=groups, seq_len=settings.seq_len)
    rows = manifest.sorted_rows(files)
    if missing := manifest.missing_shards(folder, rows):
        raise ShardingFailed(
            f"{len(missing)} of {rows.num_rows} shard files are not there, such as {missing[0]}; run again"
        )
    failpoints.hit("shard.before_manifest")
    record = ShardRecord(
        fingerprint=fingerprint,
        inputs=(documents,),
        name=settings.name,
        manifest=TableVersion(
            name=f"{settings.name}/manifest", path=home.relative(publication.path), version=publication.version
        ),
        spans=spans,
        tokenizer=ref,
        seq_len=settings.seq_len,
        seconds=round(time.monotonic() - began, 3),
        code=lineage.code_version(),
        created=lineage.now(),
        **_totals(rows, seq_len=settings.seq_len),
    )
    publish.commit(publication, rows, record=record, stats_columns=manifest.STATS_COLUMNS)
    manifest.write_indexes(home, name=settings.name, version=publication.version)
    return record


def _read(spark: SparkSession, path: Path, *, version: int) -> DataFrame:
    return spark.read.format("delta").option("versionAsOf", version).load(str(path))


def _refuse_empty(groups: Sequence[Group], *, documents: TableVersion) -> None:
    for split in SPLITS:
        if not any(group.split == split for group in groups):
            raise ShardSetError(
                f"{documents.name}@{documents.version} has no {split} documents; give prepare more rows or another "
                "holdout"
            )


def _tokenizer(
    table: DataFrame, *, groups: Sequence[Group], settings: ShardSettings, fingerprint: str, home: Home
) -> TokenizerRef:
    """The tokenizer folder that the settings name, the one that the set has, or a new one."""
    if settings.tokenizer.path is not None:
        return artefact.copy(home, settings=settings, folder=Path(settings.tokenizer.path))
    if pinned := artefact.find_pinned(home, settings=settings):
        return pinned.ref
    train_bytes = sum(group.num_bytes for group in groups if group.split == "train")
    texts = sample_texts(table, train_bytes=train_bytes, sample_bytes=settings.tokenizer.sample_bytes)
    return artefact.train(home, settings=settings, texts=texts, fingerprint=fingerprint)


def sample_texts(table: DataFrame, *, train_bytes: int, sample_bytes: int) -> list[str]:
    """The train documents of smallest content hash, in that order, as many as `sample_bytes` hold; at least one.

    Documents whose hash lies above twice the share wanted are never sorted; only the sample comes to the driver.
    """
    train = table.where(F.col("split") == "train").select("sha256", "doc_id", "num_bytes", "text")
    share = 2 * sample_bytes / max(train_bytes, 1)
    if share < 1:
        train = train.where(F.substring("sha256", 1, 16) < f"{int(share * 2**64):016x}")
    by_hash = Window.orderBy("sha256", "doc_id")
    sized = train.withColumn("until", F.sum("num_bytes").over(by_hash.rowsBetween(Window.unboundedPreceding, 0)))
    kept = sized.where((F.col("until") <= sample_bytes) | (F.col("until") == F.col("num_bytes")))
    sample = kept.select("sha256", "doc_id", "text").toArrow()
    order = pc.sort_indices(sample, sort_keys=[("sha256", "ascending"), ("doc_id", "ascending")])
    return list(sample["text"].take(order).to_pylist())


def _recipe(groups: Sequence[Group], *, tokenizer_folder: Path, settings: ShardSettings) -> Recipe:
    num_bytes: dict[int, int] = {}
    for group in groups:
        num_bytes[group.generation] = num_bytes.get(group.generation, 0) + group.num_bytes
    return Recipe(
        compacted=-1,
        buckets={added: num_buckets(total, bucket_bytes=settings.bucket_bytes) for added, total in num_bytes.items()},
        tokenizer=tokenizer.definition(tokenizer_folder),
        seq_len=settings.seq_len,
        seed=settings.seed,
        shard_bytes=settings.shard_bytes,
    )


def num_buckets(num_bytes: int, *, bucket_bytes: int) -> int:
    """The smallest power of two that leaves a bucket at most `bucket_bytes` of text on average."""
    wanted = -(-num_bytes // bucket_bytes)
    return int(min(1 << max(wanted - 1, 0).bit_length(), MAX_BUCKETS))


def _spread(spark: SparkSession, table: DataFrame, *, groups: Sequence[Group], partitions: int | None) -> DataFrame:
    """As many partitions as asked for; else enough for all cores, when the table is too small to have them itself."""
    cores = tasks.parallelism(spark)
    if partitions is None and sum(group.num_bytes for group in groups) < SMALL_BYTES * cores:
        partitions = cores
    return table if partitions is None else table.repartition(partitions)


def _write_spans(
    spark: SparkSession, table: DataFrame, *, recipe: Recipe, home: Home, settings: ShardSettings, publish_id: str
) -> TableVersion:
    """Writes the shard files, and commits the side table that says where each document lies."""
    num_tasks = min(len(SPLITS) * sum(recipe.buckets.values()), TASKS_PER_CORE * tasks.parallelism(spark))
    cell = ("generation", "bucket", "split")
    folder = str(manifest.set_folder(home, name=settings.name))
    spans = (
        table.select(*encode.DOCUMENT_COLUMNS)
        .mapInArrow(partial(cells.tokenize, recipe=recipe), encode.TOKENIZED)
        .repartition(num_tasks, *cell)
        .sortWithinPartitions(*cell, "doc_id", "sha256")
        .mapInArrow(partial(cells.write_cells, recipe=recipe, folder=folder), SPANS)
        .select(*(F.col(name).cast(kind) for name, kind in map(str.split, SPANS.split(", "))))
    )  # the casts are for Spark Connect: a string from Python is `string collate UTF8_BINARY` there, unread by delta-rs
    path = manifest.spans_path(home, name=settings.name)
    writer = (
        spans.write.format("delta").mode("overwrite").option("userMetadata", json.dumps({"publish_id": publish_id}))
    )
    if not tables.exists(path):
        writer = writer.options(**publish.UNLOGGED_TEXT, **{"delta.dataSkippingStatsColumns": SPANS_STATS_COLUMNS})
    try:
        writer.save(str(path))
    except PySparkException as error:
        raise tasks.error_of_worker(error) or error from None
    version = _version_of(path, publish_id=publish_id)
    return TableVersion(name=f"{settings.name}/documents", path=home.relative(path), version=version)


def _version_of(path: Path, *, publish_id: str) -> int:
    """The version of a side table that this publication wrote."""
    for entry in tables.open_table(path).history():
        if publish_id in str(entry.get("userMetadata")):
            return int(entry["version"])
    raise ShardingFailed(f"{path} has no version of this run, although Spark wrote it; run again")


def check_totals(files: pa.Table, *, groups: Sequence[Group], seq_len: int) -> None:
    """Every document, byte and token that went in came out, by generation and split.

    Three counts of tokens must agree: the tokenizer's, the spans', and the token slots of the files less padding.

    Raises:
        ShardingFailed: naming the first that differ.
    """
    summed = files.group_by(["generation", "split"]).aggregate(
        [(name, "sum") for name in ("documents", "text_bytes", "tokenized", "tokens", "samples", "padding")]
    )
    found = {(row["generation"], row["split"]): row for row in summed.to_pylist()}
    wanted = {(group.generation, group.split): group for group in groups}
    for key in sorted(found.keys() | wanted.keys()):
        row, group = found.get(key), wanted.get(key)
        documents, text_bytes = (group.documents, group.num_bytes) if group else (0, 0)
        tokenized = row["tokenized_sum"] if row else 0
        checks = {
            "documents": (documents, row["documents_sum"] if row else 0),
            "bytes of text": (text_bytes, row["text_bytes_sum"] if row else 0),
            "tokens in documents": (tokenized, row["tokens_sum"] if row else 0),
            "tokens in shard files": (tokenized, row["samples_sum"] * seq_len - row["padding_sum"] if row else 0),
        }
        for name, (went_in, came_out) in checks.items():
            if went_in != came_out:
                raise ShardingFailed(
                    f"generation {key[0]}, {key[1]}: {name}: {went_in} went in, {came_out} came out; nothing was "
                    "published. Run again; if it stays, this is a fault of Tessera"
                )


def _totals(rows: pa.Table, *, seq_len: int) -> dict[str, object]:
    """The counts of a ShardRecord."""
    splits = {}
    for split in SPLITS:
        part = rows.filter(pc.equal(rows["split"], split))
        total = {
            name: int(pc.sum(part[name]).as_py())
            for name in ("documents", "tokens", "text_bytes", "samples", "padding")
        }
        splits[split] = SplitTotals(
            documents=total["documents"],
            tokens=total["tokens"],
            num_bytes=total["text_bytes"],
            sequences=total["samples"],
            padding=total["padding"],
            shards=part.num_rows,
        )
    tokens = sum(split.tokens for split in splits.values())
    slots = seq_len * sum(split.sequences for split in splits.values())
    return {"tokens": tokens, "shards": rows.num_rows, "splits": splits, "fill": round(tokens / slots, 6)}
