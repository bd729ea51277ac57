"""Which rows are meant: their ids, and what sources and documents still have of them. Spark computes the ids."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tessera import erasures
from tessera.errors import ConfigError, SourceError
from tessera.home import Home
from tessera.prepare import forget as documents
from tessera.prepare import sources
from tessera.prepare.sources import Source
from tessera.progress import Tell
from tessera.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from tessera.prepare.rows import Row

ID_DIGITS = 64


@dataclass(frozen=True)
class Wanted:
    """Which rows are to be forgotten: by key in one source, or by doc_id."""

    source: str | None = None
    ids: tuple[str, ...] = ()
    """Values of the key column; of a key of several columns, `column=value` for each of them, comma-separated."""
    keys: str | None = None
    """The folder of a Delta table that holds row keys."""
    doc_ids: tuple[str, ...] = ()
    why: str = ""
    """Kept for ever: no personal data."""
    delete_source: bool = False
    """Whether rows that a source still has are deleted there as well."""


@dataclass(frozen=True)
class Target:
    """What is worked on: the rows, where they may lie, and what is looked for."""

    doc_ids: tuple[str, ...]
    sources: tuple[Source, ...]
    present: Mapping[str, "list[Row]"]
    """Rows that sources still have, by source name."""
    texts: Mapping[str, list[str]]
    """doc_id -> every text that it was seen with."""
    pairs: tuple[tuple[str, str | None], ...]
    held: frozenset[str] = frozenset()
    """Ids of the rows whose text is in a file of the documents."""
    live: dict[str, set[str]] = field(default_factory=dict)
    """Data files of a source's newest version, for those that rows were deleted in."""


def resolve(
    home: Home, *, settings: Settings, wanted: Wanted, spark: "Callable[[], SparkSession]", tell: Tell
) -> Target:
    """Ids, what sources and documents still have of them, and what that was."""
    named = sources_of(home, settings=settings, wanted=wanted, spark=spark)
    tell("looking into the sources")
    doc_ids = doc_ids_of(named, wanted=wanted, spark=spark)
    from tessera.prepare import rows

    present = {one.settings.name: rows.find(spark(), one, doc_ids=doc_ids) for one in named}
    asked = erasures.make([(doc_id, None) for doc_id in doc_ids])
    held = documents.texts(home, erased=asked)
    displaced = documents.displaced(home, erased=asked)
    pairs: list[tuple[str, str | None]] = []
    texts: dict[str, list[str]] = {}
    for doc_id in doc_ids:
        contents = held.get(doc_id, {})
        known = sorted({*contents, *displaced.get(doc_id, ())})
        pairs += [(doc_id, sha256) for sha256 in known] or [(doc_id, None)]
        texts[doc_id] = [text for parts in contents.values() for text in parts]
    for found in present.values():
        for row in found:
            texts[row.doc_id] += row.texts
    return Target(
        doc_ids=tuple(doc_ids), sources=tuple(named), present=present, texts=texts, pairs=tuple(pairs),
        held=frozenset(held),
    )  # fmt: skip


def sources_of(home: Home, *, settings: Settings, wanted: Wanted, spark: "Callable[[], SparkSession]") -> list[Source]:
    """The named source, or all of the configuration, at their newest versions."""
    known = {one.name: one for one in settings.prepare.sources}
    if wanted.source is not None and wanted.source not in known:
        raise ConfigError(
            f"--source: there is no source {wanted.source[:100]!r} in prepare.sources; it has: {', '.join(known)}"
        )
    chosen = [known[wanted.source]] if wanted.source is not None else list(known.values())
    newest = [one.model_copy(update={"version": None, "timestamp": None}) for one in chosen]
    return [sources.resolve(one, home=home, spark=spark) for one in newest]


def doc_ids_of(named: Sequence[Source], *, wanted: Wanted, spark: "Callable[[], SparkSession]") -> list[str]:
    """The ids of the rows that are meant.

    Raises:
        ConfigError: it is not said, or in several ways, or is no id or key.
    """
    if bool(wanted.ids) + bool(wanted.keys) + bool(wanted.doc_ids) != 1:
        raise ConfigError("rows are named by --id, by --keys or by --doc-id; give one of them")
    if wanted.doc_ids:
        for doc_id in wanted.doc_ids:
            if len(doc_id) != ID_DIGITS or set(doc_id) - set("0123456789abcdef"):
                raise ConfigError(
                    f"--doc-id: wanted {ID_DIGITS} lower-case hexadecimal digits, found {len(doc_id)} characters"
                )
        return sorted(set(wanted.doc_ids))
    if wanted.source is None:
        raise ConfigError("--id and --keys need --source: the name of the source whose row keys they are")
    from tessera.prepare import rows

    (source,) = named
    if wanted.keys is not None:
        return rows.ids_in(spark(), source, table=wanted.keys)
    return rows.ids_of(spark(), source, keys=[_key(value, source=source) for value in wanted.ids])


def _key(value: str, *, source: Source) -> dict[str, str]:
    """One `--id` as values by key column."""
    key = source.settings.key
    if len(key) == 1:
        return {key[0]: value}
    named = "|".join(map(re.escape, key))
    parts = dict(part.partition("=")[::2] for part in re.split(f",(?=(?:{named})=)", value))  # values may hold commas
    if set(parts) != set(key):
        raise ConfigError(
            f"--id: the key of {source.settings.name} is {', '.join(key)}; give "
            + ",".join(f"{name}=VALUE" for name in key)
        )
    return parts


def refuse_present(target: Target, *, wanted: Wanted, dry_run: bool) -> None:
    if dry_run or wanted.delete_source:
        return
    for name, found in target.present.items():
        if found:
            raise SourceError(
                f"{name} still has {len(found)} of these {len(target.doc_ids)} rows at its newest version; delete them "
                "there and vacuum it, or give --delete-source"
            )
