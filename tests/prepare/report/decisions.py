"""Tables of decisions made by hand, without Spark, with the columns that prepare gives them."""

from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from tessera.home import Home
from tessera.lineage import TableVersion

TYPES = ("email", "phone", "card", "iban", "ip", "national_id", "secret")
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("doc_id", pa.string()),
        ("row_sha256", pa.string()),
        ("updated", pa.string()),
        ("rows", pa.int32()),
        ("kind", pa.string()),
        ("sha256", pa.string()),
        ("num_bytes", pa.int64()),
        ("private", pa.struct([(name, pa.int32()) for name in TYPES])),
        ("contaminated", pa.string()),
        ("reason", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("displaced_by", pa.string()),
        ("bands", pa.list_(pa.int64())),
    ]
)
DOCUMENTS = TableVersion(name="documents", path="tables/documents", version=7)


def decision(number: int = 0, **values: Any) -> dict[str, Any]:
    """A document of 100 bytes, kept for training; keywords change it. Numbers stand for hashes and ids."""
    base = {
        "source": "wiki", "doc_id": hashed(number), "row_sha256": hashed(number), "rows": 1, "kind": "text",
        "sha256": hashed(number), "num_bytes": 100, "private": dict.fromkeys(TYPES, 0), "split": "train",
        "group": hashed(number),
    }  # fmt: skip
    return {**base, **values}


def hashed(number: int) -> str:
    """64 hex digits, of which the first differ as those of a hash do."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}" * 4


def write(home: Home, *rows: dict[str, Any]) -> TableVersion:
    """Overwrites `tables/decisions`; the version that this made."""
    path = home.tables / "decisions"
    write_deltalake(path, pa.Table.from_pylist(list(rows), schema=SCHEMA), mode="overwrite")
    return TableVersion(name="decisions", path="tables/decisions", version=DeltaTable(path).version())
