"""What makes documents and decisions good to query beside other tables of a warehouse.

Every column says in its comment what it holds, constraints hold what every reader may rely on, and many small files
that changes left are joined: `OPTIMIZE`, whose commit changes no row.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import tables
from tessera.progress import Tell, silent

COMMENTS = {
    "doc_id": "SHA-256 of the source's name and the row key; equal in decisions, answers and rows_seen",
    "source": "name of the source in the configuration",
    "source_version": "version of the source table that the row was read at",
    "kind": "text, instruction, chat or preference",
    "text": "of kind text",
    "messages": "of kinds instruction and chat: system, user and assistant in turn",
    "prompt": "of kind preference",
    "chosen": "of kind preference: the better answer",
    "rejected": "of kind preference: the worse answer",
    "sha256": "SHA-256 of the contents",
    "num_bytes": "UTF-8 bytes of the contents",
    "group": "sha256 that names the cluster of near-duplicates; its own where there is none",
    "split": "train or heldout, by hash of group",
    "added": "version of this table that the document first stood in",
    "contaminated": "evaluation set that it shares text with; null: none",
    "purposes": "what the source may be used for; empty: anything",
    "row_sha256": "SHA-256 of the row's contents before private data was acted on",
    "updated": "the source's column of that name, as text",
    "rows": "equal rows of the source that this one stands for",
    "private": "private values found in the row, by type",
    "reason": "why the row is no document; null: it is one",
    "displaced_by": "doc_id of the row that was kept instead",
    "bands": "hashes of the buckets in which near-duplicates meet",
}
"""Of the columns of both tables."""

CONSTRAINTS = {
    "delta.constraints.is_identified": "doc_id IS NOT NULL AND length(sha256) = 64",
    "delta.constraints.has_split": "split IN ('train', 'heldout')",
    "delta.constraints.has_size": "num_bytes >= 0",
}
"""Of documents. They name no column that holds text: Delta prints the values of a row that breaks one."""

SMALL_BYTES = 2**25
MAX_SMALL_FILES = 48
"""Of a table: with more of them than this, reading waits for files and not for bytes."""
TARGET_CONF = "spark.databricks.delta.optimize.maxFileSize"
TARGET_BYTES = 2**27
"""Of a joined file: a change rewrites a whole one."""


def commented(frame: DataFrame) -> DataFrame:
    """The frame with COMMENTS on its columns, for the first version of a table."""
    return frame.select(*(F.col(name).alias(name, metadata={"comment": COMMENTS[name]}) for name in frame.columns))


def join_small_files(spark: SparkSession, path: Path, *, tell: Tell = silent) -> bool:
    """Joins small files of the newest version where there are many of them; whether that made another version.

    Where Spark cannot, they stay.
    """
    sizes = tables.data_files(path, version=tables.open_table(path).version()).values()
    if sum(size < SMALL_BYTES for size in sizes) <= MAX_SMALL_FILES:
        return False
    tell(f"joining small files of {path.name}")
    try:
        with session_settings(spark, {TARGET_CONF: str(TARGET_BYTES)}):
            spark.sql(f"OPTIMIZE delta.`{path}`")
    except PySparkException as error:
        tell(f"small files of {path.name} stay as they are: {error.getCondition()}")
        return False
    return True


@contextmanager
def session_settings(spark: SparkSession, values: Mapping[str, str]) -> Iterator[None]:
    """Session settings while this lasts: what commands in SQL take where a writer takes options."""
    before = {name: spark.conf.get(name, None) for name in values}
    for name, value in values.items():
        spark.conf.set(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            spark.conf.unset(name) if value is None else spark.conf.set(name, value)
