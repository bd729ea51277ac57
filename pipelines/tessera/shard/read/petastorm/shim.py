"""petastorm 0.12.1 on a present-day pyarrow: what it expects of pyarrow 15 and numpy 1, and two repairs.

petastorm imports `pyarrow.filesystem`, `pyarrow.hdfs` and `pyarrow.LocalFileSystem`, gone since pyarrow 16. Stand-ins
lie in `sys.modules` under these names, which nothing else has, while petastorm is imported. Afterwards only attributes
of petastorm's own modules differ; pyarrow and numpy are as they were. Threads only: a process pool starts fresh
interpreters, which know nothing of this.

Repaired here, because rows would be lost or shown:

* `ThreadPool.get_results` takes the epoch for finished when the ventilator hands out its last row group between two
  of its questions: that row group is lost without a word. Rare, but a legal order of events.
* A worker that fails prints its traceback, which may quote a value, before the exception reaches the caller.

Not repaired but kept out of reach: `make_batch_reader` pads text to the longest row of a row group, turns null text
into the word None and null integers into floats, and skips columns of types it does not know; `_common_metadata` is
unpickled; `Reader.reset` can start a second ventilator beside the first. See `reader` for what is done instead.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tessera.errors import SetupError

VERSIONS = "0.12."
"""0.13 loses rows with its rewritten thread pool: 5 to 10 of 20 epochs came up short."""


@dataclass(frozen=True)
class Layout:
    """What a table knows of one of its files and the file does not."""

    schema: pa.Schema
    """The table's columns. What the file lacks, because it is older than the column, is null."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Partition columns: they are in the log, not in the file."""

    def complete(self, table: pa.Table, *, columns: set[str]) -> pa.Table:
        """`table` with exactly `columns`, in the table's order and of the table's types.

        Raises:
            pyarrow.ArrowInvalid: a value does not fit.
        """
        fields = [column for column in self.schema if column.name in columns]
        return pa.table([self._column(table, column) for column in fields], schema=pa.schema(fields))

    def _column(self, table: pa.Table, column: pa.Field) -> Any:
        if column.name in table.column_names:
            return table[column.name].cast(column.type)
        scalar = pa.scalar(self.constants.get(column.name), type=column.type)
        return pa.repeat(scalar, table.num_rows)


class LocalFileSystem:
    """What petastorm asks of a file system."""

    def open(self, path: str, mode: str = "rb") -> Any:
        return Path(path).open(mode)

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def layout(self, path: str) -> Layout:
        """The file's own schema: it belongs to no table."""
        return Layout(pq.read_schema(path))


class ParquetDatasetPiece:
    """A Parquet file, or one row group of it; the layout travels where petastorm passes partition keys on."""

    def __init__(
        self, path: str, open_file_func: Any = None, row_group: int | None = None, partition_keys: Any = None
    ) -> None:
        self.path = path
        self.row_group = row_group
        self.partition_keys: Layout = partition_keys

    def get_metadata(self) -> Any:
        """The number of row groups, and the schema of the table instead of the file's."""
        schema = SimpleNamespace(to_arrow_schema=lambda: self.partition_keys.schema)
        return SimpleNamespace(num_row_groups=pq.read_metadata(self.path).num_row_groups, schema=schema)

    def read(self, columns: set[str], partitions: Any = None) -> pa.Table:
        """The row group's `columns`; Spark's 96-bit timestamps keep their range, which nanoseconds would cut."""
        with pq.ParquetFile(self.path, coerce_int96_timestamp_unit="us") as file:
            present = [name for name in file.schema_arrow.names if name in columns]
            table = file.read_row_group(self.row_group, columns=present, use_threads=False)
        return self.partition_keys.complete(table, columns=columns)


