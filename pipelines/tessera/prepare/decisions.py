"""`tables/decisions`: what became of each row of the sources, and why. A side table of the documents; it holds no text.

One row for each distinct (source, doc_id, row hash, `updated`); `rows` says how many rows of the source it stands for.
Nobody reads it but at the version that the documents' record pins. It is what an increment compares the sources with,
so that only rows that changed are judged again.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltalake import CommitProperties, DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import publish, tables
from tessera.errors import Conflict
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare.warehouse import commented, join_small_files, session_settings
from tessera.spark_tables import at_version

TABLE = "decisions"
KEY = ("source", "doc_id", "row_sha256", "updated")
OUTCOME = ("reason", "split", "group", "displaced_by")
COLUMNS = (*KEY, "rows", "kind", "sha256", "num_bytes", "private", "contaminated", *OUTCOME, "bands")
STATS_COLUMNS = "source,doc_id,row_sha256,rows,kind,sha256,num_bytes,reason,split,group"

COUNT_SQL = """
SELECT reason, split, sum(rows) AS rows, count(*) AS documents, sum(num_bytes) AS num_bytes
FROM rows GROUP BY reason, split
"""

METADATA_CONF = "spark.databricks.delta.commitInfo.userMetadata"


def path(home: Home) -> Path:
    return home.tables / TABLE


def read(spark: SparkSession, *, home: Home, record: PrepareRecord) -> DataFrame:
    """The decisions that documents were made by."""
    version = record.decisions
    assert version is not None
    return at_version(spark, home.resolve(version.path), version=version.version)


def write(decided: DataFrame, *, home: Home, publish_id: str) -> TableVersion:
    """Writes the table whole."""
    writer = (
        commented(decided.select(*COLUMNS)).write.format("delta").mode("overwrite").option("overwriteSchema", "true")
    )
    writer = writer.option("userMetadata", _metadata(publish_id))
    if not tables.exists(path(home)):
        writer = writer.options(**publish.UNLOGGED_TEXT, **{"delta.dataSkippingStatsColumns": STATS_COLUMNS})
    writer.save(str(path(home)))
    return _written(home, publish_id=publish_id)


def change(decided: DataFrame, *, gone: DataFrame, parent: PrepareRecord, home: Home, publish_id: str) -> TableVersion:
    """Puts `decided` in, instead of the rows of their KEY, and takes the rows with the KEY of `gone` out; one commit.

    Raises:
        Conflict: another writer changed the table meanwhile.
    """
    base = go_back(home, parent=parent)
    leaving = gone.select(*KEY).withColumn("leaves", F.lit(True))
    changes = decided.select(*COLUMNS).withColumn("leaves", F.lit(False))
    changes = changes.unionByName(leaving, allowMissingColumns=True)
    matched = " AND ".join(f"t.`{name}` <=> c.`{name}`" for name in KEY)
    spark = decided.sparkSession
    ours = {METADATA_CONF: _metadata(publish_id)}
    with view(changes, name="tessera_decisions") as named, session_settings(spark, ours):
        spark.sql(
            f"MERGE INTO delta.`{path(home)}` t USING {named} c ON {matched} "
            "WHEN MATCHED AND c.leaves THEN DELETE "
            f"WHEN MATCHED THEN UPDATE SET {_assigned(COLUMNS)} "
            f"WHEN NOT MATCHED AND NOT c.leaves THEN INSERT ({listed(COLUMNS)}) VALUES ({listed(COLUMNS, of='c')})"
        )
        merged = publish.side_version(path(home), publish_id=publish_id)
        if merged is None:  # nothing to change: Delta made no commit
            return TableVersion(name=TABLE, path=home.relative(path(home)), version=base)
        if merged != base + 1:
            raise Conflict(
                f"documents: another writer changed {home.relative(path(home))} at the same time; nothing of this run "
                "was published. Run the command again: it starts from the newest version"
            )
        join_small_files(spark, path(home))
    return _written(home, publish_id=publish_id)


def go_back(home: Home, *, parent: PrepareRecord) -> int:
    """The newest version, equal to the one that `parent` pins: what came after it was never published."""
    assert parent.decisions is not None
    table = tables.open_table(path(home))
    if table.version() != parent.decisions.version:
        ours = CommitProperties(custom_metadata={"userMetadata": json.dumps({"restores": parent.decisions.version})})
        table.restore(parent.decisions.version, commit_properties=ours)
    return int(DeltaTable(path(home)).version())


def counts(home: Home, *, version: TableVersion, extra_copies: str) -> dict[str, Any]:
    """The counts of a PrepareRecord, without reading text and without a JVM.

    Args:
        extra_copies: the reason why equal rows of one document are dropped but one.
    """
    found = tables.query(home.resolve(version.path), version=version.version, sql=COUNT_SQL).to_pylist()
    dropped: dict[str, int] = {}
    splits = {"train": 0, "heldout": 0}
    num_bytes = 0
    for row in found:
        if row["reason"] is None:
            splits[row["split"]] += row["documents"]
            num_bytes += row["num_bytes"]
        extra = row["rows"] - (row["documents"] if row["reason"] is None else 0)
        if extra:
            reason = row["reason"] or extra_copies
            dropped[reason] = dropped.get(reason, 0) + extra
    return {
        "rows": sum(row["rows"] for row in found), "documents": sum(splits.values()),
        "dropped": dict(sorted(dropped.items())), "splits": splits, "num_bytes": num_bytes,
    }  # fmt: skip


@contextmanager
def view(frame: DataFrame, *, name: str) -> Iterator[str]:
    """A frame under a name that SQL knows while this lasts."""
    frame.createOrReplaceTempView(name)
    try:
        yield name
    finally:
        frame.sparkSession.catalog.dropTempView(name)


def listed(columns: tuple[str, ...], *, of: str = "") -> str:
    """Columns of a table, quoted, for SQL."""
    return ", ".join(f"{of}{'.' if of else ''}`{name}`" for name in columns)


def _written(home: Home, *, publish_id: str) -> TableVersion:
    version = publish.side_version(path(home), publish_id=publish_id)
    assert version is not None, "Spark wrote the decisions, and there is no such version"
    return TableVersion(name=TABLE, path=home.relative(path(home)), version=version)


def _metadata(publish_id: str) -> str:
    return json.dumps({"publish_id": publish_id})


def _assigned(columns: tuple[str, ...]) -> str:
    return ", ".join(f"t.`{name}` = c.`{name}`" for name in columns)
