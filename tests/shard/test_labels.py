"""Documents read in order, of a table that rows were erased in: delta-rs writes its texts as views."""

from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from tessera.shard import labels


def test_documents_are_read_in_order_after_an_erasure(tmp_path: Path) -> None:
    rows = [
        {"doc_id": f"{number * 2654435761 % 2**32:08x}", "split": "train" if number % 3 else "heldout", "n": number}
        for number in range(300)
    ]
    write_deltalake(tmp_path / "documents", pa.Table.from_pylist(rows))
    DeltaTable(tmp_path / "documents").delete("n = 7")
    wanted = sorted((row for row in rows if row["split"] == "train" and row["n"] != 7), key=lambda row: row["doc_id"])

    for num_bytes in (1, 4 * labels.RANGE_BYTES):
        found = labels.rows_in_order(
            tmp_path / "documents", version=1, split="train", columns=["n"], num_bytes=num_bytes
        )
        assert [(row["doc_id"], row["n"]) for row in found] == [(row["doc_id"], row["n"]) for row in wanted]
