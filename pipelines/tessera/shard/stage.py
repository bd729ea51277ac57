"""When a shard set need not be written again: its fingerprint, and whether a recorded one still holds. No JVM.

Costs the listing of the set's files and the hash of its tokenizer, some hundredths of a second; contents of shards are
hashed where they are read.
"""

from pathlib import Path

from tessera import lineage, publish, tables
from tessera.errors import TesseraError
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.shard import artefact, manifest, tokenizer
from tessera.shard.settings import ShardSettings

SEMANTICS = 1
"""Raised when the same documents and settings give other shards."""

NOT_COMPACTED = -1


def fingerprint(prepared: PrepareRecord, *, settings: ShardSettings, home: Home) -> str:
    """Over the documents at their version, the settings, and the tokenizer where it is not made from those.

    Raises:
        TokenizerError: the settings name a folder that is no tokenizer, or another tokenizer than the set's.
    """
    version = prepared.table.version if prepared.content_version is None else prepared.content_version
    documents: list[object] = [prepared.table.name, version, prepared.content or prepared.fingerprint]
    compacted = compaction(prepared, settings=settings, home=home)
    if compacted != NOT_COMPACTED:
        documents.append({"compacted": compacted})
    pinned = artefact.find_pinned(home, settings=settings)
    if settings.tokenizer.path is not None:
        sha256 = tokenizer.identity(Path(settings.tokenizer.path))
        return _fingerprint(documents, tokenizer_sha256=sha256, settings=settings)
    own = _fingerprint(documents, tokenizer_sha256=None, settings=settings)
    if pinned is None or pinned.trained_by == own:
        return own
    return _fingerprint(documents, tokenizer_sha256=pinned.ref.sha256, settings=settings)


def _fingerprint(documents: list[object], *, tokenizer_sha256: str | None, settings: ShardSettings) -> str:
    inputs = {"documents": documents, "tokenizer": tokenizer_sha256}
    return lineage.fingerprint(stage="shard", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def compaction(prepared: PrepareRecord, *, settings: ShardSettings, home: Home) -> int:
    """The documents version up to which the set's generations are one, as the settings or the set have it; -1: none.

    What a set was compacted through it stays, but not for documents older than that.
    """
    version = prepared.table.version
    if settings.compact_through is not None:
        return min(settings.compact_through, version)
    compacted = max((done for done in compactions(home, name=settings.name) if done <= version), default=NOT_COMPACTED)
    apart = sum(generation.added > compacted for generation in prepared.generations)
    too_many = settings.compact_after is not None and apart + (compacted >= 0) > settings.compact_after
    return version if too_many else compacted


def compactions(home: Home, *, name: str) -> tuple[int, ...]:
    """All compactions of a set, ascending; none for a new set."""
    found = publish.read_record(manifest.manifest_path(home, name=name))
    return ShardRecord.model_validate(found).compactions if found else ()


def verify(record: ShardRecord, *, home: Home, stored: bool = True) -> bool:
    """Whether the recorded set still opens: its tables at their versions, its files with their sizes, its tokenizer.

    Args:
        stored: whether its files must be there; without, a set that was written in direct mode needs its documents.
    """
    try:
        rows = manifest.read_manifest(home, record.name, record.manifest.version)
        missing = manifest.missing_shards(manifest.set_folder(home, name=record.name), rows)
        return (
            manifest.read_record(home, name=record.name, version=record.manifest.version).fingerprint
            == record.fingerprint
            and (not missing or (record.direct and not stored))
            and (not record.direct or not _missing_documents(record, home=home))
            and not tables.missing_files(home.resolve(record.spans.path), version=record.spans.version)
            and artefact.holds(home, record.tokenizer)
        )
    except (TesseraError, OSError):
        return False


def _missing_documents(record: ShardRecord, *, home: Home) -> list[str]:
    (table,) = record.inputs
    return tables.missing_files(home.resolve(table.path), version=table.version)
