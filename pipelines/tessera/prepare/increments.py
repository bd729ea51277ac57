"""What changed in the sources since the newest documents, as the ids of the rows that must be judged again.

A source's change data feed says it where it is enabled for all versions in between. Elsewhere the keys and content
hashes of the source are compared with `tables/decisions`, which reads the source once and judges nothing. A source that
is new changed as a whole; where one is read in another way than before, all documents are made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import publish, tables
from tessera.home import Home
from tessera.lineage import PrepareRecord
from tessera.prepare import decisions, read, stage
from tessera.prepare.sources import Source
from tessera.publish import Publication

ID = ("source", "doc_id")


@dataclass(frozen=True)
class Changed:
    """Rows that may be other than before."""

    ids: DataFrame
    """source and doc_id, distinct; a null doc_id stands for all rows without key."""
    how: dict[str, str]
    """Source -> `same`, `feed`, `compared`, `whole` or `gone`."""


def find_parent(home: Home, *, publication: Publication, sources: Sequence[Source], rules: str) -> PrepareRecord | None:
    """The record of the newest documents, where they can be gone on from.

    They were made by the same rules, out of tables that are read the same way now, and all that they name is there.
    """
    found = publish.read_record(publication.path) if publication.parent != publish.NO_PARENT else None
    record = PrepareRecord.model_validate(found) if found else None
    if record is None or record.rules != rules or record.decisions is None:
        return None
    known = {table.name: table.table_id for table in record.inputs}
    for source in sources:
        name = source.settings.name
        if name in known and (known[name], record.recipes.get(name)) != (source.pinned.table_id, stage.recipe(source)):
            return None
    for version in (record.table, record.decisions):
        path = home.resolve(version.path)
        if not tables.exists(path) or tables.missing_files(path, version=version.version):
            return None
    return record


def changed(
    rows: Sequence[tuple[Source, DataFrame]], *, parent: PrepareRecord, home: Home, spark: SparkSession
) -> Changed:
    """The rows of all sources that may be other than `parent` has them.

    Args:
        rows: of each source all its rows, see `read.source_rows`.
    """
    was = decisions.read(spark, home=home, record=parent)
    known = {table.name: table.version for table in parent.inputs}
    gone = sorted(known.keys() - {source.settings.name for source, _ in rows})
    how = dict.fromkeys(gone, "gone")
    frames = [was.where(F.col("source").isin(gone)).select(*ID)]
    for source, now in rows:
        name = source.settings.name
        decided = was.where(F.col("source") == name)
        how[name], ids = _changed_in(source, now, decided=decided, known=known.get(name))
        if ids is not None:
            frames.append(ids.select(F.lit(name).alias("source"), "doc_id"))
    return Changed(ids=read.union(frames).distinct(), how=how)


def _changed_in(
    source: Source, now: DataFrame, *, decided: DataFrame, known: int | None
) -> tuple[str, DataFrame | None]:
    """How the changes of one source are known, and their doc_ids; None when nothing changed."""
    if known == source.pinned.version:
        return "same", None
    if known is None:
        return "whole", now.select("doc_id")
    if known < source.pinned.version and (fed := _feed(now.sparkSession, source, after=known)) is not None:
        return "feed", fed
    return "compared", _compared(now, decided=decided)


def _feed(spark: SparkSession, source: Source, *, after: int) -> DataFrame | None:
    """The doc_ids in the change data feed since a version; None where it does not tell of all that changed."""
    reader = (
        spark.read.format("delta").option("readChangeFeed", "true").option("startingVersion", after + 1)
        .option("endingVersion", source.pinned.version)
    )  # fmt: skip
    try:
        if _columns_changed(spark, source, after=after):
            return None
        feed = reader.table(source.location) if source.in_catalog else reader.load(source.location)
        ids = feed.select(read.id_of(source).alias("doc_id")).distinct().localCheckpoint()
    except Exception:
        # Not enabled for all versions; or its files were vacuumed, of which Spark's client makes no error of its own.
        return None
    return ids


def _columns_changed(spark: SparkSession, source: Source, *, after: int) -> bool:
    """Whether columns were dropped, renamed or added since a version, which changes rows and is in no feed."""
    table = source.location if source.in_catalog else f"delta.`{source.location}`"
    since = spark.sql(f"DESCRIBE HISTORY {table}").where(F.col("version") > after)
    return not since.where(F.col("operation").contains("COLUMN")).isEmpty()


def _compared(now: DataFrame, *, decided: DataFrame) -> DataFrame:
    """The doc_ids whose rows are not the same ones as before."""
    key = ("doc_id", "row_sha256", "updated")
    found = now.groupBy(*key).agg(F.count("*").alias("rows")).withColumn("side", F.lit(1))
    recorded = decided.select(*key, "rows").withColumn("side", F.lit(-1))
    both = found.unionByName(recorded).groupBy(*key, "rows").agg(F.sum("side").alias("net"))
    return both.where("net <> 0").select("doc_id").distinct()