class ParquetDataset:
    """Files given by name. No folder is listed, and no metadata file is read: petastorm would unpickle it."""

    partitions = None
    metadata = None
    common_metadata = None

    def __init__(self, path_or_paths: str | list[str], filesystem: LocalFileSystem, **unused: Any) -> None:
        self.paths = path_or_paths
        self.fs = filesystem
        paths = [path_or_paths] if isinstance(path_or_paths, str) else path_or_paths
        self.pieces = [ParquetDatasetPiece(path, partition_keys=filesystem.layout(path)) for path in paths]


class TableWorkers:
    """Stands where petastorm wants a worker class: its own workers, whose Arrow tables come out as they are."""

    batched_output = True

    def __init__(self, worker_class: Any) -> None:
        self.worker_class = worker_class

    def __call__(self, *arguments: Any) -> Any:
        return self.worker_class(*arguments)

    def new_results_queue_reader(self) -> "TableWorkers":
        return self

    def read_next(self, pool: Any, schema: Any, ngram: Any) -> pa.Table:
        try:
            return pool.get_results()
        except load("workers_pool").EmptyResultError:
            raise StopIteration from None


@cache
def load(name: str) -> Any:
    """The module `petastorm.<name>`, patched.

    Raises:
        SetupError: petastorm is absent, or of another version.
    """
    _check_version()
    with _stand_ins(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of distutils
        module: Any = importlib.import_module(f"petastorm.{name}")
        _patch_reading()
        if name == "spark.spark_dataset_converter":
            module._check_dataset_file_median_size = lambda urls: None  # warns of small files; fails on a space
    return module


def _check_version() -> None:
    try:
        found = version("petastorm")
    except PackageNotFoundError:
        raise SetupError("petastorm is not installed; install it: pip install 'tessera[petastorm]'") from None
    if not found.startswith(VERSIONS):
        raise SetupError(f"petastorm is {found}, wanted 0.12.1: 0.13 loses rows; pip install petastorm==0.12.1")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Names that pyarrow lost, importable for a moment; `from pyarrow import X` looks for `pyarrow.X` there too."""
    names: dict[str, Any] = {
        "pyarrow.filesystem": _module("pyarrow.filesystem", LocalFileSystem=LocalFileSystem),
        "pyarrow.hdfs": _module("pyarrow.hdfs", HadoopFileSystem=object),
        "pyarrow.LocalFileSystem": LocalFileSystem,
    }
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


@cache
def _patch_reading() -> None:
    """Gives petastorm's modules what they look up when they run."""
    modules: dict[str, Any] = {name: importlib.import_module(f"petastorm.{name}") for name in (
        "reader", "arrow_reader_worker", "etl.dataset_metadata", "fs_utils", "unischema", "workers_pool.thread_pool",
    )}  # fmt: skip
    for name in ("reader", "arrow_reader_worker", "etl.dataset_metadata"):
        modules[name].pq = _module(
            "pyarrow.parquet", ParquetDataset=ParquetDataset, ParquetDatasetPiece=ParquetDatasetPiece
        )
    modules["arrow_reader_worker"].ParquetFile = lambda file: file.close()  # for nothing: a piece opens its own
    for name in ("arrow_reader_worker", "unischema"):
        modules[name].np = _module(
            "numpy", unicode_=np.str_, string_=np.bytes_, __getattr__=lambda name: getattr(np, name)
        )
    modules["fs_utils"].pyarrow = _module("pyarrow", localfs=LocalFileSystem())
    pool = modules["workers_pool.thread_pool"]
    pool.ThreadPool.get_results = _ventilated_first(pool.ThreadPool.get_results)
    pool.sys = SimpleNamespace(stderr=SimpleNamespace(write=lambda text: None))


def _ventilated_first(get_results: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`get_results` that believes an end only if everything had been handed out before it was asked."""

    @wraps(get_results)
    def repaired(pool: Any) -> Any:
        empty = load("workers_pool").EmptyResultError
        while True:
            handed_out = pool._ventilator is None or pool._ventilator.completed()
            try:
                return get_results(pool)
            except empty:
                if handed_out:
                    raise

    return repaired


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(attributes)
    return module
