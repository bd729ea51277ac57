"""Rows of the sources become documents: judged, split and published in one commit.

Two passes over the text: the first judges every row and counts it by reason (kept on disk by Spark), the second writes
what is left. Nothing is collected a row at a time; the driver sees counts.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

from pyspark import StorageLevel
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from tessera import erasures, failpoints, lineage, publish, tables, tasks
from tessera.erasures import Erased
from tessera.errors import Conflict, SourceError
from tessera.home import Home
from tessera.lineage import Generation, PrepareRecord, TableVersion
from tessera.prepare import kinds, stage
from tessera.prepare.settings import PrepareSettings
from tessera.prepare.sources import Located, Source
from tessera.progress import Tell, silent

STATS_COLUMNS = "doc_id,source,source_version,kind,sha256,num_bytes,group,split,added"
"""Delta keeps minima and maxima of these only: text in `_delta_log` would outlive its erasure."""

COLUMNS = (
    "doc_id", "source", "source_version", "kind", *kinds.COLUMNS, "sha256", "num_bytes", "group", "split", "purposes"
)  # fmt: skip
SPLIT_BITS = 52

ORDER = ("added", "split", "doc_id", "sha256")
"""Of the rows in the table's files: the documents of a shard set's cell lie together."""
ROW_GROUP_CONF = "parquet.block.size"
ROW_GROUP_BYTES = 2**23
"""Of a row group, as it is stored: about the text of a cell of a shard set."""
PARTITION_BYTES = 2**27
"""Text that one task sorts and writes."""


def write_documents(
    spark: SparkSession,
    *,
    sources: Sequence[Source],
    settings: PrepareSettings,
    fingerprint: str,
    home: Home,
    partitions: int | None = None,
    tell: Tell = silent,
) -> PrepareRecord:
    """Reads the pinned sources and publishes `tables/documents`.

    Args:
        partitions: of the input; None leaves it to Spark. The documents do not depend on it.
        tell: told in words what happens next.

    Raises:
        SourceError: a row filter that is not SQL, duplicate row keys, or nothing left to train on.
        Conflict: another writer published first.
    """
    began = time.monotonic()
    publication = publish.begin(home.documents, name="documents")
    erased = erasures.read(home)
    rows = _union([_rows(spark, source, partitions=partitions, min_chars=settings.min_chars) for source in sources])
    judged = _without_erased(spark, _judge(rows, settings=settings), erased=erased).persist(StorageLevel.DISK_ONLY)
    try:
        tell("judging rows")
        _refuse_duplicates(judged, settings=settings)
        counts = _count(judged)
        _refuse_nothing(counts, sources=sources, settings=settings)
        failpoints.hit("prepare.before_commit")
        tell("writing documents")
        kept = judged.where("reason IS NULL").select(*COLUMNS)
        documents = _with_added(spark, kept, publication=publication)
        record = PrepareRecord(
            fingerprint=fingerprint,
            base=stage.base_fingerprint(sources, settings=settings) if erased else "",
            inputs=tuple(source.pinned for source in sources),
            table=TableVersion(name="documents", path="tables/documents", version=publication.version),
            seconds=round(time.monotonic() - began, 3),
            code=lineage.code_version(),
            created=lineage.now(),
            generations=_generations(documents, publication=publication),
            **counts,
        )
        _refuse_other_erasures(home, erased=erased)
        _write(documents, publication=publication, record=record)
    finally:
        judged.unpersist()
    _check_written(home.documents, record=record)
    return record


def read_pinned(spark: SparkSession, source: Source | Located, *, where: str | None, option: str) -> DataFrame:
    """The rows of a table at its pinned version, those that `where` lets pass.

    Args:
        option: what the filter is called in an error.

    Raises:
        SourceError: the filter is not SQL on the table's columns.
    """
    reader = spark.read.format("delta").option("versionAsOf", source.pinned.version)
    table = reader.table(source.location) if source.in_catalog else reader.load(source.location)
    if where is None:
        return table
    try:
        table = table.where(where)
        _ = table.schema  # Spark Connect looks at the condition no earlier
    except AnalysisException as error:
        reason = str(error).splitlines()[0][:200]
        raise SourceError(f"{option} is not SQL on its columns: {reason}") from None
    return table


def column(name: str) -> Column:
    """The column of exactly this name, dots and backticks in it included."""
    return F.col("`" + name.replace("`", "``") + "`")


def has_key(key: Sequence[str]) -> Column:
    """Whether no column of the row key is null."""
    return reduce(and_, (column(name).isNotNull() for name in key))


def row_key(key: Sequence[str]) -> Column:
    """The row key as canonical JSON: its columns by name, times in UTC."""
    return F.to_json(F.struct(*map(column, sorted(key))), {"ignoreNullFields": "false", "timeZone": "UTC"})


def doc_id(source_name: str, *, row_key: Column) -> Column:
    """SHA-256 of the source's name, a line feed, and the row key. A document and an answer of one row share it."""
    return F.sha2(F.concat(F.lit(source_name + "\n"), row_key), 256)


