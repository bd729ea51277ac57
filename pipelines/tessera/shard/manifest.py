"""The Delta manifest of a shard set: a row a shard file, a version a published set. Read without a JVM.

`read_manifest` resolves one version for a run; `write_run_manifest` turns it into the one file that ranks open.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tessera import publish, tables
from tessera.errors import ShardSetError
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard.format import mds
from tessera.shard.run_manifest import ROW_ORDER, SCHEMA, SPLITS, SetInfo, ShardFile, shard_files, write_run_manifest

__all__ = ["ShardFile", "read_manifest", "read_record", "shard_files", "write_indexes", "write_run_manifest"]

STATS_COLUMNS = (
    "split,generation,bucket,ordinal,file,num_bytes,sha256,samples,tokens,text_bytes,documents,padding,buckets,content"
)

CELL_SCHEMA = SCHEMA.append(pa.field("content", pa.string()))
"""A row of the Delta manifest: `content` is the hash of what the file's cell holds, by which an increment knows that it
need not be written again. Runs do not need it. Format 1 did not have it."""


def set_folder(home: Home, *, name: str) -> Path:
    """`shards/NAME`: the data files, the manifest and the side table of a set."""
    return home.shards / name


def manifest_path(home: Home, *, name: str) -> Path:
    return set_folder(home, name=name) / "manifest"


def spans_path(home: Home, *, name: str) -> Path:
    """The side table document -> shard, sample, token span."""
    return set_folder(home, name=name) / "documents"


def read_record(home: Home, *, name: str, version: int | None = None) -> ShardRecord:
    """The record in the publishing commit of a set's version; the newest by default.

    Raises:
        ShardSetError: there is no such set, or no such version of it.
    """
    path = manifest_path(home, name=name)
    found = publish.read_record(path, version=version)
    if found is None:
        newest = tables.open_table(path).version() if tables.exists(path) else publish.NO_PARENT
        if version is not None and version > newest > publish.NO_PARENT:
            raise ShardSetError(f"shard set {name} has versions 0 to {newest}, wanted {version}; give one of them")
        wanted = f"shard set {name}" if version is None else f"shard set {name}@{version}"
        raise ShardSetError(f"{wanted} is not published in {home.relative(path)}; write it: tessera shard")
    return ShardRecord.model_validate(found)


def read_manifest(home: Home, name: str, version: int | None = None) -> pa.Table:
    """The shard files of a set at a version (the newest by default), by split, generation, bucket, ordinal.

    The schema's metadata is the set's `SetInfo`.

    Raises:
        ShardSetError: there is no such set or version.
    """
    record = read_record(home, name=name, version=version)
    info = SetInfo(
        name=name,
        version=record.manifest.version,
        seq_len=record.seq_len,
        end_id=record.tokenizer.end_id,
        vocab_size=record.tokenizer.vocab_size,
        tokenizer=record.tokenizer.sha256,
        root=home.relative(set_folder(home, name=name)),
    )
    rows = tables.read(manifest_path(home, name=name), version=info.version)
    return sorted_rows(rows).replace_schema_metadata(info.to_metadata())


def sorted_rows(rows: pa.Table, *, schema: pa.Schema = SCHEMA) -> pa.Table:
    """Rows in the manifest's order, with the columns and types of `schema`."""
    ordered = rows.select(schema.names).cast(schema)
    return ordered.take(pc.sort_indices(ordered, sort_keys=[(name, "ascending") for name in ROW_ORDER]))


def read_cells(home: Home, record: ShardRecord) -> pa.Table:
    """The manifest's rows with what their cells hold, CELL_SCHEMA; `content` is empty in what format 1 wrote."""
    rows = tables.read(home.resolve(record.manifest.path), version=record.manifest.version)
    if "content" not in rows.column_names:
        rows = rows.append_column("content", pa.array([""] * rows.num_rows))
    return sorted_rows(rows, schema=CELL_SCHEMA)


def missing_shards(folder: Path, rows: pa.Table) -> list[str]:
    """Shard files that `rows` name and that are absent or of another size: at best none."""
    missing = []
    for name, size in zip(rows["file"].to_pylist(), rows["num_bytes"].to_pylist(), strict=True):
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            missing.append(name)
    return missing


def write_indexes(home: Home, *, name: str, version: int) -> list[Path]:
    """Derives `index.json` in each split folder, for readers of mosaicml-streaming; Tessera never reads it."""
    table = read_manifest(home, name, version)
    folder = set_folder(home, name=name)
    written = []
    for split in SPLITS:
        files = list(shard_files(table, split=split))
        if files:
            entries = [_index_entry(file, folder=folder) for file in files]
            text = mds.index_json(entries, tessera_manifest_version=version)
            path = folder / split / "index.json"
            write_whole(path, text.encode())
            written.append(path)
    return written


def _index_entry(file: ShardFile, *, folder: Path) -> dict[str, object]:
    config = mds.read_config(folder / file.file)
    hashes = dict.fromkeys(config["hashes"], file.sha256)
    basename = Path(file.file).name
    return mds.index_entry(config, basename=basename, num_bytes=file.num_bytes, samples=file.samples, hashes=hashes)
