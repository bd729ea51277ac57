"""What prepare decided, counted by source: the figures behind the page, the terminal and `tables/prepare_counts`.

Costs one pass over narrow columns of `tables/decisions` for all that is counted by source, in memory for as many groups
as there are of (source, reason, split, length class), whatever the number of rows; and one for each sort of duplicates,
see `clusters`. No JVM, no text.

| what                             | name                                    | value                                 |
|----------------------------------|-----------------------------------------|---------------------------------------|
| rows                             | `read`                                  | rows read, after the row filters      |
| documents, bytes, tokens         | split                                   | of the documents                      |
| dropped                          | reason                                  | rows                                  |
| length                           | smallest bytes of the class: `0`, `2^k` | documents                             |
| private_looked_at                | `rows`                                  | rows in which private data was sought |
| private_rows, private_values     | type                                    | rows that hold it, values found       |
| contaminated                     | evaluation set                          | rows, dropped or only flagged         |
| exact_clusters, near_clusters    | smallest size of the class: `2^k`       | clusters; overall                     |
| exact_displaced, near_displaced  | smallest size of the class: `2^k`       | rows that these displaced; overall    |
| moved                            | `documents`                             | whose split changed; overall          |
| bytes_per_token                  | `measured` or `assumed`                 | the ratio behind `tokens`; overall    |

A `what` is given either by source and kind or overall, with both null; so a sum over it never counts twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tessera import tables
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.prepare.report import clusters

BYTES_PER_TOKEN = 4.0
"""Assumed where no shard set tells: the rule of thumb for English and the large vocabularies of published models."""


@dataclass(frozen=True)
class Count:
    """One row of the table of counts."""

    source: str | None
    kind: str | None
    what: str
    name: str
    value: float


@dataclass(frozen=True)
class Counts:
    """All counts of one version of the documents."""

    documents: TableVersion
    decisions: TableVersion
    entries: tuple[Count, ...]
    """As `in_order` gives them."""

    def total(self, what: str, *, name: str | None = None) -> float:
        """The sum over `what`, of one name where it is given."""
        return sum(one.value for one in self.entries if one.what == what and name in (None, one.name))

    def by_name(self, what: str, *, kind: str | None = None) -> dict[str, float]:
        """Name -> value over all sources, or those of a kind; numbers in their order, other names by the alphabet."""
        summed: dict[str, float] = {}
        for one in self.entries:
            if one.what == what and kind in (None, one.kind):
                summed[one.name] = summed.get(one.name, 0) + one.value
        return {name: summed[name] for name in sorted(summed, key=_number_or_name)}

    def by_source(self, what: str) -> dict[str, dict[str, float]]:
        """Source -> name -> value, sources as in `sources`; one without any has an empty entry."""
        found: dict[str, dict[str, float]] = {source: {} for source in self.sources}
        for one in self.entries:
            if one.what == what and one.source is not None:
                found[one.source][one.name] = found[one.source].get(one.name, 0) + one.value
        return found

    @property
    def sources(self) -> dict[str, str]:
        """Source -> its kind, the source with most rows first."""
        read = [one for one in self.entries if one.what == "rows"]
        return {str(one.source): str(one.kind) for one in sorted(read, key=lambda one: (-one.value, one.source))}

    @property
    def tokens_are_measured(self) -> bool:
        """Whether the ratio behind `tokens` comes from a shard set, and is not assumed."""
        return "measured" in self.by_name("bytes_per_token")


def in_order(entries: Iterable[Count]) -> tuple[Count, ...]:
    """By what, source, kind and name; names that are numbers by their value."""
    return tuple(
        sorted(entries, key=lambda one: (one.what, one.source or "", one.kind or "", _number_or_name(one.name)))
    )


def count_decisions(
    home: Home, *, decisions: TableVersion, documents: TableVersion, bytes_per_token: float | None = None,
    moved: int | None = None, extra_copies: str = clusters.DUPLICATE,
) -> Counts:  # fmt: skip
    """Counts `tables/decisions` at its pinned version.

    Args:
        documents: the version that these decisions gave.
        bytes_per_token: of a shard set, to estimate tokens; None assumes BYTES_PER_TOKEN.
        moved: documents whose split differs from that in the version before, by a merge of clusters; None where
            there is no such version.
        extra_copies: the reason why equal rows of one document are dropped but one.

    Raises:
        SourceError: the version cannot be read any more.
    """
    path = home.resolve(decisions.path)
    ratio = bytes_per_token or BYTES_PER_TOKEN
    tally: Counter[tuple[str | None, str | None, str, str]] = Counter()
    for group in _groups(path, version=decisions.version):
        for what, name, value in _facts(group, extra_copies=extra_copies):
            tally[group["source"], group["kind"], what, name] += value
    for sort in (clusters.exact(extra_copies=extra_copies), clusters.NEAR):
        displaced = sum(tally[key] for key in list(tally) if key[2:] == ("dropped", sort.reason))
        for size, number, rows in clusters.classes(path, version=decisions.version, clusters=sort, displaced=displaced):
            tally[None, None, f"{sort.name}_clusters", str(size)] += number
            tally[None, None, f"{sort.name}_displaced", str(size)] += rows
    entries = [Count(*key, value=value) for key, value in tally.items() if value]
    entries += [replace(one, what="tokens", value=round(one.value / ratio)) for one in entries if one.what == "bytes"]
    entries.append(Count(None, None, "bytes_per_token", "measured" if bytes_per_token else "assumed", ratio))
    if moved is not None:
        entries.append(Count(None, None, "moved", "documents", moved))
    return Counts(documents=documents, decisions=decisions, entries=in_order(entries))


def _groups(path: Path, *, version: int) -> list[dict[str, Any]]:
    """Sums over the decisions, by all that is counted by source."""
    sums = [
        f'sum(CAST(private."{name}" AS BIGINT) * rows) AS "values {name}", '
        f'sum(CASE WHEN private."{name}" > 0 THEN rows ELSE 0 END) AS "rows {name}"'
        for name in _private_types(path, version=version)
    ]
    looked_at = "sum(CASE WHEN private IS NOT NULL THEN rows ELSE 0 END) AS looked_at"
    sql = f"""
        SELECT source, kind, reason, contaminated, split,
            CASE WHEN reason IS NULL AND num_bytes > 0 THEN CAST(floor(log2(num_bytes)) AS INT) END AS power,
            count(*) AS documents, sum(rows) AS rows, sum(num_bytes) AS num_bytes,
            {", ".join([looked_at, *sums])}
        FROM rows GROUP BY 1, 2, 3, 4, 5, 6
    """
    return list(tables.query(path, version=version, sql=sql).to_pylist())


def _private_types(path: Path, *, version: int) -> list[str]:
    """The fields of the column `private`: the types of values that were looked for."""
    schema = pa.schema(tables.open_table(path, version=version).schema().to_arrow())
    return [field.name for field in schema.field("private").type]


def _facts(group: Mapping[str, Any], *, extra_copies: str) -> Iterator[tuple[str, str, int]]:
    """(what, name, value) of one group of decisions."""
    yield "rows", "read", group["rows"]
    if group["reason"] is not None:
        yield "dropped", group["reason"], group["rows"]
    else:
        yield "documents", group["split"], group["documents"]
        yield "bytes", group["split"], group["num_bytes"]
        yield "length", str(0 if group["power"] is None else 2 ** group["power"]), group["documents"]
        yield "dropped", extra_copies, group["rows"] - group["documents"]
    if group["contaminated"] is not None:
        yield "contaminated", group["contaminated"], group["rows"]
    yield "private_looked_at", "rows", group["looked_at"]
    for column, value in group.items():
        measure, _, name = column.partition(" ")
        if name and value:
            yield f"private_{measure}", name, value


def _number_or_name(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)