def _rows(spark: SparkSession, source: Source, *, partitions: int | None, min_chars: int) -> DataFrame:
    """Ids and contents of one source, its row filter applied first, with content hash, size and `unfit`: see `kinds`.

    Raises:
        SourceError: the filter is not SQL, or the conversations are no arrays of role and content.
    """
    settings = source.settings
    table = read_pinned(spark, source, where=settings.where, option=f"prepare.sources {settings.name}: where")
    if partitions is not None:
        table = table.repartition(partitions)
    _check_conversations(table, source=source)
    updated = column(settings.updated).cast("string") if settings.updated else F.lit(None).cast("string")
    rows = table.select(
        F.when(has_key(settings.key), doc_id(settings.name, row_key=row_key(settings.key))).alias("doc_id"),
        F.lit(settings.name).alias("source"),
        F.lit(source.pinned.version).cast("long").alias("source_version"),
        F.lit(settings.kind).alias("kind"),
        *kinds.columns(settings.kind, contents={role: column(name) for role, name in settings.contents.items()}),
        updated.alias("updated"),
        F.array(*[F.lit(purpose) for purpose in settings.purposes]).cast("array<string>").alias("purposes"),
    )
    return kinds.judged(rows, kind=settings.kind, min_chars=min_chars)


def _check_conversations(table: DataFrame, *, source: Source) -> None:
    settings = source.settings
    if settings.kind != "chat":
        return
    found = table.select(column(settings.messages)).schema[0].dataType
    if not kinds.is_conversation(found):
        raise SourceError(
            f"{source.location}: the messages column {settings.messages!r} is of type {found.simpleString()[:200]}, "
            f"wanted {kinds.MESSAGES}; name another column, or cast it in a view"
        )


def _judge(rows: DataFrame, *, settings: PrepareSettings) -> DataFrame:
    """Adds group, split, and `reason`: null for a document, else why the row is dropped.

    A duplicate loses to the one with the smallest (doc_id, content hash), whatever the order of the rows.
    """
    if settings.on_duplicate == "last":
        newest = Window.partitionBy("doc_id").orderBy(F.desc_nulls_last("updated"), F.desc_nulls_last("sha256"))
        superseded = F.col("doc_id").isNotNull() & (F.row_number().over(newest) > 1)
        rows = rows.withColumn("unfit", F.when(superseded, "superseded").otherwise(F.col("unfit")))
    first = Window.partitionBy("unfit", "sha256").orderBy("doc_id", "sha256")
    repeated = F.col("unfit").isNull() & (F.row_number().over(first) > 1)
    judged = rows.withColumn("reason", F.when(repeated, "duplicate").otherwise(F.col("unfit")))
    group = F.col("sha256")
    return judged.select("*", group.alias("group"), _split(group, holdout=settings.holdout).alias("split"))


def _without_erased(spark: SparkSession, judged: DataFrame, *, erased: Erased) -> DataFrame:
    """Drops what was erased, by id and by content, of the rows that are fit: other reasons stay as they are counted."""
    if not erased:
        return judged
    by_id = _listed(spark, erased.doc_ids, name="doc_id").withColumn("erased_id", F.lit(True))
    by_content = _listed(spark, erased.contents, name="sha256").withColumn("erased_content", F.lit(True))
    marked = judged.join(by_id, on="doc_id", how="left").join(by_content, on="sha256", how="left")
    hit = F.col("reason").isNull() & (F.col("erased_id").isNotNull() | F.col("erased_content").isNotNull())
    reason = F.when(hit, erasures.REASON).otherwise(F.col("reason"))
    return marked.withColumn("reason", reason).drop("erased_id", "erased_content")


def _listed(spark: SparkSession, values: Iterable[str], *, name: str) -> DataFrame:
    return F.broadcast(spark.createDataFrame([(value,) for value in sorted(values)], f"{name} string"))


def _refuse_other_erasures(home: Home, *, erased: Erased) -> None:
    if erasures.read(home).digest != erased.digest:
        raise Conflict("rows were erased while documents were prepared; nothing was published. Run prepare again")


def _split(group: Column, *, holdout: float) -> Column:
    """`heldout` for the share `holdout` of all groups, by hash: equal content never sits on both sides."""
    digits = SPLIT_BITS // 4
    number = F.conv(F.substring(F.sha2(F.concat(F.lit("split "), group), 256), 1, digits), 16, 10).cast("long")
    return F.when(number < int(holdout * 2**SPLIT_BITS), "heldout").otherwise("train")


def _refuse_duplicates(judged: DataFrame, *, settings: PrepareSettings) -> None:
    if settings.on_duplicate != "refuse":
        return
    keys = judged.where("doc_id IS NOT NULL").groupBy("source", "doc_id").count().where("count > 1")
    found = (
        keys.groupBy("source").agg(F.count("*").alias("keys"), F.sum("count").alias("rows")).orderBy("source").first()
    )
    if found is not None:
        raise SourceError(
            f"prepare.sources {found.source}: {found['keys']} row keys occur more than once, in {found['rows']} rows; "
            "name more columns in id, or set prepare.on_duplicate to last (newest row) or all (every row)"
        )


