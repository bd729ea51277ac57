"""`tables/rows_seen`: which rows a run was trained on, how often, and since which step.

A run keeps no list while it trains: its order is a function of set, seed and block size, and one Spark job expands it
afterwards, over the samples of at most two epochs. One row a run and document, one commit a run; a run that goes on is
written again. It holds ids, no text; rows that were erased stay in it, since weights are what they were.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from tessera import lineage, publish, tasks
from tessera.home import Home
from tessera.lineage import RowsSeenRecord, ShardRecord, TableVersion, TrainRecord
from tessera.shard.manifest import read_record
from tessera.spark_tables import at_version
from tessera.train import ledger
from tessera.train.ledger import Segment
from tessera.train.run import RunFolder
from tessera.train.seen import COLUMNS, TABLE, path

STATS_COLUMNS = ",".join(COLUMNS)
LOCATED = "shard int, sample int, times long, first_step long"


@dataclass(frozen=True)
class Drawn:
    """The indices of a segment, each epoch's samples once: those of the first, then the rest of the last.

    Iterating over all would take the time of the whole run's epochs; where batches were skipped, or the segment does
    not begin with its order, that is taken.
    """

    segment: Segment

    @property
    def begin(self) -> int:
        return self.segment.first * self.segment.batch_size

    @property
    def end(self) -> int:
        return self.segment.last * self.segment.batch_size

    @property
    def length(self) -> int:
        return self.first + (self.end % self.segment.order.num_samples if self.epochs else 0)

    @property
    def epochs(self) -> int:
        """Whole ones that need not be iterated over."""
        return 0 if self.segment.skipped or self.begin else self.end // self.segment.order.num_samples

    @property
    def first(self) -> int:
        return self.segment.order.num_samples if self.epochs else self.end - self.begin

    def locate(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """`id`, positions below `length`, -> LOCATED."""
        for batch in batches:
            position = batch["id"].to_numpy()
            later = position >= self.first
            index = np.where(later, self.end - self.length + position, self.begin + position)
            batches_of = index // self.segment.batch_size
            taken = ~np.isin(batches_of, self.segment.skipped)
            index, later, batches_of = index[taken], later[taken], batches_of[taken]
            shard, sample = self.segment.order.locate(index)
            columns = {
                "shard": shard.astype(np.int32), "sample": sample.astype(np.int32),
                "times": np.where(later, 1, max(self.epochs, 1)), "first_step": self.segment.steps_of(batches_of),
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
    """COLUMNS of one run, those that it goes on with included."""
    segments = ledger.segments(folder, steps=train.steps)
    found = reduce(DataFrame.unionByName, (_of_segment(spark, segment, home=home) for segment in segments))
    known = {"run": folder.root.name, "run_id": train.run_id, "shard_set": f"{shards.name}@{shards.manifest.version}"}
    return (
        found.groupBy("doc_id", "source")
        .agg(F.sum("times").alias("times"), F.min("first_step").alias("first_step"))
        .withColumns({name: F.lit(value) for name, value in known.items()}).select(*COLUMNS)
    )  # fmt: skip


def _of_segment(spark: SparkSession, segment: Segment, *, home: Home) -> DataFrame:
    """doc_id, source, times, first_step of the pieces of rows in one segment."""
    drawn = Drawn(segment)
    seen = (F.sum("times").alias("times"), F.min("first_step").alias("first_step"))
    samples = spark.range(drawn.length).mapInArrow(drawn.locate, LOCATED).groupBy("shard", "sample").agg(*seen)
    names = spark.createDataFrame(list(enumerate(segment.files)), "shard int, file string")
    shards = read_record(home, name=segment.set_name, version=segment.set_version)
    spans = at_version(spark, home.resolve(shards.spans.path), version=shards.spans.version)
    places = spans.where("split = 'train'").select("doc_id", "source", "file", "sample").distinct()
    return samples.join(F.broadcast(names), on="shard").join(places, on=["file", "sample"])
