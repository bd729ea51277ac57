"""The prepare stage as the pipeline sees it, without a JVM: its fingerprint, and whether a recorded result holds."""

import hmac
from collections.abc import Sequence
from typing import Any

from tessera import lineage, tables
from tessera.home import Home
from tessera.lineage import PrepareRecord
from tessera.prepare.contamination.sets import identities
from tessera.prepare.settings import PrepareSettings
from tessera.prepare.sources import Source

SEMANTICS = 3
"""2: a source's weight, and what became of each row in a table of its own. 3: `updated` is compared as a number."""


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
    inputs = [source.identity() for source in sources]
    return lineage.fingerprint(stage="prepare", semantics=SEMANTICS, inputs=inputs, config=rules(settings))


def rules(settings: PrepareSettings) -> dict[str, Any]:
    """What rows are judged by, whichever they are: settings, contents of evaluation sets, the key of pseudonyms.

    Raises:
        ConfigError: an evaluation set or the key is not there.
    """
    found = {key: value for key, value in settings.identity().items() if key != "sources"}
    if settings.decontaminate is not None:
        found["evaluation_sets"] = identities(settings.decontaminate)
    if key := settings.private.read_key():
        found["pseudonyms"] = hmac.digest(key, b"tessera", "sha256").hex()
    return found


def rules_hash(settings: PrepareSettings) -> str:
    """Documents of other rules cannot be gone on from."""
    return lineage.sha256_json({"semantics": SEMANTICS, "rules": rules(settings)})


def recipe(source: Source) -> str:
    """How a source's rows are read, whatever its version."""
    return lineage.sha256_json({**source.identity(), "version": None})


def verify(record: PrepareRecord, *, sources: Sequence[Source], home: Home) -> bool:
    """Whether the record is of these very tables, and its documents version opens with all its files."""
    same_tables = [table.table_id for table in record.inputs] == [source.pinned.table_id for source in sources]
    path = home.resolve(record.table.path)
    return same_tables and tables.exists(path) and not tables.missing_files(path, version=record.table.version)
