"""Shard sets end to end: 1x, 4x and 16x the data, and a hundred small increments: python benchmarks/shard/writing.py

Each size runs in a process of its own, whose peak of resident memory is the Python driver's. The JVM is driver and
executors in one here, so its memory is printed and says little about a cluster's driver. `--increments 100` alone takes
some ten minutes. Real text: see corpus.py.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tessera import spark as spark_module
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.shard import stage
from tessera.shard.settings import ShardSettings
from tessera.spark import SparkSettings

sys.path.insert(0, str(Path(__file__).parent))
import corpus

SETTINGS = ShardSettings.model_validate(
    {"name": "docs", "seq_len": 1024, "tokenizer": {"vocab_size": 8192, "sample_bytes": 2**22}}
)
UNIT_BYTES = 8 * 2**20
SIZES = (1, 4, 16)


def shard(session: Any, home: Home, prepared: PrepareRecord, settings: ShardSettings) -> ShardRecord:
    from tessera.shard.write.shard_set import write_shards

    return write_shards(
        session, documents=prepared.table, settings=settings, home=home, generations=prepared.generations,
        fingerprint=stage.fingerprint(prepared, settings=settings, home=home),
        compacted=stage.compaction(prepared, settings=settings, home=home),
    )  # fmt: skip


def one_size(times: int, *, tokenizer: Path) -> dict[str, Any]:
    """Writes a new set of `times` units of text in a session that is warm."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        rows = list(corpus.documents(num_bytes=times * UNIT_BYTES))
        num_bytes = sum(int(str(row["num_bytes"])) for row in rows)
        for first in range(0, len(rows), corpus.ROWS_A_FILE):
            corpus.append(home, rows[first : first + corpus.ROWS_A_FILE], generations=())
        prepared = corpus.record(home, rows=len(rows), generations=())
        tiny = Home(Path(folder) / "tiny")
        small = corpus.write(tiny, rows[:40])
        del rows
        began = time.monotonic()
        session = spark_module.session(SparkSettings(), home=home)
        started = time.monotonic() - began
        settings = SETTINGS.model_copy(
            update={"tokenizer": SETTINGS.tokenizer.model_copy(update={"path": str(tokenizer)})}
        )
        shard(session, tiny, small, settings)
        began = time.monotonic()
        shard(session, tiny, small, settings.model_copy(update={"seed": 1}))
        fixed = time.monotonic() - began
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        record = shard(session, home, prepared, settings)
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cores = os.cpu_count() or 1  # which a local session shares out over more tasks
        spark_module.stop()
    return {
        "times": times, "bytes": num_bytes, "tokens": record.tokens, "fill": record.fill, "shards": record.shards,
        "spark_start_seconds": started, "fixed_seconds": fixed, "seconds": seconds, "cores": cores,
        "tokens_per_second_core": record.tokens / seconds / cores, "driver_MiB_before": before / 1024,
        "driver_MiB_peak": peak / 1024,
    }  # fmt: skip


def increments(number: int, *, documents: int) -> list[dict[str, Any]]:
    """Appends so many small generations to a set, then compacts it."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        session = spark_module.session(SparkSettings(), home=home)
        texts = corpus.texts()
        first = 4000
        rows = [corpus.row(key, texts[key], added=0) for key in range(first)]
        generations = (corpus.generation(rows, added=0),)
        prepared = corpus.write(home, rows, generations=generations)
        for turn in range(number + 1):
            began = time.monotonic()
            record = shard(session, home, prepared, SETTINGS)
            measured.append(state(f"increment {turn}", home, record, seconds=time.monotonic() - began))
            if turn == number:
                break
            keys = range(first + turn * documents, first + (turn + 1) * documents)
            rows = [corpus.row(key, texts[key % len(texts)], added=turn + 1) for key in keys]
            generations = (*generations, corpus.generation(rows, added=turn + 1))
            prepared = corpus.append(home, rows, generations=generations)
        began = time.monotonic()
        whole = SETTINGS.model_copy(update={"compact_through": prepared.table.version})
        record = shard(session, home, prepared, whole)
        measured.append(state("compacted", home, record, seconds=time.monotonic() - began))
        spark_module.stop()
    return measured


def state(name: str, home: Home, record: ShardRecord, *, seconds: float) -> dict[str, Any]:
    side_table = sum(1 for _ in home.resolve(record.spans.path).glob("*.parquet"))
    return {
        "name": name, "seconds": seconds, "tokens": record.tokens, "fill": record.fill, "shards": record.shards,
        "generations": len(record.generations), "documents_packed": record.written, "side_table_files": side_table,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, help="one size, in this process; prints JSON")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--increments", type=int, default=0)
    parser.add_argument("--documents", type=int, default=40, help="of an increment")
    asked = parser.parse_args()
    if asked.times:
        print(json.dumps(one_size(asked.times, tokenizer=asked.tokenizer)))
        return
    if asked.increments:
        for row in increments(asked.increments, documents=asked.documents):
            if row["name"] == "compacted" or int(row["name"].split()[1]) in (0, 1, 2, 10, 50, asked.increments):
                print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        return
    with tempfile.TemporaryDirectory() as folder:
        from tessera.shard import tokenizer

        tokenizer.train(corpus.texts()[::16], folder=Path(folder), vocab_size=8192)
        rows = []
        for times in SIZES:
            command = [sys.executable, __file__, "--times", str(times), "--tokenizer", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    print("  size   text MB  tokens M  seconds  of them fixed  k tokens/s/core  fill     shards  driver MiB  linear")
    smallest = rows[0]
    per_byte = (smallest["seconds"] - smallest["fixed_seconds"]) / smallest["bytes"]
    for row in rows:
        linear = (row["seconds"] - row["fixed_seconds"]) / row["bytes"] / per_byte
        print(
            f"  {row['times']:>3}x {row['bytes'] / 1e6:>10.1f} {row['tokens'] / 1e6:>9.2f} {row['seconds']:>8.1f} "
            f"{row['fixed_seconds']:>14.1f} {row['tokens_per_second_core'] / 1e3:>16.0f}  {row['fill']:.4f} "
            f"{row['shards']:>7} {row['driver_MiB_before']:>5.0f}-{row['driver_MiB_peak']:.0f} {linear:>7.2f}"
        )
    print(f"  Spark's start: {smallest['spark_start_seconds']:.1f} s once a process, on {smallest['cores']} cores")


if __name__ == "__main__":
    main()