def _count(judged: DataFrame) -> dict[str, Any]:
    """The counts of a PrepareRecord, from one aggregation."""
    groups = (
        judged.groupBy("reason", "split").agg(F.count("*").alias("n"), F.sum("num_bytes").alias("num_bytes")).collect()
    )
    dropped: dict[str, int] = {}
    splits = {"train": 0, "heldout": 0}
    for group in groups:
        if group.reason is None:
            splits[group.split] += group.n
        else:
            dropped[group.reason] = dropped.get(group.reason, 0) + group.n
    return {
        "rows": sum(group.n for group in groups),
        "documents": sum(splits.values()),
        "dropped": dict(sorted(dropped.items())),
        "splits": splits,
        "num_bytes": sum(group.num_bytes for group in groups if group.reason is None),
    }


def _refuse_nothing(counts: dict[str, Any], *, sources: Sequence[Source], settings: PrepareSettings) -> None:
    names = ", ".join(source.settings.name for source in sources)
    if counts["rows"] == 0:
        raise SourceError(f"prepare.sources {names}: no rows; look at the table's version and at where")
    if counts["documents"] == 0:
        raise SourceError(f"prepare.sources {names}: all {counts['rows']} rows were dropped: {counts['dropped']}")
    for split, number in counts["splits"].items():
        if number == 0:
            raise SourceError(
                f"prepare.holdout {settings.holdout} leaves no {split} documents of {counts['documents']}; "
                "give a table with more rows or another share"
            )


def _with_added(spark: SparkSession, kept: DataFrame, *, publication: publish.Publication) -> DataFrame:
    """Adds `added`: the documents version in which this doc_id and content first appeared."""
    this_version = F.lit(publication.version).cast("long")
    if publication.parent == publish.NO_PARENT:
        return kept.withColumn("added", this_version)
    before = spark.read.format("delta").option("versionAsOf", publication.parent).load(str(publication.path))
    known = before.select("doc_id", "sha256", F.col("added").alias("added_before"))
    joined = kept.join(known, on=["doc_id", "sha256"], how="left")
    return joined.withColumn("added", F.coalesce("added_before", this_version)).drop("added_before")


def _generations(documents: DataFrame, *, publication: publish.Publication) -> tuple[Generation, ...]:
    """Those of the parent as they are recorded, and what this version adds."""
    recorded = publish.read_record(publication.path, version=publication.parent) if publication.parent >= 0 else None
    known = PrepareRecord.model_validate(recorded).generations if recorded else ()
    counted = documents.groupBy("added").agg(F.count("*").alias("documents"), F.sum("num_bytes").alias("num_bytes"))
    rows = counted.collect()
    all_bytes = sum(row.num_bytes for row in rows)
    found = [Generation(**row.asDict(), all_bytes=all_bytes) for row in rows]
    new = [one for one in found if one.added not in {old.added for old in known}]
    return tuple(sorted((*known, *new), key=lambda one: one.added))


def _write(documents: DataFrame, *, publication: publish.Publication, record: PrepareRecord) -> None:
    writer = (
        _in_order(documents.select(*COLUMNS[:-1], "added", "purposes"), num_bytes=record.num_bytes)
        .write.format("delta")
        .mode("overwrite")
        .options(**publication.spark_options(record))
    )
    if publication.parent == publish.NO_PARENT:
        writer = writer.options(**publish.UNLOGGED_TEXT, **{"delta.dataSkippingStatsColumns": STATS_COLUMNS})
    else:  # what format 1 wrote has fewer columns
        writer = writer.option("mergeSchema", "true")
    with _row_groups(documents.sparkSession):
        writer.save(str(publication.path))
    publish.confirm(publication)


@contextmanager
def _row_groups(spark: SparkSession) -> Iterator[None]:
    """Row groups of ROW_GROUP_BYTES while this lasts, where the session takes it: Delta passes over such an option."""
    before = spark.conf.get(ROW_GROUP_CONF, None)
    with suppress(PySparkException):  # some managed sessions take no setting that they do not list
        spark.conf.set(ROW_GROUP_CONF, ROW_GROUP_BYTES)
    try:
        yield
    finally:
        with suppress(PySparkException):
            spark.conf.unset(ROW_GROUP_CONF) if before is None else spark.conf.set(ROW_GROUP_CONF, before)


def _in_order(documents: DataFrame, *, num_bytes: int) -> DataFrame:
    """The same rows by ORDER: who reads a cell reads the row groups that hold it, and hardly another."""
    partitions = max(tasks.parallelism(documents.sparkSession), -(-num_bytes // PARTITION_BYTES))
    return documents.repartitionByRange(partitions, *ORDER).sortWithinPartitions(*ORDER)


def _check_written(path: Path, *, record: PrepareRecord) -> None:
    """Counts the committed rows again, without reading text: nothing was lost between judging and writing."""
    found = tables.read(path, version=record.table.version, columns=["split"]).num_rows
    if found != record.documents:
        raise SourceError(
            f"tables/documents holds {found} documents, {record.documents} were judged fit; run prepare again"
        )


def _union(frames: list[DataFrame]) -> DataFrame:
    union = frames[0]
    for frame in frames[1:]:
        union = union.unionByName(frame)
    return union
