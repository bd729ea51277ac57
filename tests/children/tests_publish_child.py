"""Run in a process of its own, to be killed at a failpoint."""

from pathlib import Path

import pyarrow as pa

from tessera import publish, tables
from tessera.home import Home
from tessera.lineage import SampleRecord, TableVersion, now


def put_and_note(root: Path) -> None:
    """Publishes a table and adds its row to the ledger."""
    home = Home(root)
    record = SampleRecord(
        fingerprint="f" * 64, rows=1, table=TableVersion(name="t", path="tables/t", version=0), created=now()
    )
    publication = publish.begin(home.tables / "t", name="t")
    publish.commit(publication, pa.table({"id": ["a"]}), record=record, stats_columns="id")
    tables.Ledger(home.ledger).append(record)
