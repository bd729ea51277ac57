"""`tables/documents`: what becomes of each document, and the one commit that makes it so.

Appended to where documents only come, changed by a MERGE where some go or move, written whole where many do or where
all rows were judged. Rows lie in ORDER in what is written whole or appended.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import publish, tables, tasks
from tessera.errors import SourceError
from tessera.lineage import Generation, PrepareRecord
from tessera.prepare import kinds, warehouse
from tessera.prepare.decisions import KEY, METADATA_CONF, listed, view
from tessera.prepare.warehouse import session_settings
from tessera.publish import Publication
from tessera.spark_tables import at_version

STATS_COLUMNS = "doc_id,source,source_version,kind,sha256,num_bytes,group,split,added"
"""Delta keeps minima and maxima of these only: text in `_delta_log` would outlive its erasure."""

COLUMNS = (
    "doc_id", "source", "source_version", "kind", *kinds.COLUMNS, "sha256", "num_bytes", "group", "split", "added",
    "contaminated", "purposes",
)  # fmt: skip

ORDER = ("added", "split", "doc_id", "sha256")
"""Of the rows in the table's files: the documents of a shard set's cell lie together."""
ROW_GROUP_CONF = "parquet.block.size"
ROW_GROUP_BYTES = 2**23
"""Of a row group, as it is stored: about the text of a cell of a shard set."""
PARTITION_BYTES = 2**27
"""Text that one task sorts and writes."""
REWRITE_SHARE = 0.25
"""Of the documents: where more of them go or move, the table is written whole and not file by file."""

NEW, MOVED, SAME, GONE = "new", "moved", "same", "gone"
"""What becomes of a document: it is added, stays with another group or split, stays as it is, or leaves."""

TXN_CONF = "spark.databricks.delta.write."


@dataclass(frozen=True)
class Totals:
    """Counts of what becomes of the documents that were looked at."""

    by_status: dict[str, int]
    by_age: dict[int, tuple[int, int]]
    """`added` -> documents and bytes of those that are there now."""
    changed_split: int
    not_fresh: int
    """New documents of rows that were not judged just now."""


def changes(decided: DataFrame, *, among: DataFrame | None, publication: Publication) -> DataFrame:
    """What becomes of each document of the contents that were looked at.

    Args:
        decided: see `outcome.Outcome`.
        among: those contents; None: all.

    Returns:
        KEY, sha256, num_bytes, fresh, group, split and added as they are to be, was_split, and status.
    """
    wanted = decided.where("reason IS NULL").select(*KEY, "sha256", "num_bytes", "fresh", "group", "split")
    this_version = F.lit(publication.version).cast("long")
    if publication.parent == publish.NO_PARENT or tables.missing_files(publication.path, version=publication.parent):
        return wanted.withColumns({"added": this_version, "was_split": F.col("split"), "status": F.lit(NEW)})
    was = at_version(decided.sparkSession, publication.path, version=publication.parent).select(
        "doc_id", "sha256", "added", F.col("group").alias("was_group"), F.col("split").alias("was_split"),
        F.lit(True).alias("was_there"),
    )  # fmt: skip
    if among is not None:
        was = was.join(among, on="sha256", how="left_semi")
    same = (F.col("group") == F.col("was_group")) & (F.col("split") == F.col("was_split"))
    status = (
        F.when(F.col("group").isNull(), GONE).when(F.col("was_there").isNull(), NEW).when(same, SAME).otherwise(MOVED)
    )
    joined = wanted.join(was, on=["doc_id", "sha256"], how="full").withColumn("status", status)
    return joined.withColumn("added", F.coalesce("added", this_version)).drop("was_group", "was_there")


def totals(found: DataFrame) -> Totals:
    """Counts of `changes`; the driver gets a row a status and age."""
    counted = found.groupBy("status", "added").agg(
        F.count("*").alias("documents"), F.sum("num_bytes").alias("num_bytes"),
        F.count_if(~F.col("fresh")).alias("not_fresh"), F.count_if(F.col("split") != F.col("was_split")).alias("moved"),
    ).collect()  # fmt: skip
    by_status: dict[str, int] = {}
    by_age: dict[int, tuple[int, int]] = {}
    for row in counted:
        by_status[row.status] = by_status.get(row.status, 0) + row.documents
        if row.status != GONE:
            documents, num_bytes = by_age.get(row.added, (0, 0))
            by_age[row.added] = documents + row.documents, num_bytes + row.num_bytes
    return Totals(
        by_status=by_status,
        by_age=by_age,
        changed_split=sum(row.moved for row in counted),
        not_fresh=sum(row.not_fresh for row in counted if row.status == NEW),
    )


def generations(counted: Totals, *, num_bytes: int, publication: Publication) -> tuple[Generation, ...]:
    """Those that are known, each as it was when it first appeared, and what this version adds.

    Args:
        num_bytes: of all documents now.
    """
    recorded = publish.read_record(publication.path) if publication.parent != publish.NO_PARENT else None
    known = PrepareRecord.model_validate(recorded).generations if recorded else ()
    found = [
        Generation(added=added, documents=documents, num_bytes=in_it, all_bytes=num_bytes)
        for added, (documents, in_it) in counted.by_age.items()
    ]
    new = [one for one in found if one.added not in {old.added for old in known}]
    return tuple(sorted((*known, *new), key=lambda one: one.added))


def write(
    found: DataFrame, *, counted: Totals, new: DataFrame, whole: bool, publication: Publication, record: PrepareRecord
) -> None:
    """Publishes the documents.

    Args:
        found: `changes`, and `counted` its totals.
        new: COLUMNS of the documents that are NEW; with `whole`, of all.
        whole: whether all rows were judged, so that nothing of the table need be kept.
    """
    leaving = counted.by_status.get(MOVED, 0) + counted.by_status.get(GONE, 0)
    if whole:
        _overwrite(new, publication=publication, record=record)
    elif leaving > REWRITE_SHARE * record.documents:
        stays = _staying(found, publication=publication).unionByName(new)
        _overwrite(stays, publication=publication, record=record)
    elif leaving:
        _merge(found, new=new, publication=publication, record=record)
    else:
        _save(new, mode="append", publication=publication, record=record)
    publish.confirm(publication)


def check_written(path: Path, *, record: PrepareRecord) -> None:
    """Counts the committed rows again, without reading text: nothing was lost between judging and writing."""
    found = tables.query(path, version=record.table.version, sql="SELECT count(*) AS documents FROM rows")
    if (number := found["documents"][0].as_py()) != record.documents:
        raise SourceError(
            f"tables/documents holds {number} documents, {record.documents} were judged fit; run prepare again"
        )


def _overwrite(documents: DataFrame, *, publication: Publication, record: PrepareRecord) -> None:
    _save(documents, mode="overwrite", publication=publication, record=record)


def _save(documents: DataFrame, *, mode: str, publication: Publication, record: PrepareRecord) -> None:
    writer = (
        _in_order(warehouse.commented(documents.select(*COLUMNS)), num_bytes=record.num_bytes)
        .write.format("delta").mode(mode).options(**publication.spark_options(record))
    )  # fmt: skip
    if publication.parent == publish.NO_PARENT:
        writer = writer.options(**publish.UNLOGGED_TEXT, **warehouse.CONSTRAINTS)
        writer = writer.option("delta.dataSkippingStatsColumns", STATS_COLUMNS)
    else:  # what format 1 wrote has fewer columns
        writer = writer.option("mergeSchema", "true")
    with _row_groups(documents.sparkSession):
        writer.save(str(publication.path))


def _staying(found: DataFrame, *, publication: Publication) -> DataFrame:
    """The documents of the parent version that do not leave, each with its group and split as they are to be."""
    was = at_version(found.sparkSession, publication.path, version=publication.parent)
    told = found.where(F.col("status").isin(MOVED, GONE)).select(
        "doc_id", "sha256", "status", F.col("group").alias("new_group"), F.col("split").alias("new_split")
    )
    joined = was.join(told, on=["doc_id", "sha256"], how="left").where(f"status IS NULL OR status <> '{GONE}'")
    now = {"group": F.coalesce("new_group", "group"), "split": F.coalesce("new_split", "split")}
    return joined.withColumns(now).select(*COLUMNS)


def _merge(found: DataFrame, *, new: DataFrame, publication: Publication, record: PrepareRecord) -> None:
    told = found.where(F.col("status").isin(MOVED, GONE)).select("doc_id", "sha256", "group", "split", "status")
    given = new.withColumn("status", F.lit(NEW)).unionByName(told, allowMissingColumns=True)
    options = publication.spark_options(record)
    conf = {METADATA_CONF: options.pop("userMetadata"), **{f"{TXN_CONF}{name}": options[name] for name in options}}
    spark = found.sparkSession
    with view(given, name="tessera_documents") as named, session_settings(spark, conf), _row_groups(spark):
        spark.sql(
            f"MERGE INTO delta.`{publication.path}` t USING {named} c ON t.doc_id = c.doc_id AND t.sha256 = c.sha256 "
            f"WHEN MATCHED AND c.status = '{GONE}' THEN DELETE "
            f"WHEN MATCHED AND c.status = '{MOVED}' THEN UPDATE SET t.`group` = c.`group`, t.split = c.split "
            f"WHEN NOT MATCHED AND c.status = '{NEW}' THEN "
            f"INSERT ({listed(COLUMNS)}) VALUES ({listed(COLUMNS, of='c')})"
        )


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
