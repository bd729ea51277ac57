"""Answers about erased rows: taken out of `tables/answers` in one commit, then their data files. No JVM."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tessera import lineage, publish, tables
from tessera.erasures import Erased
from tessera.home import Home
from tessera.lineage import ErasureRecord, TableVersion


def publish_without(home: Home, *, erased: Erased) -> ErasureRecord | None:
    """Publishes the newest answers without those about erased rows; None when there are none.

    Raises:
        Conflict: another writer published first: a score is at work.
    """
    if not tables.exists(home.answers):
        return None
    publication = publish.begin(home.answers, name="answers")
    condition = erased.condition(contents=False)
    sql = f"SELECT count(*) AS number FROM rows WHERE {condition}"
    (found,) = tables.query(home.answers, version=publication.parent, sql=sql).to_pylist()
    if not found["number"]:
        return None
    record = ErasureRecord(
        fingerprint=erased.digest,
        rows=found["number"],
        code=lineage.code_version(),
        created=lineage.now(),
        table=TableVersion(name="answers", path=home.relative(home.answers), version=publication.version),
    )
    publish.delete(publication, condition=condition, record=record)
    return record


def remove_files(home: Home, *, erased: Erased) -> list[Path]:
    """Removes the data files of older versions that hold an answer about an erased row."""
    if not tables.exists(home.answers):
        return []
    newest = {Path(name).name for name in tables.open_table(home.answers).file_uris()}
    removed = []
    for file in sorted(home.answers.glob("*.parquet")):
        if file.name not in newest and _holds(file, erased=erased):
            tables.remove_data_file(file)
            removed.append(file)
    return removed


def _holds(file: Path, *, erased: Erased) -> bool:
    try:
        rows = pq.read_table(file, columns=["doc_id"], partitioning=None)
    except (OSError, pa.ArrowInvalid):
        return True  # cut short, and no version names it
    hit = pc.is_in(rows["doc_id"].cast(pa.string()), value_set=pa.array(sorted(erased.doc_ids), pa.string()))
    return bool(pc.any(hit).as_py())
