"""A documents table with a history, as prepare keeps it: `added` is the version in which a row's content appeared."""

import hashlib
from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

import pyarrow as pa

from tessera import publish, tables
from tessera.home import Home
from tessera.lineage import Generation, PrepareRecord, TableVersion
from tessera.shard import manifest, stage
from tessera.shard.settings import ShardSettings

SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("text", pa.string()), ("sha256", pa.string()), ("num_bytes", pa.int64()),
     ("split", pa.string()), ("added", pa.int64())]
)  # fmt: skip


class History:
    """Writes versions of `tables/documents` of a home, and keeps the record of each."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.records: list[PrepareRecord] = []
        self._added: dict[tuple[str, str], int] = {}
        self._generations: dict[int, Generation] = {}

    def write(self, texts: Mapping[int, str]) -> PrepareRecord:
        """The version that holds these rows, by key; every tenth key is held out."""
        publication = publish.begin(self.home.documents, name="documents")
        version = publication.version
        assert version == len(self.records)
        rows = [row_of(key, text) for key, text in texts.items()]
        known = self._added
        self._added = {(row["doc_id"], row["sha256"]): version for row in rows}
        self._added.update({pair: added for pair, added in known.items() if pair in self._added})
        for row in rows:
            row["added"] = self._added[row["doc_id"], row["sha256"]]
        new = [row for row in rows if row["added"] == version]
        if new:
            num_bytes = sum(row["num_bytes"] for row in new)
            self._generations[version] = Generation(
                added=version, documents=len(new), num_bytes=num_bytes, all_bytes=sum(row["num_bytes"] for row in rows)
            )
        record = PrepareRecord(
            fingerprint=hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest(), rows=len(rows),
            documents=len(rows), dropped={}, splits=dict(Counter(row["split"] for row in rows)),
            num_bytes=sum(row["num_bytes"] for row in rows),
            table=TableVersion(name="documents", path="tables/documents", version=version),
            generations=tuple(self._generations[added] for added in sorted(self._generations)),
        )  # fmt: skip
        data = pa.Table.from_pylist(rows, schema=SCHEMA)
        publish.commit(publication, data, record=record, stats_columns="doc_id,sha256")
        self.records.append(record)
        return record

    def forgot(self, record: PrepareRecord) -> None:
        """Another than this wrote a version: `forget`, without rows that will not come again."""
        assert record.table.version == len(self.records)
        self.records.append(record)


def row_of(key: int, text: str) -> dict[str, Any]:
    content = text.encode()
    return {
        "doc_id": hashlib.sha256(f"source {key}".encode()).hexdigest(), "text": text, "num_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "split": "heldout" if key % 10 == 3 else "train",
    }  # fmt: skip


def write_set(spark, home: Home, prepared: PrepareRecord, *, settings: ShardSettings, **changes):  # type: ignore[no-untyped-def]
    """The shard stage as the pipeline calls it."""
    from tessera.shard.write.shard_set import write_shards

    return write_shards(
        spark, documents=prepared.table, settings=settings, home=home, generations=prepared.generations,
        fingerprint=stage.fingerprint(prepared, settings=settings, home=home),
        compacted=stage.compaction(prepared, settings=settings, home=home), **changes,
    )  # fmt: skip


def hashes(home: Home, *, name: str, version: int | None = None, among: Container[str] | None = None) -> dict[str, str]:
    """Name -> SHA-256, as found on disk, of the files that a version names, or of those of them that are asked for."""
    folder = manifest.set_folder(home, name=name)
    names = manifest.read_manifest(home, name, version)["file"].to_pylist()
    names = [file for file in names if among is None or file in among]
    return {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in names}


def cell_of(file: str) -> str:
    """The cell that a file's name says."""
    return file.rsplit("-", 1)[0]


def spans(home: Home, record) -> list[dict[str, object]]:  # type: ignore[no-untyped-def]
    """The side table at the version that the set pins, in an order of its own."""
    rows = tables.read(home.resolve(record.spans.path), version=record.spans.version).to_pylist()
    return sorted(rows, key=lambda row: (row["doc_id"], row["sha256"], row["piece"]))


def texts_of(keys: range, *, edition: int = 0) -> dict[int, str]:
    """Texts of a few to a few thousand bytes, another for each key and edition."""
    return {key: f"{key} {edition} " + "value of the array at this index " * (key % 17 + 1) for key in keys}
