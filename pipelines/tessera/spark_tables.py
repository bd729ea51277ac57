"""A version of one of our own Delta tables as Spark reads it best: the Parquet files that the version names.

Delta's own reader rebuilds the table's state from the log by Spark jobs, which takes one to two seconds a table and
version; delta-rs does it in milliseconds. Our tables have no deletion vectors and no column mapping: their files hold
just their rows. A table that somebody gave such features is read by Delta.
"""

import json
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from tessera import tables

PLAIN_READER = 1
"""Version of Delta's reader protocol by which data files hold just the rows of a table."""
GLOBS = "{}[]*?\\"
"""In the path of a table of several files, Spark takes one for a pattern all the same, and reads each file twice."""
NO_GLOBS = ("__globPaths__", "false")
"""An option of Spark's file sources: a path is one path, whatever characters it has."""


def at_version(spark: SparkSession, path: Path, *, version: int) -> DataFrame:
    """The rows of a version, in no particular order.

    Raises:
        SourceError: there is no such table or version, or it cannot be read any more.
    """
    table = tables.open_table(path, version=version)
    strange = set(GLOBS) & set(str(path))
    if strange or table.protocol().min_reader_version > PLAIN_READER or table.metadata().partition_columns:
        return spark.read.format("delta").option("versionAsOf", version).load(str(path))
    sizes = tables.files_of(table)
    if tables.missing(path, sizes) and (lost := tables.damage(path, table=table)):
        raise lost
    schema = StructType.fromJson(json.loads(table.schema().to_json()))
    if not sizes:
        return spark.createDataFrame([], schema)
    return parquet(spark, *(str(path / name) for name in sizes), schema=schema)


def parquet(spark: SparkSession, *paths: str, schema: StructType | str) -> DataFrame:
    """Parquet files or folders of known columns."""
    return spark.read.schema(schema).option(*NO_GLOBS).parquet(*paths)
