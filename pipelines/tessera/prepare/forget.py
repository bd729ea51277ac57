"""`tables/documents` without erased rows: a new version, then the data files of all older ones that hold such a row.

`texts` reads what is to be searched for, `publish_without` makes the version, `remove_files` takes the files: last of
all rooms, since a forget that was interrupted learns from them what it has to look for. No JVM. Costs a pass over ids
and hashes, and over the text of the files that are rewritten.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera import arrow_text, lineage, publish, tables
from tessera.erasures import REASON, Erased, listed
from tessera.home import Home
from tessera.lineage import PrepareRecord, TableVersion
from tessera.prepare import decisions, stage
from tessera.prepare.report import stage as report

STATS_COLUMNS = ("doc_id", "sha256")
BATCH_ROWS = 1024
FIT = "(reason IS NULL OR reason IN ('duplicate', 'near_duplicate'))"
"""SQL on decisions: rows that nothing is wrong with."""
NOT_TEXT = frozenset(
    ("doc_id", "source", "source_version", "kind", "sha256", "num_bytes", "group", "split", "added", "purposes")
)
"""Columns of documents that hold no row text."""


def texts(home: Home, *, erased: Erased) -> dict[str, dict[str, list[str]]]:
    """doc_id -> content hash -> texts of it, of erased rows, in any data file of the documents table."""
    found: dict[str, dict[str, list[str]]] = {}
    for file in _holding(home.documents, erased=erased):
        for row in _rows(file, erased=erased):
            parts = [part for name, value in row.items() if name not in NOT_TEXT for part in strings(value)]
            found.setdefault(row["doc_id"], {})[row["sha256"]] = parts
    return found


def displaced(home: Home, *, erased: Erased) -> dict[str, set[str]]:
    """doc_id -> content hashes of erased rows in whose place a row equal, or nearly so, stands in documents."""
    record = newest(home)
    if record is None or record.decisions is None:
        return {}
    sql = f"SELECT doc_id, sha256 FROM rows WHERE ({erased.condition()}) AND reason IN ('duplicate', 'near_duplicate')"
    path, version = home.resolve(record.decisions.path), record.decisions.version
    found: dict[str, set[str]] = {}
    for row in tables.query(path, version=version, sql=sql).to_pylist():
        found.setdefault(row["doc_id"], set()).add(row["sha256"])
    return found


def other_texts(home: Home, *, erased: Erased) -> Iterator[Any]:
    """The text of all documents that stay, in any data file, as buffers; what is damaged is passed over."""
    for file in sorted(home.documents.rglob("*.parquet")):
        if not _in_table(file, home.documents):
            continue
        with suppress(OSError, pa.ArrowInvalid), pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=BATCH_ROWS):
                for staying in _stretches(batch, erased=erased):
                    for name in staying.schema.names:
                        if name not in NOT_TEXT:
                            yield from arrow_text.buffers(staying[name])


def _stretches(batch: pa.RecordBatch, *, erased: Erased) -> Iterator[pa.RecordBatch]:
    """The rows that stay, as parts of the batch: Arrow cannot filter all types that Parquet gives."""
    gone = np.flatnonzero(_is_erased(batch, erased=erased).to_numpy(zero_copy_only=False))
    for first, last in pairwise([-1, *gone.tolist(), batch.num_rows]):
        if last > first + 1:
            yield batch.slice(first + 1, last - first - 1)


def publish_without(home: Home, *, erased: Erased) -> PrepareRecord | None:
    """Publishes the newest documents without erased rows; None when there is nothing to take out.

    The record is what prepare would give now of the same sources, so that the next prepare finds it; unless rows had
    displaced others, or may have stood between others that are nearly the same: then the next prepare judges all rows.

    Raises:
        Conflict: another writer published first.
    """
    if not tables.exists(home.documents):
        return None
    publication = publish.begin(home.documents, name="documents")
    found = publish.read_record(home.documents)
    counted = _counts(home.documents, version=publication.parent, condition=erased.condition())
    if found is None:
        return None
    before = PrepareRecord.model_validate(found)
    decided = _decided(home, before, erased=erased)
    if not counted and not decided.rows:
        return None
    alone = before.decisions is not None and not decided.banded and not decided.displaced
    base = before.base or before.fingerprint
    fingerprint = stage.with_erased(base, erased=erased.digest)
    decided_at = _erase_decisions(home, before, erased=erased)
    record = before.model_copy(
        update={
            **_counts_without(home, before, counted=counted, decided_at=decided_at),
            "format": lineage.FORMAT,
            "fingerprint": fingerprint if alone else lineage.sha256_json({"without": before.fingerprint}),
            "base": base,
            "decisions": decided_at,
            "rules": before.rules if alone else "",
            "forgot": before.table.version,
            "content": "",
            "content_version": None,
            "table": before.table.model_copy(update={"version": publication.version}),
            "created": lineage.now(),
            "code": lineage.code_version(),
        }
    )
    if counted:
        publish.delete(publication, condition=erased.condition(), record=record)
    else:
        nothing = tables.open_table(home.documents).schema().to_arrow()
        publish.commit(publication, pa.schema(nothing).empty_table(), record=record, stats_columns="", mode="append")
    return record


def newest(home: Home) -> PrepareRecord | None:
    """The record of the newest documents."""
    found = publish.read_record(home.documents)
    return PrepareRecord.model_validate(found) if found else None


def replaces(record: PrepareRecord, *, documents: TableVersion, home: Home) -> bool:
    """Whether these documents are that version, or that version without rows that were erased since."""
    if record.table.path != documents.path:
        return False
    while record.table.version != documents.version:
        if record.forgot is None:
            return False
        before = publish.read_record(home.documents, version=record.forgot)
        if before is None:
            return record.forgot == documents.version
        record = PrepareRecord.model_validate(before)
    return True


def remove_files(home: Home, *, erased: Erased) -> list[Path]:
    """Removes every data file that holds an erased row, whichever version named it; a newest one never does then."""
    if not tables.exists(home.documents):
        return []
    newest_files = set(tables.open_table(home.documents).file_uris())
    holding = _holding(home.documents, erased=erased)
    assert not newest_files & set(map(str, holding)), "the newest documents still name a file with an erased row"
    removed = [*holding, *_dead_decisions(home, erased=erased)]
    for file in removed:
        tables.remove_data_file(file)
    return [*removed, *report.forget(home)]


def _dead_decisions(home: Home, *, erased: Erased) -> list[Path]:
    """Files of older versions of the decisions that know more of an erased row than its hashes."""
    path = decisions.path(home)
    if not tables.exists(path):
        return []
    living = set(tables.open_table(path).file_uris())
    return [file for file in _holding(path, erased=erased) if str(file) not in living]


@dataclass(frozen=True)
class _Decided:
    """What the decisions hold of erased rows."""

    rows: int = 0
    """Rows of which more than hashes and sizes is kept."""
    banded: int = 0
    """Rows that may stand between others that are nearly the same."""
    displaced: int = 0
    """Other rows that they displaced."""


def _decided(home: Home, before: PrepareRecord, *, erased: Erased) -> _Decided:
    if before.decisions is None:
        return _Decided()
    condition = erased.condition()
    more = f"(bands IS NOT NULL OR private IS NOT NULL OR {FIT})"
    sql = (
        f"SELECT sum(CASE WHEN ({condition}) AND {more} THEN 1 ELSE 0 END) AS rows, "
        f"sum(CASE WHEN ({condition}) AND bands IS NOT NULL THEN 1 ELSE 0 END) AS banded, "
        f"sum(CASE WHEN displaced_by IN ({listed(erased.doc_ids)}) AND NOT ({condition}) THEN 1 ELSE 0 END) "
        "AS displaced FROM rows"
    )
    path, version = home.resolve(before.decisions.path), before.decisions.version
    return _Decided(**tables.query(path, version=version, sql=sql).to_pylist()[0])


def _erase_decisions(home: Home, before: PrepareRecord, *, erased: Erased) -> TableVersion | None:
    """Takes all but hashes and sizes of erased rows out of the decisions; the version to pin."""
    if before.decisions is None:
        return None
    decisions.go_back(home, parent=before)
    table = tables.open_table(home.resolve(before.decisions.path))
    condition = f"({erased.condition()})"
    gone = dict.fromkeys(("split", "`group`", "displaced_by"), "NULL")
    table.update(updates={**gone, "reason": f"'{REASON}'"}, predicate=f"{condition} AND {FIT}")
    table.update(updates={"bands": "NULL", "private": "NULL"}, predicate=condition)
    return before.decisions.model_copy(update={"version": table.version()})


def _counts_without(
    home: Home, before: PrepareRecord, *, counted: list[dict[str, Any]], decided_at: TableVersion | None
) -> dict[str, Any]:
    """The counts of the record without erased rows; from the decisions, where the documents have them."""
    if decided_at is not None:
        copies = "superseded" if "superseded" in before.dropped else "duplicate"
        return decisions.counts(home, version=decided_at, extra_copies=copies)
    removed = sum(row["documents"] for row in counted)
    splits = {**before.splits}
    for row in counted:
        splits[row["split"]] -= row["documents"]
    return {
        "documents": before.documents - removed, "splits": splits,
        "num_bytes": before.num_bytes - sum(row["num_bytes"] for row in counted),
        "dropped": dict(sorted({**before.dropped, REASON: before.dropped.get(REASON, 0) + removed}.items())),
    }  # fmt: skip


def _counts(path: Path, *, version: int, condition: str) -> list[dict[str, Any]]:
    sql = f"SELECT split, count(*) AS documents, sum(num_bytes) AS num_bytes FROM rows WHERE {condition} GROUP BY split"
    return list(tables.query(path, version=version, sql=sql).to_pylist())


def _holding(path: Path, *, erased: Erased) -> list[Path]:
    """The data files, named by a version or by none, that hold an erased row; what is no whole file holds who knows."""
    return [file for file in sorted(path.rglob("*.parquet")) if _in_table(file, path) and _holds(file, erased=erased)]


def _in_table(file: Path, path: Path) -> bool:
    return "_delta_log" not in file.relative_to(path).parts


def _holds(file: Path, *, erased: Erased) -> bool:
    try:
        rows = pq.read_table(file, columns=list(STATS_COLUMNS), partitioning=None)
    except (OSError, pa.ArrowInvalid):
        return True  # cut short: what a killed writer left, which no version names
    return bool(pc.any(_is_erased(rows, erased=erased)).as_py())


def _is_erased(rows: pa.Table | pa.RecordBatch, *, erased: Erased) -> Any:
    return pc.or_(
        pc.is_in(rows["doc_id"].cast(pa.string()), value_set=pa.array(sorted(erased.doc_ids), pa.string())),
        pc.is_in(rows["sha256"].cast(pa.string()), value_set=pa.array(sorted(erased.contents), pa.string())),
    )


def _rows(file: Path, *, erased: Erased) -> Iterator[dict[str, Any]]:
    """The erased rows of a data file, a few at a time."""
    try:
        opened = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid):
        return
    with opened:
        for batch in opened.iter_batches(batch_size=BATCH_ROWS):
            ids, contents = batch["doc_id"].to_pylist(), batch["sha256"].to_pylist()
            for row in range(batch.num_rows):
                if ids[row] in erased.doc_ids or contents[row] in erased.contents:
                    yield batch.slice(row, 1).to_pylist()[0]


def strings(value: Any) -> Iterator[str]:
    """All texts within a value, nested ones too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
