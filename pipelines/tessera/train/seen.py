"""`tables/rows_seen` read without a JVM; `rows_seen` writes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessera import tables
from tessera.home import Home

TABLE = "rows_seen"
COLUMNS = ("run", "run_id", "shard_set", "doc_id", "source", "times", "first_step")
TOLD = ("doc_id", "run", "run_id", "shard_set", "times", "first_step")


def path(home: Home) -> Path:
    return home.tables / TABLE


def by_rows(home: Home, *, doc_ids: Sequence[str]) -> list[dict[str, Any]]:
    """TOLD of each of these rows and each run that saw it, by row and run."""
    if not doc_ids or not tables.exists(path(home)):
        return []
    wanted = ", ".join(f"'{doc_id}'" for doc_id in doc_ids)
    sql = f"SELECT {', '.join(TOLD)} FROM rows WHERE doc_id IN ({wanted}) ORDER BY doc_id, run"
    version = tables.open_table(path(home)).version()
    return list(tables.query(path(home), version=version, sql=sql).to_pylist())
