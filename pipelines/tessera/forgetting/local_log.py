"""What a deletion leaves in a Delta table of someone else's: dead data files, and text in its log's statistics.

Only after the user asked for the deletion (`--delete-source`), and only in what holds the deleted text: data files that
the newest version does not name are removed, minima and maxima are taken out of log entries. Both are optional in
Delta's protocol; the versions that named the removed files cannot be read any more.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tessera import tables
from tessera.files import write_whole
from tessera.forgetting.needles import Needles

LOG = "_delta_log"
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
    """Takes statistics that hold deleted text out of a table's log."""
    for path in _of(root, holding):
        if path.parent.name != LOG:
            continue
        if path.suffix == ".crc":
            path.unlink(missing_ok=True)  # a checksum of a version, with all statistics in it; Delta goes without
        elif path.suffix == ".json":
            lines = path.read_text(encoding="utf-8").splitlines()
            cleaned = [_without_statistics(line) if needles.find(line.encode()) else line for line in lines]
            write_whole(path, ("\n".join(cleaned) + "\n").encode())
            path.with_name(f".{path.name}.crc").unlink(missing_ok=True)


def _without_statistics(line: str) -> str:
    entry: dict[str, Any] = json.loads(line)
    for action in ("add", "remove"):
        for name in STATISTICS:
            entry.get(action, {}).pop(name, None)
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def _of(root: Path, paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in sorted(paths) if path.is_relative_to(root) and path.exists())
