"""A Delta table read in batches of 1024 rows, by petastorm and by plain readers: python benchmarks/table_reader.py

Every reader makes numpy arrays of the same columns and visits every row; the first pass of each warms the page cache
and is not counted. Prints rows/s of wall and of CPU time, the best of three: the machine may be busy.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, WriterProperties, write_deltalake

from tessera.shard.read.petastorm import batch_reader

NUM_FILES = 8
ROWS_PER_FILE = 50_000
BATCH = 1024
WORDS = ["the", "table", "and", "its", "rows", "are", "read", "once", "more", "in", "batches", "of", "a", "thousand"]

Reader = Callable[[Path, list[str]], Iterator[dict[str, np.ndarray]]]


def write_table(path: Path, *, row_group: int) -> None:
    random = np.random.default_rng(0)
    for file in range(NUM_FILES):
        words = random.choice(WORDS, (ROWS_PER_FILE, 30))
        rows = pa.table(
            {
                "key": np.arange(ROWS_PER_FILE) + file * ROWS_PER_FILE,
                "weight": random.random(ROWS_PER_FILE),
                "score": random.random(ROWS_PER_FILE).astype(np.float32),
                "text": [" ".join(line) for line in words],
            }
        )
        write_deltalake(path, rows, mode="append", writer_properties=WriterProperties(max_row_group_size=row_group))


def tessera(workers: int) -> Reader:
    def read(path: Path, columns: list[str]) -> Iterator[dict[str, np.ndarray]]:
        version = DeltaTable(path).version()
        yield from batch_reader(path, version=version, columns=columns, batch_size=BATCH, workers=workers)

    return read


def to_numpy(batch: Any) -> dict[str, np.ndarray]:
    return {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}


def deltalake(path: Path, columns: list[str]) -> Iterator[dict[str, np.ndarray]]:
    for batch in DeltaTable(path).to_pyarrow_dataset().to_batches(columns=columns, batch_size=BATCH):
        yield to_numpy(batch)


def pyarrow(path: Path, columns: list[str]) -> Iterator[dict[str, np.ndarray]]:
    for uri in DeltaTable(path).file_uris():
        with pq.ParquetFile(uri) as file:
            for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
                yield to_numpy(batch)


READERS: dict[str, Reader] = {
    "petastorm, 1 thread": tessera(1),
    "petastorm, 2 threads": tessera(2),
    "deltalake, pyarrow dataset": deltalake,
    "pyarrow, file by file, 1 thread": pyarrow,
}


def measure(read: Reader, path: Path, columns: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one pass; fails unless every row came."""
    wall, cpu = time.perf_counter(), time.process_time()
    total = sum(int(batch["key"].sum()) for batch in read(path, columns))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    num_rows = NUM_FILES * ROWS_PER_FILE
    if total != num_rows * (num_rows - 1) // 2:
        sys.exit("rows are missing")
    return wall, cpu


def main() -> None:
    num_rows = NUM_FILES * ROWS_PER_FILE
    for row_group in (50_000, 5_000):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            write_table(path, row_group=row_group)
            for columns in (["key", "weight", "score"], ["key", "weight", "score", "text"]):
                print(f"{num_rows} rows, {NUM_FILES} files, row groups of {row_group}: {', '.join(columns)}")
                for name, read in READERS.items():
                    passes = [measure(read, path, columns) for _ in range(4)][1:]
                    wall, cpu = (min(times) for times in zip(*passes, strict=True))
                    print(
                        f"  {name:32} {num_rows / wall / 1e6:6.2f} M rows/s, {num_rows / cpu / 1e6:6.2f} a CPU-second"
                    )


if __name__ == "__main__":
    main()
