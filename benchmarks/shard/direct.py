"""Direct mode beside stored shards, over documents in order and scattered: python benchmarks/shard/direct.py

An epoch of `batch_at` in one thread, from opening the set on: files are mapped and hashed, or made from the documents.
Scattered are the same rows in the order of a hash, as they lie where nobody sorted them.
Real text: see corpus.py.
"""

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from deltalake import write_deltalake
from pyspark.sql import functions as F

from tessera import spark as spark_module
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.pipeline import Pipeline
from tessera.settings import Settings
from tessera.shard import manifest
from tessera.shard.read.batches import batch_at, make_order, open_split
from tessera.shard.read.direct import ParquetFile, RunDocuments
from tessera.shard.read.shards import documents_path
from tessera.shard.run_documents import describe
from tessera.shard.run_manifest import write_run_manifest
from tessera.spark import SparkSettings

sys.path.insert(0, str(Path(__file__).parent))
import corpus

BATCH = 16


def settings(source: Path, *, mode: str) -> Settings:
    return Settings.model_validate(
        {
            "prepare": {"sources": [{"path": str(source)}]},
            "shard": {
                "name": "docs", "mode": mode, "seq_len": 1024,
                "tokenizer": {"vocab_size": 8192, "sample_bytes": 2**22},
            },
        }
    )  # fmt: skip


def scattered(home: Home, documents: RunDocuments) -> RunDocuments:
    """The same rows in Parquet files of no order, in Spark's own row groups."""
    session = spark_module.session(SparkSettings(), home=home)
    folder = home.root / "scattered"
    table = session.read.format("delta").option("versionAsOf", documents.table.version).load(str(home.documents))
    table.orderBy(F.sha2("sha256", 256)).write.parquet(str(folder))
    files = [
        ParquetFile(path=home.relative(file), num_bytes=file.stat().st_size)
        for file in sorted(folder.glob("*.parquet"))
    ]
    return documents.model_copy(update={"files": tuple(files)})


def epoch(home: Home, record: ShardRecord, *, documents: RunDocuments | None) -> dict[str, float]:
    """Seconds of an epoch's batches, and what was read for them.

    Args:
        documents: what the files are made from; None where they are stored.
    """
    path = home.runs / uuid.uuid4().hex / "shards.arrow"
    path.parent.mkdir(parents=True)
    write_run_manifest(manifest.read_manifest(home, "docs", record.manifest.version), path)
    if documents is not None:
        documents_path(path).write_text(documents.to_json())
    groups = 0
    read_row_group = pq.ParquetFile.read_row_group

    def counting(self: pq.ParquetFile, *args: Any, **options: Any) -> pa.Table:
        nonlocal groups
        groups += 1
        return read_row_group(self, *args, **options)

    pq.ParquetFile.read_row_group = counting
    try:
        began, cpu = time.perf_counter(), time.process_time()
        shards = open_split(path, split="train", shards_root=manifest.set_folder(home, name="docs"))
        order = make_order(shards, seed=1, block_shards=16)
        first = 0.0
        for step in range(shards.num_samples // BATCH):
            batch_at(shards, order, step=step, batch_size=BATCH)
            first = first or time.perf_counter() - began
        seconds = time.perf_counter() - began
    finally:
        pq.ParquetFile.read_row_group = read_row_group
    return {
        "tokens_per_second": shards.num_tokens / seconds, "seconds": seconds, "first": first, "row_groups": groups,
        "cpu": time.process_time() - cpu,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        rows = [
            {"id": number, "text": str(row["text"])}
            for number, row in enumerate(corpus.documents(num_bytes=arguments.megabytes * 2**20))
        ]
        write_deltalake(source, pa.Table.from_pylist(rows))
        del rows
        measure(Path(folder), source=source, rounds=arguments.rounds)
    spark_module.stop()


def measure(folder: Path, *, source: Path, rounds: int) -> None:
    """Prepares once, writes the set in each mode, and reads an epoch of each by turns."""
    homes = {mode: Home(folder / mode) for mode in ("sharded", "direct")}
    records: dict[str, ShardRecord] = {}
    for mode, home in homes.items():
        pipeline = Pipeline(settings(source, mode=mode), home=home)
        began = time.perf_counter()
        pipeline.do("prepare")
        print(f"{mode}: prepare took {time.perf_counter() - began:.1f} s", flush=True)
        record = pipeline.do("shard")
        assert isinstance(record, ShardRecord)
        records[mode] = record
    documents = describe(homes["direct"], records["direct"])
    cases: dict[str, tuple[str, RunDocuments | None]] = {
        "stored": ("sharded", None),
        "direct": ("direct", documents),
        "direct, scattered documents": ("direct", scattered(homes["direct"], documents)),
    }
    for name, (mode, given) in cases.items():
        took = [epoch(homes[mode], records[mode], documents=given) for _ in range(rounds)]
        middle = {key: statistics.median(one[key] for one in took) for key in took[0]}
        held = given.files if given else ()
        groups = sum(pq.ParquetFile(homes[mode].root / file.path).num_row_groups for file in held)
        print(
            f"{name:28} {middle['tokens_per_second'] / 1e6:7.2f} M tokens/s, {middle['seconds']:.2f} s an epoch "
            f"({middle['cpu']:.2f} s of CPU), first batch after {middle['first']:.2f} s, row groups read "
            f"{middle['row_groups']:.0f} of {groups} in {len(held)} files; {records[mode].shards} shards",
            flush=True,
        )


if __name__ == "__main__":
    main()
