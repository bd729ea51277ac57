"""`tables/rows_seen`: which rows a run was trained on, how often, and since which step.

A run keeps no list while it trains: its order is a function of set, seed and block size, and one Spark job expands it
afterwards, over the samples of at most two epochs. One row a run and document, one commit a run; a run that goes on is
written again. It holds ids, no text; rows that were erased stay in it, since weights are what they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import lineage, publish, tasks
from tessera.home import Home
from tessera.lineage import RowsSeenRecord, ShardRecord, TableVersion, TrainRecord
from tessera.shard.read.order import Order
from tessera.shard.run_manifest import read_run_manifest
from tessera.spark_tables import at_version
from tessera.train.run import RunFolder
from tessera.train.seen import COLUMNS, TABLE, path

STATS_COLUMNS = ",".join(COLUMNS)
LOCATED = "shard int, sample int, times long, first long"


@dataclass(frozen=True)
class Drawn:
    """The first `total` indices of an order, each epoch's samples once: those of the first, then the rest of the last.

    Iterating over all would take the time of the whole run's epochs; where batches were skipped, that is taken.
    """

    order: Order
    total: int
    batch_size: int = 1
    skipped: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.first + (self.total % self.order.num_samples if self.epochs else 0)

    @property
    def epochs(self) -> int:
        """Whole ones that need not be iterated over."""
        return 0 if self.skipped else self.total // self.order.num_samples

    @property
    def first(self) -> int:
        return self.total if self.skipped else min(self.total, self.order.num_samples)

    def locate(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """`id`, positions below `length`, -> LOCATED."""
        for batch in batches:
            position = batch["id"].to_numpy()
            position = position[~np.isin(position // self.batch_size, self.skipped)]
            later = position >= self.first
            index = np.where(later, self.total - self.length + position, position)
            shard, sample = self.order.locate(index)
            columns = {
                "shard": shard.astype(np.int32), "sample": sample.astype(np.int32),
                "times": np.where(later, 1, max(self.epochs, 1)), "first": index,
            }  # fmt: skip
            yield pa.RecordBatch.from_pydict(columns)


@tasks.told
def write(spark: SparkSession, *, train: TrainRecord, shards: ShardRecord, home: Home) -> TableVersion | None:
    """Publishes the rows that a run saw; None where the table has them.

    Raises:
        Conflict: another run was published at the same time.
        SourceError: the set's side table cannot be read any more.
    """
    folder = RunFolder(home.resolve(train.run))
    record = RowsSeenRecord(
        fingerprint=lineage.sha256_json({"run": folder.root.name, "steps": train.steps}),
        run=folder.root.name, steps=train.steps, inputs=(train.shard_set,), created=lineage.now(),
        code=lineage.code_version(), table=TableVersion(name=TABLE, path=home.relative(path(home)), version=0),
    )  # fmt: skip
    if any(known.get("fingerprint") == record.fingerprint for known in publish.records(path(home))):
        return None
    publication = publish.begin(path(home), name=TABLE)
    table = record.table.model_copy(update={"version": publication.version})
    record = record.model_copy(update={"table": table})
    rows = _rows(spark, folder, train=train, shards=shards, home=home)
    writer = rows.write.format("delta").mode("overwrite").options(**publication.spark_options(record))
    if publication.parent == publish.NO_PARENT:
        writer = writer.options(**publish.UNLOGGED_TEXT, **{"delta.dataSkippingStatsColumns": STATS_COLUMNS})
    else:
        writer = writer.option("replaceWhere", f"run = '{folder.root.name}'")
    writer.save(str(path(home)))
    publish.confirm(publication)
    return table


def _rows(spark: SparkSession, folder: RunFolder, *, train: TrainRecord, shards: ShardRecord, home: Home) -> DataFrame:
    """COLUMNS of one run."""
    spec = folder.read_spec()
    manifest = read_run_manifest(folder.manifest)
    files = [row for row in manifest.select(["split", "file", "samples"]).to_pylist() if row["split"] == "train"]
    order = Order([row["samples"] for row in files], seed=spec.settings.seed, block_shards=spec.block_shards)
    batch_size = spec.settings.batch_size
    result = folder.read_result()
    skipped = result.skipped if result else ()
    drawn = Drawn(order, (train.steps + len(skipped)) * batch_size, batch_size=batch_size, skipped=skipped)
    samples = (
        spark.range(drawn.length).mapInArrow(drawn.locate, LOCATED)
        .groupBy("shard", "sample").agg(F.sum("times").alias("times"), F.min("first").alias("first"))
    )  # fmt: skip
    names = spark.createDataFrame([(number, row["file"]) for number, row in enumerate(files)], "shard int, file string")
    spans = at_version(spark, home.resolve(shards.spans.path), version=shards.spans.version)
    places = spans.where("split = 'train'").select("doc_id", "source", "file", "sample").distinct()
    found = samples.join(F.broadcast(names), on="shard").join(places, on=["file", "sample"])
    known = {"run": folder.root.name, "run_id": train.run_id, "shard_set": f"{shards.name}@{shards.manifest.version}"}
    return (
        found.groupBy("doc_id", "source")
        .agg(F.sum("times").alias("times"), F.expr(f"min(first) div {batch_size}").alias("batch"))
        .withColumn("first_step", F.col("batch") + 1 - _skipped_before(F.col("batch"), skipped=skipped))
        .withColumns({name: F.lit(value) for name, value in known.items()}).select(*COLUMNS)
    )  # fmt: skip


def _skipped_before(batch: Column, *, skipped: Sequence[int]) -> Column:
    """How many of the skipped batches come before one: its step is so much earlier."""
    return reduce(add, ((F.lit(other) < batch).cast("int") for other in skipped), F.lit(0))
