"""Publishing: one Delta commit that asserts its parent, carries the stage's record, and is read again afterwards.

A stage writes its data files and side tables first; then one commit makes them visible. The commit's `userMetadata`
holds the record and a publish id. Delta skips a commit silently when its transaction id is taken, so `confirm` reads
the newest commit and raises `Conflict` if the publish id there is another's. See docs/protocol.md.

A record is read from its one commit file, whatever the number of versions (0.1 ms; 6 ms more to find the newest). What
no retained version names is found by `named`, `unnamed` and `orphans`: one pass over the log.
"""

import json
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from tessera import delta_log, failpoints, lineage, tables
from tessera.errors import Conflict, PublishingFailed, SourceError
from tessera.lineage import Record

NO_PARENT = -1

UNLOGGED_TEXT = {"delta.enableDeletionVectors": "false", "delta.enableExpiredLogCleanup": "false"}
"""Properties of every table of ours; callers add `delta.dataSkippingStatsColumns` without the text columns. Records lie
in the log, which Delta would otherwise cut after 30 days."""


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
        values = {"publish_id": self.publish_id, "version": self.version, "record": record.model_dump(mode="json")}
        return json.dumps(values, sort_keys=True)

    def spark_options(self, record: Record) -> dict[str, str]:
        """Options for a Spark Delta writer that make its commit this publication; call `confirm` afterwards.

        To be asked for just before the writer begins: it goes on from whatever version is the newest.

        Raises:
            Conflict: the parent is not the newest version any more.
        """
        if _newest(self.path) != self.parent:
            raise _conflict(self)
        return {
            "txnAppId": self.name,
            "txnVersion": str(self.version),
            "userMetadata": self.metadata(record),
        }


@dataclass(frozen=True)
class Retention:
    """Which versions of a table keep their files. Without a limit all that the log can give: time travel is a promise.

    With limits, what one of them keeps is kept; the newest version always is.
    """

    versions: int | None = None
    """The newest so many."""
    days: float | None = None
    """What was the newest version at some moment of the last so many days."""


def begin(path: Path, *, name: str) -> Publication:
    """Notes the table's newest version as the parent of what will be published.

    Raises:
        FormatError: a newer Tessera published it, whose table this one could not go on with.
    """
    parent = _newest(path)
    if parent != NO_PARENT:
        read_record(path, version=parent)
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
        PublishingFailed: nobody made it: the commit could not be written.
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
            schema_mode=None if first else "overwrite" if mode == "overwrite" else "merge",
        )
    except (CommitFailedError, DeltaError, OSError) as error:
        raise _not_published(publication, error) from None
    return confirm(publication)


def delete(publication: Publication, *, condition: str, record: Record) -> int:
    """Publishes the parent without the rows that meet an SQL condition, without a JVM; the new version.

    Raises:
        Conflict: another writer made that version first.
        PublishingFailed: nobody made it: the commit could not be written.
    """
    properties = CommitProperties(
        custom_metadata={"userMetadata": publication.metadata(record)},
        app_transactions=[Transaction(publication.name, publication.version)],
        max_commit_retries=0,
    )
    try:
        DeltaTable(publication.path, version=publication.parent).delete(condition, commit_properties=properties)
    except (CommitFailedError, DeltaError, OSError) as error:
        raise _not_published(publication, error) from None
    return confirm(publication)


def confirm(publication: Publication) -> int:
    """Reads the commit that should be ours again; one of ours that came to lie on another's is undone.

    Raises:
        Conflict: it is absent or another's.
    """
    failpoints.hit("publish.after_commit")
    found = _metadata(publication.path, version=publication.version)
    if found is None or found.get("publish_id") != publication.publish_id:
        _undo(publication)
        raise _conflict(publication)
    return publication.version


