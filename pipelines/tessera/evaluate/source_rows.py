"""Rows of source tables, by the id of the document that was made of each. No JVM: read in batches by delta-rs.

An id is that of `prepare.read.doc_id`, computed here for keys of text, whole numbers, true and false.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera import tables
from tessera.errors import ConfigError

BATCH = 2000
MAX_CHARS = 300
"""Longer values are texts, not attributes."""


@dataclass(frozen=True)
class SourceTable:
    """A source of documents, at the version that they were made of."""

    name: str
    path: Path
    version: int
    key: tuple[str, ...]
    """The columns of the row key."""


def doc_id_of(source: str, *, key: Mapping[str, object]) -> str:
    """The doc_id of a source's row, as `prepare.read.doc_id`: SHA-256 of the source's name and the key as JSON.

    Raises:
        ConfigError: a part of the key is neither text nor a whole number nor true or false.
    """
    for column, value in key.items():
        if not isinstance(value, (str, int)):
            raise ConfigError(
                f"the row key column {column} holds a {type(value).__name__}, wanted text or whole numbers; name "
                "another id, or set evaluate.problem.split: all"
            )
    parts = (f"{_json(column)}:{_json(value)}" for column, value in sorted(key.items()))
    return hashlib.sha256(f"{source}\n{{{','.join(parts)}}}".encode("utf-8", "surrogatepass")).hexdigest()


def _json(value: object) -> str:
    """As Spark's `to_json` writes it: letters as they are, control characters by upper-case numbers."""
    text = json.dumps(value, ensure_ascii=False)
    for code in range(0x20):
        text = text.replace(f"\\u{code:04x}", f"\\u{code:04X}")
    return text


def rows(table: SourceTable, *, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(document id, row) of a table, in no particular order.

    Raises:
        ConfigError: see `doc_id_of`.
        SourceError: the table cannot be read at its version.
    """
    wanted = None if columns is None else [*dict.fromkeys((*table.key, *columns))]
    found = tables.dataset(table.path, version=table.version)
    for batch in found.to_batches(columns=wanted, batch_size=BATCH):
        for row in batch.to_pylist():
            key = {column: row[column] for column in table.key}
            if None not in key.values():
                yield doc_id_of(table.name, key=key), row


def attributes(sources: Sequence[SourceTable], *, doc_ids: Collection[str]) -> dict[str, dict[str, str]]:
    """The short columns of text of the rows that these documents were made of, by document.

    Rows whose key only Spark can write down have none.
    """
    found: dict[str, dict[str, str]] = {}
    for table in sources:
        with suppress(ConfigError):
            for doc_id, row in rows(table, columns=_of_text(table)):
                if doc_id in doc_ids:
                    short = {name: value for name, value in row.items() if isinstance(value, str)}
                    found[doc_id] = {name: value for name, value in short.items() if len(value) <= MAX_CHARS}
    return found


def _of_text(table: SourceTable) -> list[str]:
    schema = tables.dataset(table.path, version=table.version).schema
    return [field.name for field in schema if str(field.type) in ("string", "large_string", "string_view")]
