"""Single rows of the sources, by key: their ids, whether they are still there, and their deletion. Spark computes ids
here as `documents` does, from keys of the source's own types, so that they are equal by construction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession

from tessera.errors import SourceError
from tessera.prepare.forget import strings
from tessera.prepare.read import column, contents_of, doc_id, has_key, row_key
from tessera.prepare.sources import Source

NO_VECTORS = "spark.databricks.delta.delete.deletionVectors.persistent"
VECTORS = "delta.enableDeletionVectors"


@dataclass(frozen=True)
class Row:
    """A row that a source still has."""

    doc_id: str
    texts: tuple[str, ...]


def ids_of(spark: SparkSession, source: Source, *, keys: Sequence[Mapping[str, str]]) -> list[str]:
    """The doc_id of each row key, given as text by column.

    Raises:
        SourceError: a key is not of the types that the source's key columns have.
    """
    types = {name: _type_of(spark, source, name) for name in source.settings.key}
    given = spark.createDataFrame(
        [tuple(key[name] for name in types) for key in keys],
        ", ".join(f"`{name.replace('`', '``')}` string" for name in types),
    )
    typed = given.select(*(column(name).try_cast(kind).alias(name) for name, kind in types.items()))
    return _ids(typed, source, wanted=len(keys), types=types)


def ids_in(spark: SparkSession, source: Source, *, table: str) -> list[str]:
    """The doc_ids of the row keys that a Delta table holds, in columns of the source's key names.

    Raises:
        SourceError: it cannot be read, lacks a column, or holds a key that is no key of the source.
    """
    types = {name: _type_of(spark, source, name) for name in source.settings.key}
    try:
        given = spark.read.format("delta").load(table)
        typed = given.select(*(column(name).try_cast(kind).alias(name) for name, kind in types.items())).distinct()
        wanted = typed.count()
    except AnalysisException as error:
        raise SourceError(
            f"--keys {table} is no Delta table with the columns {', '.join(types)} ({error.getCondition()}); give the "
            "folder of one"
        ) from None
    return _ids(typed, source, wanted=wanted, types=types)


def find(spark: SparkSession, source: Source, *, doc_ids: Sequence[str]) -> list[Row]:
    """The rows of these ids that the source has at the version it is pinned at, whatever its row filter."""
    table = _table(spark, source)
    contents = [content.alias(role) for role, content in contents_of(table, source=source).items()]
    found = table.where(_is_one_of(source, doc_ids)).select(_id(source).alias("doc_id"), *contents)
    return [
        Row(doc_id=row["doc_id"], texts=tuple(text for name, value in row.items() if name != "doc_id"
                                              for text in strings(value)))
        for row in found.toArrow().to_pylist()
    ]  # fmt: skip


def delete(spark: SparkSession, source: Source, *, doc_ids: Sequence[str]) -> set[str]:
    """Deletes these rows of the source, rewriting the files that hold them; the names of the files it is made of then.

    A table with deletion vectors is purged, so that no file of its newest version holds a deleted row.
    """
    from delta.tables import DeltaTable

    before = spark.conf.get(NO_VECTORS, None)
    spark.conf.set(NO_VECTORS, "false")
    try:
        opened = DeltaTable.forName if source.in_catalog else DeltaTable.forPath
        table = opened(spark, source.location)
        table.delete(_is_one_of(source, doc_ids))
        if _properties(table).get(VECTORS) == "true":
            spark.sql(f"REORG TABLE {_sql_name(source)} APPLY (PURGE)")
    finally:
        spark.conf.unset(NO_VECTORS) if before is None else spark.conf.set(NO_VECTORS, before)
    return _live_files(spark, source)


def _live_files(spark: SparkSession, source: Source) -> set[str]:
    reader = spark.read.format("delta")
    table = reader.table(source.location) if source.in_catalog else reader.load(source.location)
    return {Path(unquote(urlparse(name).path)).name for name in table.inputFiles()}


def _properties(table: Any) -> dict[str, str]:
    row = table.detail().select("properties").first()
    return dict(row["properties"] or {}) if row is not None else {}


def _sql_name(source: Source) -> str:
    return source.location if source.in_catalog else f"delta.`{source.location}`"


def _table(spark: SparkSession, source: Source) -> DataFrame:
    reader = spark.read.format("delta").option("versionAsOf", source.pinned.version)
    return reader.table(source.location) if source.in_catalog else reader.load(source.location)


def _type_of(spark: SparkSession, source: Source, name: str) -> Any:
    return _table(spark, source).schema[name].dataType


def _id(source: Source) -> Column:
    return doc_id(source.settings.name, row_key=row_key(source.settings.key))


def _is_one_of(source: Source, doc_ids: Sequence[str]) -> Column:
    return has_key(source.settings.key) & _id(source).isin(list(doc_ids))


def _ids(typed: DataFrame, source: Source, *, wanted: int, types: Mapping[str, Any]) -> list[str]:
    missing = reduce(or_, (column(name).isNull() for name in types))
    broken = typed.where(missing).count()
    if broken:
        shown = ", ".join(f"{name} {kind.simpleString()}" for name, kind in types.items())
        raise SourceError(
            f"{source.settings.name}: {broken} of {wanted} row keys cannot be read as {shown}; give values of that type"
        )
    return sorted({row["doc_id"] for row in typed.select(_id(source).alias("doc_id")).collect()})
