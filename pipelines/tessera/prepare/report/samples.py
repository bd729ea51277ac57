"""The beginnings of a few documents of each source, for the page in the home, and only when its settings ask for text.

Chosen by smallest doc_id, a hash: the same ones for the same documents, and none by its contents. Costs a pass over
ids, and over the row groups that hold the chosen; longer documents than MAX_BYTES are never chosen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tessera import tables
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.prepare.report.text import printable, shortened

MAX_CHARS = 280
MAX_BYTES = 2**16
FACTS = ("source", "kind", "split", "doc_id", "num_bytes")
COLUMNS = (*FACTS, "text", "messages", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Sample:
    """One document, cut short."""

    source: str
    kind: str
    split: str
    doc_id: str
    num_bytes: int
    """Of the whole document."""
    text: str = field(repr=False)


def read_samples(home: Home, *, documents: TableVersion, sources: Iterable[str], number: int) -> list[Sample]:
    """`number` documents of each source, in the order of the sources, or what there is.

    Raises:
        SourceError: the version cannot be read any more.
    """
    path = home.resolve(documents.path)
    samples: list[Sample] = []
    for source in sources if number else ():
        named = source.replace("'", "''")
        sql = f"""
            SELECT doc_id FROM rows WHERE source = '{named}' AND num_bytes <= {MAX_BYTES}
            ORDER BY doc_id LIMIT {number}
        """
        chosen = tables.query(path, version=documents.version, sql=sql)["doc_id"].to_pylist()
        if chosen:
            filters = [("doc_id", "in", chosen), ("num_bytes", "<=", MAX_BYTES)]
            rows = tables.read(path, version=documents.version, columns=COLUMNS, filters=filters).to_pylist()
            samples += sorted((_sample(row) for row in rows), key=lambda one: one.doc_id)[:number]
    return samples


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(**{name: row[name] for name in FACTS}, text=shortened(printable(_text(row)), length=MAX_CHARS))


def _text(row: Mapping[str, Any]) -> str:
    """The contents as one text: turns and answers each on a line of its own, after who speaks."""
    if row["text"] is not None:
        return str(row["text"])
    if row["messages"] is not None:
        return "\n".join(f"{one['role']}: {one['content']}" for one in row["messages"])
    return "\n".join(f"{name}: {row[name]}" for name in ("prompt", "chosen", "rejected") if row[name] is not None)