def read_record(path: Path, *, version: int | None = None) -> dict[str, Any] | None:
    """The record in the publishing commit of a version; None when that commit has none.

    By default the newest one: commits that others make on our tables, such as OPTIMIZE, are passed over.
    """
    if not tables.exists(path):
        return None
    if version is None:
        return next(records(path), None)
    found = _metadata(path, version=version)
    return found["record"] if found else None


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of all commits that the log still holds, newest first; each is read when it is asked for.

    Raises:
        FormatError: a newer Tessera wrote one.
    """
    for version in reversed(delta_log.commits(path)):
        if found := _metadata(path, version=version):
            yield found["record"]


def side_version(path: Path, *, publish_id: str) -> int | None:
    """The newest version of a side table whose commit carries this publish id; None when there is none."""
    for version in reversed(delta_log.commits(path)):
        if publish_id in str((delta_log.commit_info(path, version=version) or {}).get("userMetadata")):
            return version
    return None


def retained(path: Path, *, retention: Retention, pinned: Collection[int] = ()) -> set[int]:
    """The versions of a table whose files are kept: by `retention`, or because something of ours names them.

    Args:
        pinned: versions that are in use whatever their age; those that the log cannot give any more are passed over.
    """
    readable = delta_log.versions(path)
    if retention.versions is None and retention.days is None:
        return set(readable)
    kept = {version for version in pinned if version in readable} | set(readable[-max(retention.versions or 1, 1) :])
    if retention.days is not None:
        since = (time.time() - retention.days * 86_400) * 1000
        superseded = pairwise(readable)
        kept |= {version for version, newer in superseded if _committed_at(path, version=newer) >= since}
    return kept


def named(path: Path, *, column: str, versions: Collection[int]) -> set[str]:
    """What these versions of a table hold in a column of text: each data file is read once.

    A data file that is gone counts for nothing, since nobody can read it any more; but not one of the newest version.

    Raises:
        SourceError: a data file of the newest version is gone.
    """
    newest = delta_log.files(path, at=[max(versions)]) if versions else set()
    found: set[str] = set()
    for file in delta_log.files(path, at=versions):
        try:
            with pq.ParquetFile(path / file) as opened:
                found.update(opened.read(columns=[column])[column].unique().to_pylist())
        except FileNotFoundError:
            if file in newest:
                raise SourceError(
                    f"{path} lacks {file}, which its newest version names; restore the file, or make the version again"
                ) from None
    return found


def unnamed(folder: Path, *, names: Collection[str], before: float) -> Iterator[Path]:
    """Files that lie in `folder`, passing names of killed writers among them, are not in `names`, and are older.

    Args:
        before: in Unix seconds: what is younger may be about to be named.
    """
    for file in sorted(folder.glob("*")):
        if file.name not in names and file.is_file() and file.stat().st_mtime < before:
            yield file


def orphans(path: Path, *, versions: Collection[int], before: float) -> Iterator[Path]:
    """Data files of a table of ours, and their checksums, that none of these versions names and that are older."""
    known = delta_log.files(path, at=versions)
    for file in sorted((*path.rglob("*.parquet"), *path.rglob(".*.parquet.crc"))):
        data = file.with_name(file.name.removeprefix(".").removesuffix(".crc"))
        within = data.relative_to(path)
        if within.parts[0] != "_delta_log" and within.as_posix() not in known and file.stat().st_mtime < before:
            yield file


def _metadata(path: Path, *, version: int) -> dict[str, Any] | None:
    """What a commit of ours carries.

    Raises:
        FormatError: a newer Tessera wrote it.
    """
    found = _parse((delta_log.commit_info(path, version=version) or {}).get("userMetadata"))
    if found is not None and found.get("version", version) != version:
        return None  # its writer is about to undo it
    if found is not None:
        lineage.check_format(
            found["record"].get("format"), known=lineage.FORMAT, what=f"the record of {path} version {version}"
        )
    return found


def _newest(path: Path) -> int:
    return tables.open_table(path).version() if tables.exists(path) else NO_PARENT


def _undo(publication: Publication) -> None:
    """Takes back what a writer of ours put on top of a commit that it did not know. Nobody reads its record meanwhile:
    it names another version than it lies in."""
    misplaced = side_version(publication.path, publish_id=publication.publish_id)
    table = DeltaTable(publication.path)
    if misplaced is not None and table.version() == misplaced:
        table.restore(misplaced - 1)


def _parse(metadata: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(metadata or "null")
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and {"publish_id", "record"} <= set(value) else None


def _committed_at(path: Path, *, version: int) -> float:
    """When a version was committed, in milliseconds of Unix time; the beginning of time when that is not known."""
    return float((delta_log.commit_info(path, version=version) or {}).get("timestamp", 0))


def _not_published(publication: Publication, error: Exception) -> Conflict | PublishingFailed:
    """What a commit's failure means: another's commit is there, or there is none."""
    if delta_log.commit_info(publication.path, version=publication.version) is not None:
        return _conflict(publication)
    said = str(error).splitlines()[0][:200]
    return PublishingFailed(
        f"{publication.name}: version {publication.version} could not be written ({said}); nothing was published. Look "
        "at the space and the permissions of its folder, and run the command again"
    )


def _conflict(publication: Publication) -> Conflict:
    return Conflict(
        f"{publication.name}: another writer published version {publication.version} first; nothing of this run was "
        "published. Run the command again: it starts from the newest version"
    )
