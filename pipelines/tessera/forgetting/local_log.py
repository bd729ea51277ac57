"""What a deletion leaves in a Delta table of someone else's: dead data files, and text in its log's statistics.

Only after the user asked for the deletion (`--delete-source`), and only in what holds the deleted text: data files that
the newest version does not name are removed, minima and maxima are taken out of log entries and checkpoints. Both are
optional in Delta's protocol; the versions that named the removed files cannot be read any more.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tessera import tables
from tessera.files import write_whole
from tessera.forgetting.needles import Needles

LOG = "_delta_log"
ACTIONS = ("add", "remove")
STATISTICS = ("stats", "stats_parsed")


def remove_dead(root: Path, *, holding: Iterable[Path], live: set[str]) -> list[Path]:
    """Removes the data files of a table that hold deleted text and that its newest version does not name."""
    removed = []
    for path in _of(root, holding):
        if LOG not in path.relative_to(root).parts and path.suffix == ".parquet" and path.name not in live:
            tables.remove_data_file(path)
            removed.append(path)
    return removed


def scrub(root: Path, *, holding: Iterable[Path], needles: Needles) -> None:
    """Takes statistics that hold deleted text out of a table's log; of a checkpoint that holds some, all."""
    for path in _of(root, holding):
        if LOG not in path.relative_to(root).parts:
            continue
        if path.suffix == ".crc":
            path.unlink(missing_ok=True)  # a checksum of a version, with all statistics in it; Delta goes without
        elif path.suffix == ".json":
            lines = path.read_text(encoding="utf-8").splitlines()
            cleaned = [_without_statistics(line) if needles.find(line.encode()) else line for line in lines]
            write_whole(path, ("\n".join(cleaned) + "\n").encode())
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)
        elif path.suffix == ".parquet":
            write_whole(path, _checkpoint_without_statistics(path))
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def _without_statistics(line: str) -> str:
    entry: dict[str, Any] = json.loads(line)
    for action in ACTIONS:
        for name in STATISTICS:
            entry.get(action, {}).pop(name, None)
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def _checkpoint_without_statistics(path: Path) -> bytes:
    """The bytes of a checkpoint, or of a part of one, whose statistics are all null."""
    with pq.ParquetFile(path) as file:
        table = file.read()
    for place, field in enumerate(table.schema):
        if field.name not in ACTIONS:
            continue
        column = table.column(place).combine_chunks()
        parts = [
            pa.nulls(len(column), inner.type) if inner.name in STATISTICS else column.field(number)
            for number, inner in enumerate(field.type)
        ]
        emptied = pa.StructArray.from_arrays(parts, fields=list(field.type), mask=column.is_null())
        table = table.set_column(place, field, emptied)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _of(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in sorted(paths) if path.is_relative_to(root) and path.exists())
