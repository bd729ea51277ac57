"""The text that the benchmarks of this folder read: docstrings of the installed packages, as a documents table."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import pyarrow as pa
from deltalake import write_deltalake

from tessera.home import Home
from tessera.lineage import Generation, PrepareRecord, TableVersion
from tessera.prepare import sample
from tessera.prepare.settings import SampleSettings

SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("text", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64()),
     ("split", pa.string()), ("added", pa.int64()), ("source", pa.string()), ("kind", pa.string())]
)  # fmt: skip
ROWS_A_FILE = 20_000


@lru_cache(maxsize=1)
def texts() -> list[str]:
    """Each once, in an order that depends on nothing but the packages; about 60 MB."""
    rows = sample.read_docstrings(sample.installed(SampleSettings()))
    return list({str(row["text"]): None for row in rows if len(str(row["text"])) >= 20})


def documents(*, num_bytes: int) -> Iterator[dict[str, object]]:
    """Documents of about so many bytes in all; the corpus again, each text with a number in front, where it ends."""
    total = number = 0
    while total < num_bytes:
        turn, place = divmod(number, len(texts()))
        text = texts()[place] if turn == 0 else f"{turn} {texts()[place]}"
        yield row(number, text, added=0)
        total += len(text.encode())
        number += 1


def row(key: int, text: str, *, added: int) -> dict[str, object]:
    content = text.encode()
    doc_id = hashlib.sha256(f"docstrings {key}".encode()).hexdigest()
    return {
        "doc_id": doc_id, "text": text, "sha256": hashlib.sha256(content).hexdigest(), "num_bytes": len(content),
        "split": "heldout" if key % 20 == 3 else "train", "added": added, "source": "docstrings", "kind": "text",
    }  # fmt: skip


def write(home: Home, rows: list[dict[str, object]], *, generations: tuple[Generation, ...] = ()) -> PrepareRecord:
    """A new version of the documents table, which holds these rows and no others, and the record of it."""
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_deltalake(home.documents, table, mode="overwrite")
    return record(home, rows=len(rows), generations=generations)


def append(home: Home, rows: list[dict[str, object]], *, generations: tuple[Generation, ...]) -> PrepareRecord:
    write_deltalake(home.documents, pa.Table.from_pylist(rows, schema=SCHEMA), mode="append")
    return record(home, rows=len(rows), generations=generations)


def record(home: Home, *, rows: int, generations: tuple[Generation, ...]) -> PrepareRecord:
    from tessera import tables

    version = tables.open_table(home.documents).version()
    return PrepareRecord(
        fingerprint=hashlib.sha256(str(version).encode()).hexdigest(), rows=rows, documents=rows, dropped={}, splits={},
        num_bytes=0, generations=generations,
        table=TableVersion(name="documents", path="tables/documents", version=version),
    )  # fmt: skip


def generation(rows: list[dict[str, object]], *, added: int) -> Generation:
    return Generation(added=added, documents=len(rows), num_bytes=sum(int(str(row["num_bytes"])) for row in rows))
