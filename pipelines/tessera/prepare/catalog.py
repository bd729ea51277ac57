"""Tables that only the Spark catalog knows: `catalog.schema.name`."""

from dataclasses import dataclass

from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from tessera.errors import SourceError


@dataclass(frozen=True)
class CatalogTable:
    """What `prepare` must know of a catalog table before it reads it."""

    version: int
    table_id: str
    columns: dict[str, str]
    """Column name -> Spark's short type name."""


def describe(
    spark: SparkSession, *, name: str, version: int | None = None, timestamp: str | None = None
) -> CatalogTable:
    """Pins a catalog table.

    Raises:
        SourceError: the catalog has no such Delta table, or the table no such version.
    """
    quoted = ".".join(f"`{part}`" for part in name.split("."))
    try:
        detail = spark.sql(f"DESCRIBE DETAIL {quoted}").first()
        history = spark.sql(f"DESCRIBE HISTORY {quoted}").select("version", "timestamp").collect()
        versions = {row.version: row.timestamp for row in history}
        pinned = version if version is not None else max(versions)
        if timestamp is not None:
            pinned = (
                spark.sql(
                    f"SELECT max(version) v FROM (DESCRIBE HISTORY {quoted}) WHERE timestamp <= :moment",
                    args={"moment": timestamp},
                )
                .first()
                .v
            )
        columns = dict(spark.sql(f"SELECT * FROM {quoted} VERSION AS OF {int(pinned)}").dtypes)
    except (AnalysisException, TypeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise SourceError(f"the Spark catalog has no readable Delta table {name} ({reason})") from None
    assert detail is not None
    return CatalogTable(version=int(pinned), table_id=str(detail.id), columns=columns)
