"""The prepare stage as the pipeline sees it, without a JVM: its fingerprint, and whether a recorded result holds."""

from collections.abc import Sequence

from tessera import lineage, tables
from tessera.home import Home
from tessera.lineage import PrepareRecord
from tessera.prepare.settings import PrepareSettings
from tessera.prepare.sources import Source

SEMANTICS = 1


def fingerprint(sources: Sequence[Source], *, settings: PrepareSettings, erased: str = "") -> str:
    """Over the pinned sources, the settings that decide which rows become documents, and what was erased.

    Args:
        erased: see `erasures.Erased.digest`.
    """
    return with_erased(base_fingerprint(sources, settings=settings), erased=erased)


def with_erased(base: str, *, erased: str) -> str:
    """The fingerprint of what prepare gives with these erasures; without any it is `base`."""
    return lineage.sha256_json({"base": base, "erasures": erased}) if erased else base


def base_fingerprint(sources: Sequence[Source], *, settings: PrepareSettings) -> str:
    """Over all but the erasures."""
    config = {key: value for key, value in settings.identity().items() if key != "sources"}
    inputs = [source.identity() for source in sources]
    return lineage.fingerprint(stage="prepare", semantics=SEMANTICS, inputs=inputs, config=config)


def verify(record: PrepareRecord, *, sources: Sequence[Source], home: Home) -> bool:
    """Whether the record is of these very tables, and its documents version opens with all its files."""
    same_tables = [table.table_id for table in record.inputs] == [source.pinned.table_id for source in sources]
    path = home.resolve(record.table.path)
    return same_tables and tables.exists(path) and not tables.missing_files(path, version=record.table.version)
