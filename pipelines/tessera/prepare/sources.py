"""Which table versions are read: found, pinned and checked before any row is. `score` finds its table here too.

Tables of the home and tables given by path are resolved without a JVM, so a wrong name, version or column is answered
in a second. Only a table of the Spark catalog needs the session.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import tables
from tessera.errors import SourceError
from tessera.home import Home
from tessera.lineage import TableVersion
from tessera.prepare import template
from tessera.prepare.settings import SourceSettings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

STRING_TYPES = ("string", "large_string", "string_view")
PLAIN_TYPES = ("byte", "short", "integer", "int", "bigint", "long", "tinyint", "smallint", "boolean", "date")
"""Types whose text is the same in every session: those that a template may name beside strings."""


@dataclass(frozen=True)
class Located:
    """A table that was found, at the version it will be read at."""

    pinned: TableVersion
    location: str
    """A folder, a URI or the full name of a catalog table."""
    columns: dict[str, str]
    """Column name -> Spark's short type name."""
    in_catalog: bool = False


@dataclass(frozen=True)
class Source:
    """A source at the version it will be read at."""

    settings: SourceSettings
    pinned: TableVersion
    location: str
    """A folder, a URI or the full name of a catalog table."""
    in_catalog: bool = False

    def identity(self) -> dict[str, Any]:
        """What enters a fingerprint: logical name, version and what is taken from the rows; no path."""
        settings = self.settings
        return {
            "name": settings.name,
            "version": self.pinned.version,
            "kind": settings.kind,
            "id": list(settings.key),
            **settings.contents,
            "updated": settings.updated,
            "where": settings.where,
            "weight": settings.weight,
            "purposes": list(settings.purposes),
        }


def resolve(settings: SourceSettings, *, home: Home, spark: "Callable[[], SparkSession] | None" = None) -> Source:
    """Finds the table, pins its version and checks that its columns are there.

    Args:
        spark: gives the session; called only for a table of the Spark catalog.

    Raises:
        SourceError: no such table, version or column; or a text is not a string.
    """
    found = locate(
        _folder(settings, home=home) or settings.table or "", option="prepare.sources", name=settings.name, home=home,
        spark=spark, version=settings.version, timestamp=settings.timestamp,
    )  # fmt: skip
    _check_columns(settings, columns=found.columns, where=found.location)
    return Source(settings=settings, pinned=found.pinned, location=found.location, in_catalog=found.in_catalog)


def locate(
    place: Path | str, *, option: str, name: str, home: Home, spark: "Callable[[], SparkSession] | None" = None,
    version: int | None = None, timestamp: str | None = None,
) -> Located:  # fmt: skip
    """Finds a table and pins its version.

    Args:
        place: its folder; or in text its URI, or its full name in the Spark catalog.
        option: where it was named, for errors.
        name: the logical name that is recorded.
        spark: gives the session; called only for a table of the Spark catalog.
        version: the latest without it and without `timestamp`.

    Raises:
        SourceError: no such table or version.
    """
    if isinstance(place, str) and "://" not in place:
        return _locate_in_catalog(
            place, option=option, name=name, home=home, spark=spark, version=version, timestamp=timestamp
        )
    table = tables.open_table(place, version=version, timestamp=timestamp)
    return Located(
        pinned=TableVersion(
            name=name,
            path=home.relative(place) if isinstance(place, Path) else place,
            version=table.version(),
            table_id=str(table.metadata().id),
        ),
        location=str(place),
        columns={field.name: str(getattr(field.type, "type", field.type)) for field in table.schema().fields},
    )


def check_not_rolled_back(source: Source, *, earlier: list[TableVersion]) -> None:
    """Compares the table's newest version with what earlier stages saw of the same table.

    Raises:
        SourceError: the table is now older: its log may have lost its end.
    """
    seen = [table.version for table in earlier if table.table_id == source.pinned.table_id and table.table_id]
    if not seen or source.settings.version is not None or source.settings.timestamp is not None:
        return
    if source.pinned.version < max(seen):
        raise SourceError(
            f"{source.settings.name} is at version {source.pinned.version}, but version {max(seen)} was read before: "
            f"its log was rolled back or lost. Restore it, or pin what you want: version: {source.pinned.version}"
        )


def _folder(settings: SourceSettings, *, home: Home) -> Path | str | None:
    """The folder or URI of the source; None when only the Spark catalog may know it."""
    if settings.path is not None:
        if "://" in settings.path:
            return settings.path
        path = Path(settings.path).expanduser()
        return path if path.is_absolute() else Path.cwd() / path
    assert settings.table is not None
    folder = home.tables / settings.table
    return folder if tables.exists(folder) else None


def _locate_in_catalog(
    table: str, *, option: str, name: str, home: Home, spark: "Callable[[], SparkSession] | None",
    version: int | None, timestamp: str | None,
) -> Located:  # fmt: skip
    if "." not in table or spark is None:
        held = sorted(entry.name for entry in home.tables.glob("*") if tables.exists(entry))
        raise SourceError(
            f"{option}: there is no table {table} in {home.tables} (it holds: {', '.join(held) or 'nothing'}); "
            "give one of them, a path, or catalog.schema.name"
        )
    from tessera.prepare.catalog import describe

    found = describe(spark(), name=table, version=version, timestamp=timestamp)
    pinned = TableVersion(name=name, path=table, version=found.version, table_id=found.table_id)
    return Located(pinned=pinned, location=table, columns=found.columns, in_catalog=True)


def _check_columns(settings: SourceSettings, *, columns: dict[str, str], where: str) -> None:
    contents = {role: template.names(value, columns=columns) for role, value in settings.contents.items()}
    for role, names in {"id": settings.key, **contents, "updated": (settings.updated,)}.items():
        for name in names:
            if name is not None and name not in columns:
                raise SourceError(
                    f"{where} has no column {name!r} for prepare.sources.{role}; it has: {', '.join(columns)}"
                )
    for role, names in contents.items():
        for name in names:
            _check_type(columns[name], role=role, name=name, templated=name != settings.contents[role], where=where)


def _check_type(found: str, *, role: str, name: str, templated: bool, where: str) -> None:
    if role == "messages":
        fits, wanted = found.startswith("array"), "array<struct<role string, content string>>"
    elif templated:
        fits, wanted = found in (*STRING_TYPES, *PLAIN_TYPES), "string, a whole number, boolean or date"
    else:
        fits, wanted = found in STRING_TYPES, "string"
    if not fits:
        raise SourceError(
            f"{where}: the {role} column {name!r} is of type {found}, wanted {wanted}; name another column, or cast it "
            "in a view"
        )
