"""Delta tables without a JVM: open one at a version, read it as Arrow, and keep the ledger.

Reading goes through delta-rs (`deltalake`), which starts in half a second where Spark takes twelve. What is large is
read and written by Spark instead; both see the same tables.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from tessera import failpoints, lineage
from tessera.errors import SourceError
from tessera.lineage import Record

LEDGER_SCHEMA = pa.schema(
    [
        ("at", pa.string()),
        ("stage", pa.string()),
        ("fingerprint", pa.string()),
        ("status", pa.string()),
        ("seconds", pa.float64()),
        ("code", pa.string()),
        ("run_id", pa.string()),
        ("inputs", pa.string()),
        ("record", pa.string()),
        ("format", pa.int64()),
    ]
)


def exists(path: Path) -> bool:
    """Whether `path` holds a Delta table."""
    return (path / "_delta_log").is_dir()


def open_table(path: Path | str, *, version: int | None = None, timestamp: str | None = None) -> DeltaTable:
    """Opens a Delta table at its newest version, at `version`, or as of `timestamp` (ISO 8601).

    Raises:
        SourceError: not a Delta table, or no such version (naming the range), or unreadable.
    """
    try:
        table = DeltaTable(path)
    except TableNotFoundError:
        raise SourceError(f"{path} is not a Delta table; give a folder that holds _delta_log") from None
    except (DeltaError, OSError) as error:
        raise SourceError(f"the Delta table {path} cannot be opened: {_first_line(error)}") from None
    newest = table.version()
    if version is not None and not 0 <= version <= newest:
        raise SourceError(f"{path} has versions 0 to {newest}, wanted {version}; give one of them or leave it out")
    try:
        if timestamp is not None:
            table.load_as_version(_version_as_of(table, timestamp, path=path))
        elif version is not None and version != newest:
            table.load_as_version(version)
    except (DeltaError, OSError) as error:
        wanted = timestamp if timestamp is not None else f"version {version}"
        raise SourceError(
            f"{path} at {wanted} is no longer readable ({_first_line(error)}); newest is {newest}"
        ) from None
    return table


def read(
    path: Path, *, version: int | None = None, columns: Sequence[str] | None = None, filters: Any = None
) -> pa.Table:
    """The rows of a table at a version, in no particular order."""
    table = open_table(path, version=version)
    chosen = list(columns) if columns else None
    try:
        return table.to_pyarrow_table(columns=chosen, filters=filters, filesystem=_files(path))
    except (OSError, pa.ArrowInvalid):
        if found := damage(path, table=table):
            raise found from None
        raise


def dataset(path: Path, *, version: int | None = None) -> Any:
    """A table at a version as an Arrow dataset, to be read in batches."""
    return open_table(path, version=version).to_pyarrow_dataset(filesystem=_files(path))


def _files(path: Path) -> SubTreeFileSystem:
    """Arrow's own file system: delta-rs's is made in Python and, freed too late, aborts the end of a short command."""
    return SubTreeFileSystem(str(path), LocalFileSystem())


def query(path: Path, *, version: int, sql: str) -> pa.Table:
    """What a SQL query gives over the rows of a table, which it calls `rows`, at a version.

    DataFusion streams the columns that the query names: an aggregate of few groups needs little memory, whatever the
    number of rows, and takes milliseconds where a Spark job takes a second.
    """
    table = open_table(path, version=version)
    try:
        found = pa.table(QueryBuilder().register("rows", table).execute(sql))
    except (DeltaError, OSError, ValueError):
        if found := damage(path, table=table):
            raise found from None
        raise
    return found.cast(pa.schema([field.with_type(_plain_type(field.type)) for field in found.schema]))


def damage(path: Path, *, table: DeltaTable) -> SourceError | None:
    """What is wrong with the data files of a version that could not be read; None when nothing is."""
    newest = DeltaTable(path).version()
    missing = missing_files(path, version=table.version())
    if missing and table.version() < newest:
        return SourceError(
            f"{path} at version {table.version()} is no longer readable: data files of it were removed, by an erasure "
            f"or a clean-up; newest is {newest}"
        )
    for name in missing or data_files(path, version=table.version()):
        try:
            pq.read_table(path / name, partitioning=None)
        except FileNotFoundError:
            what = "is not there"
        except (OSError, pa.ArrowInvalid):
            what = "is no whole Parquet file"
        else:
            continue
        return SourceError(
            f"{path / name} {what}, and version {table.version()} names it; restore the file, or make the version again"
        )
    return None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without views, which pandas and older readers do not know."""
    if kind == pa.string_view():
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def missing_files(path: Path, *, version: int) -> list[str]:
    """Data files that the table's version names and that are absent or of another size: at best none."""
    return missing(path, data_files(path, version=version))


