"""`tables/erasures`: which rows must never come back. An input of every prepare, at any version of its sources.

A row is (doc_id, content hash, when, why): never text, never a row key. A content hash is there for each text that the
row was ever seen with; it also keeps out the same text under another key. The table only grows. Reading it costs a few
hundredths of a second; no JVM.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tessera import lineage, publish, tables
from tessera.home import Home
from tessera.lineage import ErasureRecord, TableVersion

FORMAT = 1
TABLE = "erasures"
SCHEMA = pa.schema(
    [("doc_id", pa.string()), ("sha256", pa.string()), ("at", pa.string()), ("why", pa.string()),
     ("format", pa.int64())]
)  # fmt: skip
STATS_COLUMNS = "doc_id,sha256,at"
REASON = "erased"
"""Why prepare drops a row that is in the table, and why score does not ask about it."""


@dataclass(frozen=True)
class Erased:
    """What was erased so far."""

    doc_ids: frozenset[str]
    contents: frozenset[str]
    """SHA-256 of the texts that those rows were seen with."""
    digest: str
    """Over all pairs; empty when there are none. When and why do not count."""

    def __bool__(self) -> bool:
        return bool(self.doc_ids)

    def condition(self, *, contents: bool = True) -> str:
        """SQL that erased rows meet: by `doc_id`, and by `sha256` where the table has one."""
        parts = [f"doc_id IN ({listed(self.doc_ids)})"] if self.doc_ids else []
        if contents and self.contents:
            parts.append(f"sha256 IN ({listed(self.contents)})")
        return " OR ".join(parts) or "false"


def path(home: Home) -> Path:
    return home.tables / TABLE


def read(home: Home) -> Erased:
    """All that was ever erased in this home."""
    if not tables.exists(path(home)):
        return make([])
    rows = tables.read(path(home), columns=["doc_id", "sha256"])
    return make(zip(rows["doc_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))


def make(pairs: Iterable[tuple[str, str | None]]) -> Erased:
    """What these pairs of doc_id and content hash, or None, mean."""
    unique = sorted({(doc_id, sha256 or "") for doc_id, sha256 in pairs})
    return Erased(
        doc_ids=frozenset(doc_id for doc_id, _ in unique),
        contents=frozenset(sha256 for _, sha256 in unique if sha256),
        digest=lineage.sha256_json(unique) if unique else "",
    )


def record(home: Home, *, pairs: Iterable[tuple[str, str | None]], why: str) -> Erased:
    """Adds the pairs that are not there yet, in one commit; everything that is erased then.

    Args:
        pairs: doc_id and the content hash it was seen with; None when it was seen with none.
        why: stays for ever, so it must hold no personal data.

    Raises:
        Conflict: another process added some at the same time.
    """
    publication = publish.begin(path(home), name=TABLE)
    known = _known(home)
    known_ids = {doc_id for doc_id, _ in known}
    new = sorted({(doc_id, sha256 or "") for doc_id, sha256 in pairs if sha256 or doc_id not in known_ids} - known)
    if new:
        at = lineage.now()
        rows = [
            {"doc_id": doc_id, "sha256": sha256 or None, "at": at, "why": why, "format": FORMAT}
            for doc_id, sha256 in new
        ]
        after = make([*known, *new])
        entry = ErasureRecord(
            fingerprint=after.digest, rows=len(rows), code=lineage.code_version(), created=at,
            table=TableVersion(name=TABLE, path=home.relative(path(home)), version=publication.version),
        )  # fmt: skip
        data = pa.Table.from_pylist(rows, schema=SCHEMA)
        publish.commit(publication, data, record=entry, stats_columns=STATS_COLUMNS, mode="append")
    return read(home)


def _known(home: Home) -> set[tuple[str, str]]:
    if not tables.exists(path(home)):
        return set()
    rows = tables.read(path(home), columns=["doc_id", "sha256"]).to_pylist()
    return {(row["doc_id"], row["sha256"] or "") for row in rows}


def listed(values: Iterable[str]) -> str:
    """Values as an SQL list, quoted and sorted."""
    quoted = sorted(value.replace("'", "''") for value in values)
    return ", ".join(f"'{value}'" for value in quoted)
