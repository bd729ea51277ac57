"""The Parquet files of a pinned Delta version, and what they must hold: found and checked before a row is read.

Opening asks the file system for the size of each file and reads its footer: 0.05 ms a small file from the page cache.
What the Delta log says of a file (bytes, rows) and what the file says must agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from tessera import tables
from tessera.errors import SourceError
from tessera.shard.read.petastorm.shim import Layout, LocalFileSystem

PARTITION = "partition."


@dataclass(frozen=True)
class DataFile:
    """One Parquet file, as the log has it and as its footer has it."""

    path: Path
    num_bytes: int
    row_groups: tuple[int, ...]
    """Rows of each."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Its partition columns."""


@dataclass(frozen=True)
class DataFiles(LocalFileSystem):
    """All files of one table version, in an order that the log decides alone."""

    name: str
    """Of the table, with its version: for messages."""
    schema: pa.Schema
    files: tuple[DataFile, ...]

    @property
    def paths(self) -> list[str]:
        return [str(file.path) for file in self.files]

    def layout(self, path: str) -> Layout:
        return Layout(self.schema, self._constants[path])

    @cached_property
    def _constants(self) -> dict[str, Mapping[str, Any]]:
        return {str(file.path): file.constants for file in self.files}

    def select(self, columns: Sequence[str]) -> "DataFiles":
        """The same files as if they had these columns alone, in this order."""
        return replace(self, schema=pa.schema([self.schema.field(column) for column in columns]))

    def num_rows(self, *, rank: int = 0, world_size: int = 1) -> int:
        """Rows of one rank, which takes every `world_size`-th row group; an epoch must give that many."""
        return sum(self.row_groups[rank::world_size])

    @property
    def row_groups(self) -> list[int]:
        """Rows of each row group, file after file."""
        return [rows for file in self.files for rows in file.row_groups]

    def check_sizes(self) -> None:
        """Raises SourceError when a file is gone, or of another size than the log says."""
        for file in self.files:
            _check_size(file.path, num_bytes=file.num_bytes, name=self.name)


def of_table(path: Path | str, *, version: int) -> DataFiles:
    """The files of a Delta table's version.

    Raises:
        SourceError: no such table or version; deletion vectors, column mapping or files elsewhere than on a mounted
            disk, which petastorm cannot read; a file that is gone or differs from the log in bytes or rows.
    """
    name = f"{path}@{version}"
    if "://" in str(path):
        raise SourceError(
            f"{name}: petastorm reads mounted folders here, wanted a path; mount the store, or copy the table"
        )
    table = tables.open_table(path, version=version)
    _check_features(table, name=name)
    schema = pa.schema(table.schema().to_arrow())
    actions = pa.table(table.get_add_actions(flatten=True)).sort_by("path").to_pylist()
    files = tuple(_data_file(action, Path(path), name=name) for action in actions)
    return DataFiles(name, schema, files)


def of_paths(paths: Sequence[Path], *, name: str, num_rows: int) -> DataFiles:
    """Plain Parquet files of one schema that were written with `num_rows` rows in all.

    Raises:
        SourceError: they hold another number.
    """
    if not paths:
        raise SourceError(f"{name} has no files; there is nothing to read")
    files = tuple(DataFile(path, path.stat().st_size, _row_groups(path, name=name)) for path in paths)
    found = sum(sum(file.row_groups) for file in files)
    if found != num_rows:
        raise SourceError(f"{name}: {found} rows lie in {len(files)} files, wanted {num_rows}; convert again")
    return DataFiles(name, pq.read_schema(paths[0]).remove_metadata(), files)


def _check_features(table: DeltaTable, *, name: str) -> None:
    protocol = table.protocol()
    if "deletionVectors" in (protocol.reader_features or ()):
        marked = pa.table(table.deletion_vectors()).num_rows
        if marked:
            raise SourceError(
                f"{name}: {marked} files have deletion vectors, which petastorm would read as if nothing was deleted; "
                "rewrite them in Spark: REORG TABLE ... APPLY (PURGE), and give the new version"
            )
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise SourceError(
            f"{name} maps its columns by {mapping}, so that its files have other column names; copy it into a table "
            "without delta.columnMapping.mode, or use make_spark_converter"
        )


def _data_file(action: dict[str, Any], root: Path, *, name: str) -> DataFile:
    path = _local(action["path"], root=root, name=name)
    _check_size(path, num_bytes=action["size_bytes"], name=name)
    row_groups = _row_groups(path, name=name)
    logged = action.get("num_records")
    if logged is not None and sum(row_groups) != logged:
        raise SourceError(
            f"{name}: {path.name} holds {sum(row_groups)} rows, the Delta log says {logged}; it was exchanged or "
            "damaged: restore it from a copy, or give another version"
        )
    constants = {key.removeprefix(PARTITION): value for key, value in action.items() if key.startswith(PARTITION)}
    return DataFile(path, action["size_bytes"], row_groups, constants)


def _local(logged: str, *, root: Path, name: str) -> Path:
    """The file that a path of the log means: percent-encoded, and absolute after a shallow clone."""
    address = urlparse(logged)
    if address.scheme not in ("", "file"):
        raise SourceError(f"{name} has files on {address.scheme}; petastorm reads mounted folders here: copy the table")
    return root / unquote(address.path)


def _check_size(path: Path, *, num_bytes: int, name: str) -> None:
    try:
        found = path.stat().st_size
    except OSError:
        raise SourceError(f"{name}: {path.name} is gone; VACUUM took it, give a newer version") from None
    if found != num_bytes:
        raise SourceError(
            f"{name}: {path.name} has {found} bytes, the Delta log says {num_bytes}; it was exchanged or damaged: "
            "restore it from a copy, or give another version"
        )


def _row_groups(path: Path, *, name: str) -> tuple[int, ...]:
    try:
        footer = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{name}: {path.name} is no Parquet file ({type(error).__name__}); restore it") from None
    return tuple(footer.row_group(number).num_rows for number in range(footer.num_row_groups))
