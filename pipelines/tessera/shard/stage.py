"""When a shard set need not be written again: its fingerprint, and whether a recorded one still holds. No JVM.

Costs the listing of the set's files and the hash of its tokenizer, some hundredths of a second; contents of shards are
hashed where they are read.
"""

from pathlib import Path

from tessera import lineage, tables
from tessera.errors import TesseraError
from tessera.home import Home
from tessera.lineage import PrepareRecord, ShardRecord
from tessera.shard import artefact, manifest, tokenizer
from tessera.shard.settings import ShardSettings

SEMANTICS = 1
"""Raised when the same documents and settings give other shards."""


def fingerprint(prepared: PrepareRecord, *, settings: ShardSettings, home: Home) -> str:
    """Over the documents at their version, the settings, and the tokenizer where it is not made from those.

    Raises:
        TokenizerError: the settings name a folder that is no tokenizer.
    """
    documents = [prepared.table.name, prepared.table.version, prepared.fingerprint]
    if settings.tokenizer.path is not None:
        return _fingerprint(
            documents, tokenizer_sha256=tokenizer.identity(Path(settings.tokenizer.path)), settings=settings
        )
    own = _fingerprint(documents, tokenizer_sha256=None, settings=settings)
    pinned = artefact.find_pinned(home, settings=settings)
    if pinned is None or pinned.trained_by == own:
        return own
    return _fingerprint(documents, tokenizer_sha256=pinned.ref.sha256, settings=settings)


def _fingerprint(documents: list[object], *, tokenizer_sha256: str | None, settings: ShardSettings) -> str:
    inputs = {"documents": documents, "tokenizer": tokenizer_sha256}
    return lineage.fingerprint(stage="shard", semantics=SEMANTICS, inputs=inputs, config=settings.identity())


def verify(record: ShardRecord, *, home: Home) -> bool:
    """Whether the recorded set still opens: its tables at their versions, its files with their sizes, its tokenizer."""
    try:
        rows = manifest.read_manifest(home, record.name, record.manifest.version)
        return (
            manifest.read_record(home, name=record.name, version=record.manifest.version).fingerprint
            == record.fingerprint
            and not manifest.missing_shards(manifest.set_folder(home, name=record.name), rows)
            and not tables.missing_files(home.resolve(record.spans.path), version=record.spans.version)
            and artefact.holds(home, record.tokenizer)
        )
    except (TesseraError, OSError):
        return False
