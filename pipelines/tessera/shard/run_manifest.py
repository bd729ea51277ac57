"""Writes what a rank knows of a shard set into the run folder; the launcher's side of `shard.read.manifest`.

The driver resolves the Delta manifest at a version into `shards.arrow` once; ranks open nothing else, so that they need
no Delta library and never see a newer version. A row is a shard file; the schema's metadata says what the set is. Any
Arrow reader can open the file. `shards.json` beside it serves ranks, which have no Arrow: it says where the values lie.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from tessera.errors import ShardSetError
from tessera.files import write_whole
from tessera.lineage import sha256_file
from tessera.shard.read.manifest import SPLITS, Column, Index, SetInfo, ShardFile, index_path, token_dtype

__all__ = [
    "ROW_ORDER",
    "SCHEMA",
    "SPLITS",
    "SetInfo",
    "ShardFile",
    "describe",
    "read_run_manifest",
    "shard_files",
    "token_dtype",
    "write_run_manifest",
]

SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("generation", pa.int64()),
        ("bucket", pa.int64()),
        ("ordinal", pa.int64()),
        ("file", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("text_bytes", pa.int64()),
        ("documents", pa.int64()),
        ("padding", pa.int64()),
        ("buckets", pa.int64()),
    ]
)

ROW_ORDER = ("split", "generation", "bucket", "ordinal")


def write_run_manifest(table: pa.Table, path: Path) -> str:
    """Writes a manifest, as `read_manifest` gives it, as the Arrow file `path` and its index; the former's SHA-256.

    Each takes its name only when it is complete, the index last. The Arrow file is one uncompressed batch.
    """
    SetInfo.from_metadata(table.schema.metadata)
    batches = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    assert len(batches) == 1, "a column of the manifest is longer than an Arrow array can be"
    data = pa.BufferOutputStream()
    with pa.ipc.new_file(data, table.schema) as writer:
        writer.write_batch(batches[0])
    write_whole(path, memoryview(data.getvalue()))
    return _write_index(path).sha256


def ensure_index(path: Path) -> None:
    """Writes the index of a run from before there was one; nothing happens where it exists."""
    if not index_path(path).exists():
        _write_index(path)


def _write_index(path: Path) -> Index:
    index = describe(path)
    write_whole(index_path(path), index.to_json().encode())
    return index


def describe(path: Path) -> Index:
    """The index of a run's `shards.arrow`: where Arrow itself, which maps the file, says that each buffer begins.

    Raises:
        ShardSetError: the file is absent, is not Arrow, or is not a manifest of ours.
    """
    data = _map(path)
    reader = pa.ipc.open_file(data)
    info = SetInfo.from_metadata(reader.schema.metadata)
    assert reader.num_record_batches == 1, reader.num_record_batches
    batch = reader.get_batch(0)
    return Index(
        sha256=sha256_file(path),
        num_bytes=data.size,
        rows=batch.num_rows,
        set=info,
        columns={field.name: _describe_column(batch[field.name], within=data) for field in batch.schema},
    )


def read_run_manifest(path: Path) -> pa.Table:
    """The manifest of a run as an Arrow table, memory-mapped; ranks use `shard.read.manifest.open_manifest`.

    Raises:
        ShardSetError: the file is absent or is not Arrow.
    """
    return pa.ipc.open_file(_map(path)).read_all()


def shard_files(table: pa.Table, *, split: str) -> Iterator[ShardFile]:
    """The rows of one split, in the manifest's order."""
    for row in table.to_pylist():
        if row["split"] == split:
            yield ShardFile(**row)


def _map(path: Path) -> pa.Buffer:
    """The bytes of an Arrow file, mapped."""
    try:
        with pa.memory_map(str(path)) as source:
            data = source.read_buffer()
        pa.ipc.open_file(data)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0][:200]
        raise ShardSetError(f"{path} cannot be read as a run's shard manifest ({reason}); start a new run") from None
    return data


def _describe_column(column: pa.Array, *, within: pa.Buffer) -> Column:
    kind = {pa.int64(): "int64", pa.string(): "utf8"}[column.type]
    assert column.null_count == column.offset == 0
    _, *parts = column.buffers()
    return Column(type=kind, parts=tuple(_place(part, within=within) for part in parts))


def _place(part: pa.Buffer, *, within: pa.Buffer) -> tuple[int, int]:
    """First byte and length of a buffer of the mapped file; Arrow gives empty ones an address of their own."""
    if part.size == 0:
        return 0, 0
    first = part.address - within.address
    assert 0 <= first <= within.size - part.size, "the file is compressed: its buffers lie elsewhere"
    return first, part.size
