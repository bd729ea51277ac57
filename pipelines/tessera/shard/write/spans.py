"""The side table document -> shard, sample, token span: committed before the manifest, which pins its version.

Nobody reads it but at a pinned version, so what a killed writer left in it is undone by going back to the pinned one.
An append adds rows, a change replaces the rows of its cells, in one commit; only a new recipe writes the table whole.
"""

import json
from pathlib import Path

from deltalake import CommitProperties, DeltaTable
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame

from tessera import publish, tables, tasks
from tessera.errors import Conflict, ShardingFailed
from tessera.home import Home
from tessera.lineage import ShardRecord, TableVersion
from tessera.shard import manifest
from tessera.shard.write.changes import Changes

STATS_COLUMNS = "doc_id,sha256,split,generation,bucket,piece,file"


def commit(
    spans: DataFrame, *, changes: Changes, parent: ShardRecord | None, name: str, home: Home, publish_id: str
) -> TableVersion:
    """Makes the side table what the manifest to come says; where cells are kept, on the version that `parent` pins.

    Raises:
        Conflict: another writer changed the table meanwhile.
        ShardingFailed: Spark wrote, and there is no such version.
    """
    path = manifest.spans_path(home, name=name)
    base = go_back(path, parent=parent, publish_id=publish_id) if parent is not None and changes.kept.num_rows else None
    writer = spans.write.format("delta").option("userMetadata", json.dumps({"publish_id": publish_id}))
    if base is None:
        writer = writer.mode("overwrite").option("overwriteSchema", "true")
    elif changes.gone:
        writer = writer.mode("overwrite").option("replaceWhere", changes.condition)
    else:
        writer = writer.mode("append")
    if not tables.exists(path):
        writer = writer.options(**publish.UNLOGGED_TEXT, **{"delta.dataSkippingStatsColumns": STATS_COLUMNS})
    try:
        writer.save(str(path))
    except PySparkException as error:
        raise tasks.error_of_worker(error) or error from None
    version = publish.side_version(path, publish_id=publish_id)
    if version is None:
        raise ShardingFailed(f"{path} has no version of this run, although Spark wrote it; run again")
    if base is not None and version != base + 1:
        raise Conflict(
            f"shards/{name}: another writer changed {home.relative(path)} at the same time; nothing of this run was "
            "published. Run the command again: it starts from the newest version"
        )
    return TableVersion(name=f"{name}/documents", path=home.relative(path), version=version)


def go_back(path: Path, *, parent: ShardRecord, publish_id: str) -> int:
    """The newest version, equal to the one that `parent` pins: what came after it was never published."""
    table = tables.open_table(path)
    if table.version() != parent.spans.version:
        ours = CommitProperties(custom_metadata={"userMetadata": json.dumps({"publish_id": publish_id, "restores": 1})})
        table.restore(parent.spans.version, commit_properties=ours)
    return int(DeltaTable(path).version())
