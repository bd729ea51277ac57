"""A table at a version as batches of columns, through petastorm's row-group reader and its threads.

For a notebook or a small job that wants to stream a table without sharding it first. Rows come in the order of the
files, or shuffled by a seed; every epoch's rows are counted against the Delta log, and an epoch that is short or
doubled raises. petastorm reads whole row groups: up to `workers` + 2 of them lie in memory. It opens every footer again
each epoch, and hands out at most `workers` + 2 row groups in 10 ms, so small row groups are slow: 3 M rows/s of four
columns with 50,000 rows in each, 1.4 M with 5,000 (one thread; plain pyarrow 6.7 M and 4.6 M). Text arrives as objects,
as it is stored. What each Delta type becomes: see `columns`.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tessera.errors import ConfigError, SourceError
from tessera.shard.read.petastorm import columns as columns_module
from tessera.shard.read.petastorm import files as files_module
from tessera.shard.read.petastorm import shim
from tessera.shard.read.petastorm.columns import Batch
from tessera.shard.read.petastorm.files import DataFiles

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class BatchReader:
    """Epochs of batches over files that do not change; iterating gives all epochs, each time from the first one on."""

    files: DataFiles
    batch_size: int
    epochs: int
    workers: int
    seed: int | None
    rank: int
    world_size: int
    fill: Mapping[str, Any]
    owner: Any = field(default=None, repr=False)
    """Kept alive as long as this reader is: the converter whose cache the files lie in."""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.files.schema.names)

    @property
    def num_rows(self) -> int:
        """Rows of this rank in an epoch."""
        return self.files.num_rows(rank=self.rank, world_size=self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.epochs):
            yield from self.epoch(number)

    def epoch(self, number: int) -> Iterator[Batch]:
        """One pass over this rank's rows, `batch_size` at a time; the last batch may be short.

        Raises:
            SourceError: a file changed or cannot be read, a value has no place in an array, or more or fewer rows
                came than the log says: then the rows that were given are not the table's.
        """
        self.files.check_sizes()
        found = 0
        with closing(self._row_groups(number)) as row_groups:
            for batch in _rebatch(row_groups, batch_size=self.batch_size, name=self.files.name):
                found += len(batch[self.columns[0]])
                self._check(found, short=False, number=number)
                yield batch
        self._check(found, short=True, number=number)

    def _check(self, found: int, *, short: bool, number: int) -> None:
        if found > self.num_rows or (short and found < self.num_rows):
            raise SourceError(
                f"{self.files.name}: epoch {number} of rank {self.rank} of {self.world_size} gave {found} rows, wanted "
                f"{self.num_rows}; do not use them: a file changed while it was read, or petastorm failed"
            )

    def _row_groups(self, number: int) -> Generator[Batch]:
        if self.num_rows == 0:
            return
        reader = self._open(number)
        try:
            for table in reader:
                yield columns_module.to_batch(table, columns=self.columns, fill=self.fill, name=self.files.name)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(
                f"{self.files.name}: a file cannot be read ({type(error).__name__}); restore it or give another version"
            ) from None
        finally:
            reader.stop()
            reader.join()

    def _open(self, number: int) -> Any:
        """petastorm's reader of one epoch: a fresh one, because its own `reset` is not safe."""
        worker_class = shim.load("arrow_reader_worker").ArrowReaderWorker
        room = 2 * (self.workers + 2) + self.workers  # results in flight, so that a failing worker never waits
        sharded = self.world_size > 1
        return shim.load("reader").Reader(
            self.files,
            self.files.paths,
            worker_class=shim.TableWorkers(worker_class),
            reader_pool=shim.load("workers_pool.thread_pool").ThreadPool(self.workers, room),
            is_batched_reader=True,
            num_epochs=1,
            seed=None if self.seed is None else _epoch_seed(self.seed, number),
            shuffle_rows=self.seed is not None,
            shuffle_row_groups=self.seed is not None,
            cur_shard=self.rank if sharded else None,
            shard_count=self.world_size if sharded else None,
        )


