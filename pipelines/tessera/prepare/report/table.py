"""`tables/prepare_counts`: the counts of every documents version in one long table, for SQL. No text, no ids.

A projection of `tables/decisions`, written after the documents are published: what is lost is counted again. Its
columns are explained in `counts`.
"""

from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from tessera import publish, tables
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.prepare.report.counts import Count, Counts, in_order

FORMAT = 1
NAME = "prepare_counts"
SCHEMA = pa.schema(
    [
        ("version", pa.int64()),
        ("decisions_version", pa.int64()),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("what", pa.string()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("format", pa.int64()),
    ]
)


def write_counts(home: Home, counts: Counts) -> TableVersion:
    """Adds the counts of a documents version, in place of what the table had of it; one commit either way."""
    path = _path(home)
    fixed = {"version": counts.documents.version, "decisions_version": counts.decisions.version, "format": FORMAT}
    rows = pa.Table.from_pylist([{**vars(one), **fixed} for one in counts.entries], schema=SCHEMA)
    configuration = None if tables.exists(path) else publish.UNLOGGED_TEXT
    mine = f"version = {counts.documents.version}"
    write_deltalake(path, rows, mode="overwrite", predicate=mine, configuration=configuration)
    written = tables.open_table(path)
    return TableVersion(
        name=NAME, path=home.relative(path), version=written.version(), table_id=str(written.metadata().id)
    )


def read_counts(home: Home, *, documents: TableVersion) -> Counts | None:
    """What the table has of a documents version; None when that was never counted."""
    path = _path(home)
    if not tables.exists(path):
        return None
    rows = tables.read(path, filters=[("version", "=", documents.version)]).to_pylist()
    if not rows:
        return None
    decisions = TableVersion(name="decisions", path="tables/decisions", version=rows[0]["decisions_version"])
    entries = [Count(*(row[name] for name in ("source", "kind", "what", "name", "value"))) for row in rows]
    return Counts(documents=documents, decisions=decisions, entries=in_order(entries))


def _path(home: Home) -> Path:
    return home.tables / NAME
