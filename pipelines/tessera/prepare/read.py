"""Rows of the sources at their pinned versions: ids, contents by kind, and what is wrong with them as they lie there.

All of it is SQL that Spark evaluates; nothing is read before a frame is used. `serve.batch` reads its table here too.
"""

from collections.abc import Sequence
from functools import reduce
from operator import and_

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType, TimestampType

from tessera.errors import SourceError
from tessera.prepare import kinds, template
from tessera.prepare.sources import Located, Source

SAMPLE_BITS = 52
UPDATED_NUMBER = "updated_number"
"""Column of source rows: `updated` as a number, of a time its microseconds; null where its text has the same order."""
EXACT = "decimal(38,9)"


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


def id_of(source: Source) -> Column:
    """The doc_id of a source's row; null for a row without key."""
    key = source.settings.key
    return F.when(has_key(key), doc_id(source.settings.name, row_key=row_key(key)))


def source_rows(spark: SparkSession, source: Source, *, partitions: int | None = None) -> DataFrame:
    """The rows of one source, its row filter applied first.

    Args:
        partitions: of the result; None leaves it to Spark.

    Returns:
        doc_id, source, source_version, kind, `kinds.COLUMNS`, updated, purposes, `row_sha256` of the contents, and
        `unfit`: null, or why the row is no document of its kind.

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
        id_of(source).alias("doc_id"),
        F.lit(settings.name).alias("source"),
        F.lit(source.pinned.version).cast("long").alias("source_version"),
        F.lit(settings.kind).alias("kind"),
        *kinds.columns(settings.kind, contents=contents_of(table, source=source)),
        updated.alias("updated"),
        _number(table, settings.updated).alias(UPDATED_NUMBER),
        F.array(*[F.lit(purpose) for purpose in settings.purposes]).cast("array<string>").alias("purposes"),
    )
    return rows.select(
        "*", kinds.content_hash(settings.kind).alias("row_sha256"), kinds.unfit(settings.kind).alias("unfit")
    )


def contents_of(table: DataFrame, *, source: Source) -> dict[str, Column]:
    """Role -> its column, or what its template makes; null where a column of the template is."""
    if source.settings.kind == "chat":
        return {"messages": column(source.settings.messages)}
    return {role: _text(value, table=table) for role, value in source.settings.contents.items()}


def is_sampled(weight: float) -> Column:
    """Whether a row belongs to the share `weight` of its source, by hash of its key."""
    digits = SAMPLE_BITS // 4
    number = F.conv(F.substring(F.sha2(F.concat(F.lit("weight "), F.col("doc_id")), 256), 1, digits), 16, 10)
    return number.cast("long") < int(weight * 2**SAMPLE_BITS)


def null_safe_join(left: DataFrame, right: DataFrame, *, on: Sequence[str], how: str = "left") -> DataFrame:
    """A join in which null equals null; the columns of `on` come from the left."""
    renamed = right.withColumnsRenamed({name: f"right_{name}" for name in on})
    condition = reduce(and_, (F.col(name).eqNullSafe(F.col(f"right_{name}")) for name in on))
    return left.join(renamed, condition, how).drop(*(f"right_{name}" for name in on))


def union(frames: Sequence[DataFrame]) -> DataFrame:
    """All rows of frames of the same columns."""
    return reduce(DataFrame.unionByName, frames)


def _number(table: DataFrame, name: str | None) -> Column:
    kind = table.select(column(name)).schema[0].dataType if name else None
    if isinstance(kind, TimestampType):
        return F.unix_micros(column(str(name))).cast(EXACT)
    return column(name).cast(EXACT) if name and isinstance(kind, NumericType) else F.lit(None).cast(EXACT)


def _text(value: str, *, table: DataFrame) -> Column:
    found = template.parts(value, columns=table.columns)
    if len(found) == 1 and not found[0][0] and found[0][1] is not None:
        return column(found[0][1])
    pieces = [[F.lit(literal), *([column(name).cast("string")] if name else [])] for literal, name in found]
    return F.concat(*(piece for group in pieces for piece in group))


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