def batch_reader(
    table: Path | str,
    *,
    version: int,
    columns: Sequence[str] | None = None,
    batch_size: int = 1024,
    epochs: int = 1,
    workers: int = 2,
    seed: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    fill: Mapping[str, Any] | None = None,
) -> BatchReader:
    """Opens a Delta table at a version for reading in batches.

    Args:
        table: its folder.
        columns: which, and in which order; all by default. Partition columns come like any other.
        batch_size: rows.
        workers: threads that read row groups. With more than one, row groups come in no fixed order.
        seed: shuffles the row groups, and the rows inside each, anew every epoch. With one worker the order is a
            function of the seed. Null keeps the files' order.
        rank: of `world_size` readers, each of which takes every `world_size`-th row group: each row goes to exactly
            one, and shares differ by as much as row groups do.
        fill: column -> what stands for null.

    Raises:
        SourceError: the version cannot be read by petastorm, a column is absent or of a type that is not taken, or
            there are fewer row groups than ranks; see also `files.of_table`.
        ConfigError: a number is out of range.
        SetupError: petastorm is absent, or of another version.
    """
    files = files_module.of_table(table, version=version)
    return open_files(
        files, columns=columns, batch_size=batch_size, epochs=epochs, workers=workers, seed=seed, rank=rank,
        world_size=world_size, fill=fill,
    )  # fmt: skip


def open_files(
    files: DataFiles, *, columns: Sequence[str] | None, fill: Mapping[str, Any] | None, **options: Any
) -> BatchReader:
    """A reader over `files`, its arguments checked; see `batch_reader`."""
    shim.load("reader")
    names = files.schema.names if columns is None else list(columns)
    _check_columns(files, columns=names, fill=fill or {})
    reader = BatchReader(files.select(names), fill=dict(fill or {}), **options)
    _check_numbers(reader)
    if reader.world_size > max(len(files.row_groups), 1):
        raise SourceError(
            f"{files.name} has {len(files.row_groups)} row groups, wanted one for each of {reader.world_size} ranks; "
            "write it in more files"
        )
    return reader


def torch_loader(reader: BatchReader) -> "DataLoader[Any]":
    """The batches of `reader` as a torch DataLoader: numbers as tensors, text and bytes as lists.

    The threads are petastorm's: the loader has no processes of its own, which would each give every row.
    """
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Batches(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            assert get_worker_info() is None, "a process of its own would give every row again"
            for batch in reader:
                yield columns_module.to_tensors(batch, name=reader.files.name)

    return DataLoader(Batches(), batch_size=None, num_workers=0)


def _check_numbers(reader: BatchReader) -> None:
    for name in ("batch_size", "epochs", "workers", "world_size"):
        if getattr(reader, name) < 1:
            raise ConfigError(f"{name} is {getattr(reader, name)}, wanted at least 1")
    if not 0 <= reader.rank < reader.world_size:
        raise ConfigError(f"rank is {reader.rank}, wanted 0 to {reader.world_size - 1}")


def _check_columns(files: DataFiles, *, columns: Sequence[str], fill: Mapping[str, Any]) -> None:
    known = files.schema.names
    if not columns or len(set(columns)) < len(columns) or not set(fill) <= set(columns) <= set(known):
        also = f" and fill for {', '.join(fill)}" if fill else ""
        raise SourceError(
            f"{files.name} has the columns {', '.join(known)}; found columns {', '.join(columns) or 'none'}{also}, "
            "wanted each once, and fill for these alone"
        )
    columns_module.check_types(files.select(columns).schema, table=files.name)


def _epoch_seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _rebatch(parts: Iterable[Batch], *, batch_size: int, name: str) -> Iterator[Batch]:
    """The same rows in the same order, `batch_size` at a time; the last batch has what is left."""
    held: list[Batch] = []
    num_held = 0
    for part in parts:
        held.append(part)
        num_held += _length(part)
        if num_held < batch_size:
            continue
        joined = columns_module.concatenate(held, name=name)
        whole = num_held - num_held % batch_size
        for first in range(0, whole, batch_size):
            yield _cut(joined, first, first + batch_size)
        held, num_held = [_cut(joined, whole, num_held)], num_held - whole
    if num_held:
        yield columns_module.concatenate(held, name=name)


def _length(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _cut(batch: Batch, first: int, stop: int) -> Batch:
    return {column: array[first:stop] for column, array in batch.items()}
