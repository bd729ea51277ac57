"""Publishing: one Delta commit that asserts its parent, carries the stage's record, and is read again afterwards.

A stage writes its data files and side tables first; then one commit makes them visible. The commit's `userMetadata`
holds the record and a publish id. Delta skips a commit silently when its transaction id is taken, so `confirm` reads
the newest commit and raises `Conflict` if the publish id there is another's. See docs/protocol.md.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from tessera import failpoints, tables
from tessera.errors import Conflict
from tessera.lineage import Record

NO_PARENT = -1

UNLOGGED_TEXT = {"delta.enableDeletionVectors": "false"}
"""Properties of every table of ours; callers add `delta.dataSkippingStatsColumns` without the text columns."""


@dataclass(frozen=True)
class Publication:
    """The right to make version `parent + 1` of the table at `path`, to be used once."""

    path: Path
    name: str
    parent: int
    publish_id: str

    @property
    def version(self) -> int:
        """The version that this publication will be."""
        return self.parent + 1

    def metadata(self, record: Record) -> str:
        return json.dumps({"publish_id": self.publish_id, "record": record.model_dump(mode="json")}, sort_keys=True)

    def spark_options(self, record: Record) -> dict[str, str]:
        """Options for a Spark Delta writer that make its commit this publication; call `confirm` afterwards."""
        return {
            "txnAppId": self.name,
            "txnVersion": str(self.version),
            "userMetadata": self.metadata(record),
        }


def begin(path: Path, *, name: str) -> Publication:
    """Notes the table's newest version as the parent of what will be published."""
    parent = tables.open_table(path).version() if tables.exists(path) else NO_PARENT
    return Publication(path=path, name=name, parent=parent, publish_id=uuid.uuid4().hex)


def commit(
    publication: Publication, data: pa.Table, *, record: Record, stats_columns: str, mode: str = "overwrite"
) -> int:
    """Publishes a small Arrow table without a JVM.

    Args:
        stats_columns: the columns, comma-separated, of which Delta may keep minima and maxima; never text.
        mode: `overwrite` or `append`.

    Returns:
        the new version.

    Raises:
        Conflict: another writer made that version first.
    """
    configuration = {**UNLOGGED_TEXT, "delta.dataSkippingStatsColumns": stats_columns}
    properties = CommitProperties(
        custom_metadata={"userMetadata": publication.metadata(record)},
        app_transactions=[Transaction(publication.name, publication.version)],
        max_commit_retries=0,
    )
    first = publication.parent == NO_PARENT
    target: Any = publication.path if first else DeltaTable(publication.path, version=publication.parent)
    try:
        write_deltalake(
            target,
            data,
            mode="error" if first else mode,  # type: ignore[arg-type]
            configuration=configuration if first else None,
            commit_properties=properties,
        )
    except (CommitFailedError, DeltaError) as error:
        raise _conflict(publication) from error
    return confirm(publication)


def confirm(publication: Publication) -> int:
    """Reads the commit that should be ours again.

    Raises:
        Conflict: it is absent or another's.
    """
    failpoints.hit("publish.after_commit")
    found = _metadata(publication.path, version=publication.version)
    if found is None or found.get("publish_id") != publication.publish_id:
        raise _conflict(publication)
    return publication.version


def read_record(path: Path, *, version: int | None = None) -> dict[str, Any] | None:
    """The record in the publishing commit of a version (the newest by default); None when that commit has none."""
    if not tables.exists(path):
        return None
    table = tables.open_table(path)
    found = _metadata(path, version=table.version() if version is None else version)
    return found["record"] if found else None


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of all commits that the log still holds, newest first."""
    if tables.exists(path):
        for entry in tables.open_table(path).history():
            if found := _parse(entry.get("userMetadata")):
                yield found["record"]


def _metadata(path: Path, *, version: int) -> dict[str, Any] | None:
    for entry in tables.open_table(path).history():
        if entry.get("version") == version:
            return _parse(entry.get("userMetadata"))
    return None


def _parse(metadata: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(metadata or "null")
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and {"publish_id", "record"} <= set(value) else None


def _conflict(publication: Publication) -> Conflict:
    return Conflict(
        f"{publication.name}: another writer published version {publication.version} first; nothing of this run was "
        "published. Run the command again: it starts from the newest version"
    )
