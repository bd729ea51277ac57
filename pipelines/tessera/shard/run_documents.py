"""Writes what a reader in direct mode knows of the documents into the run folder: the launcher's side of `read.direct`.

The driver resolves the documents table at the set's pinned version into the names and sizes of its Parquet files, once:
readers need no Delta library and never see a newer version.
"""

from pathlib import Path

from tessera import tables
from tessera.files import write_whole
from tessera.home import Home
from tessera.lineage import ShardRecord
from tessera.shard import recipe
from tessera.shard.read.direct import CellRecipe, ParquetFile, RunDocuments
from tessera.shard.read.shards import documents_path


def write_run_documents(home: Home, record: ShardRecord, *, manifest: Path) -> None:
    """Writes `documents.json` beside a run's shards.arrow if the set's files are not stored; else there is none.

    Raises:
        SourceError: the documents table is no longer readable at its version.
    """
    path = documents_path(manifest)
    if not record.direct:
        path.unlink(missing_ok=True)
        return
    write_whole(path, describe(home, record).to_json().encode())


def describe(home: Home, record: ShardRecord) -> RunDocuments:
    """The documents of a set at its pinned version, and how they become files."""
    (table,) = record.inputs
    how = recipe.recorded(record, home=home)
    adds = tables.data_files(home.resolve(table.path), version=table.version)
    return RunDocuments(
        table=table,
        files=tuple(
            ParquetFile(path=f"{table.path}/{name}", num_bytes=num_bytes) for name, num_bytes in sorted(adds.items())
        ),
        tokenizer=record.tokenizer,
        recipe=CellRecipe(**{name: getattr(how, name) for name in CellRecipe.model_fields}),
    )