def missing(path: Path, sizes: Mapping[str, int]) -> list[str]:
    """Those of these files below `path` that are absent or of another size."""
    files = {name: path / name for name in sizes}
    return [name for name, file in files.items() if not file.is_file() or file.stat().st_size != sizes[name]]


def data_files(path: Path, *, version: int) -> dict[str, int]:
    """The data files that the table's version names, relative to it, and their bytes."""
    return files_of(open_table(path, version=version))


def files_of(table: DeltaTable) -> dict[str, int]:
    """`data_files` of a table that is open."""
    actions = pa.table(table.get_add_actions(flatten=True))
    names = map(unquote, actions["path"].to_pylist())
    return dict(zip(names, actions["size_bytes"].to_pylist(), strict=True))


def remove_data_file(path: Path) -> None:
    """Removes a data file with the checksum that Hadoop keeps beside it; versions that name it cannot be read again."""
    path.unlink(missing_ok=True)
    path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


class Ledger:
    """One row a stage run, in `tables/ledger`: a projection of the records, so losing a row loses nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record, *, status: str = "done") -> None:
        """Adds the row of `record`; `status` is `done`, `reused` or `failed`."""
        failpoints.hit("ledger.before_append")
        row = {
            "at": lineage.now(),
            "stage": record.stage,
            "fingerprint": record.fingerprint,
            "status": status,
            "seconds": record.seconds,
            "code": record.code,
            "run_id": getattr(record, "run_id", None),
            "inputs": json.dumps([table.model_dump() for table in record.inputs], sort_keys=True),
            "record": record.to_json(),
            "format": record.format,
        }
        data = pa.Table.from_pylist([row], schema=LEDGER_SCHEMA)
        write_deltalake(self.path, data, mode="append")

    def rows(self) -> list[dict[str, Any]]:
        """All rows, oldest first."""
        if not exists(self.path):
            return []
        return sorted(read(self.path).to_pylist(), key=lambda row: row["at"])

    def find(self, *, stage: str, fingerprint: str) -> str | None:
        """The newest record (JSON) of a finished stage with this fingerprint."""
        rows = [
            row
            for row in self.rows()
            if row["stage"] == stage and row["fingerprint"] == fingerprint and row["status"] == "done"
        ]
        return rows[-1]["record"] if rows else None

    def repair(self, record: Record) -> bool:
        """Adds `record`, found in a publishing commit, if its row is missing; says whether it was."""
        known = any(
            row["status"] == "done" and json.loads(row["record"])["created"] == record.created
            for row in self.rows()
            if row["stage"] == record.stage
        )
        if not known:
            self.append(record)
        return not known


def _version_as_of(table: DeltaTable, timestamp: str, *, path: Path | str) -> int:
    """The newest version that is as old as `timestamp`, of a table opened at its newest version.

    delta-rs itself would take the oldest version for any moment before it, and so hide a wrong timestamp.
    """
    moment = _moment(timestamp, path=path).timestamp() * 1000
    history = table.history()
    versions = [int(entry["version"]) for entry in history if entry["timestamp"] <= moment]
    if not versions:
        first = datetime.fromtimestamp(min(entry["timestamp"] for entry in history) / 1000, tz=UTC)
        raise SourceError(f"{path} begins at {first.isoformat()}, wanted {timestamp}; give a later moment")
    return max(versions)


def _moment(timestamp: str, *, path: Path | str) -> datetime:
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        raise SourceError(f"{path}: timestamp {timestamp!r} is not ISO 8601, such as 2026-11-23T08:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200]
