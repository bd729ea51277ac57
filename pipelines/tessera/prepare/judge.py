"""The judgement of single rows: what is wrong with a row, or about it, whatever other rows there are.

`judged` takes source rows through private data, quality, evaluation sets and sampling, in this order, and gives each
either no reason (it may become a document) or the first one. Rows already unfit are not looked at by what comes later.
One pass over the text; duplicates, which are about several rows, are found afterwards (`clusters`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from tessera.errors import Conflict
from tessera.prepare import kinds, read, stage
from tessera.prepare.contamination.find import contaminated_by
from tessera.prepare.contamination.sets import EvaluationSet, read_sets
from tessera.prepare.duplicates import near
from tessera.prepare.private.act import COUNTS_TYPE, applied
from tessera.prepare.quality import filters
from tessera.prepare.settings import PrepareSettings
from tessera.prepare.sources import Source

COLUMNS = (
    "source", "doc_id", "row_sha256", "updated", read.UPDATED_NUMBER, "source_version", "kind", "purposes",
    *kinds.COLUMNS, "sha256", "num_bytes", "private", "contaminated", "unfit", "bands",
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What rows are judged by."""

    settings: PrepareSettings
    hash: str
    """See `stage.rules_hash`."""
    evaluation_sets: Sequence[EvaluationSet] = ()
    key: bytes | None = None
    """Of pseudonyms."""


def rules(settings: PrepareSettings) -> Rules:
    """The rules that settings mean: evaluation sets are read, and the key of pseudonyms.

    Raises:
        ConfigError: an evaluation set or the key is not there.
        Conflict: an evaluation set was written while it was read.
    """
    known = stage.rules_hash(settings)
    sets = read_sets(settings.decontaminate) if settings.decontaminate is not None else ()
    if stage.rules_hash(settings) != known:
        raise Conflict("an evaluation set was written while it was read; run prepare again")
    return Rules(settings=settings, evaluation_sets=sets, key=settings.private.read_key(), hash=known)


def rows(found: DataFrame, *, source: Source, rules: Rules, ids: DataFrame | None = None) -> DataFrame:
    """The judged rows of a source, COLUMNS.

    Args:
        found: all its rows, see `read.source_rows`.
        ids: source and doc_id of the rows that are wanted; None: all.
    """
    if ids is not None:
        mine = ids.where(F.col("source") == source.settings.name).select("doc_id")
        found = read.null_safe_join(found, mine, on=["doc_id"], how="left_semi")
    return judged(found, kind=source.settings.kind, weight=source.settings.weight, rules=rules)


def judged(found: DataFrame, *, kind: str, weight: float, rules: Rules) -> DataFrame:
    """Judges rows of one kind as `read.source_rows` gives them."""
    settings = rules.settings
    if settings.private.looks:
        found = applied(found, settings=settings.private, key=rules.key)
    else:
        found = found.withColumn("private", F.lit(None).cast(COUNTS_TYPE))
    found = found.select("*", kinds.content_hash(kind).alias("sha256"), kinds.num_bytes(kind).alias("num_bytes"))
    found = _first(found, kinds.too_short(kind, min_chars=settings.min_chars))
    if kind in settings.quality.kinds:
        found = _first(found, filters.reason(_text(), settings=settings.quality))
    found = found.withColumn("contaminated", _contaminated(rules))
    if settings.decontaminate is not None and settings.decontaminate.action == "drop":
        found = _first(found, F.concat(F.lit("contaminated:"), F.col("contaminated")))
    if weight < 1:
        found = _first(found, F.when(~read.is_sampled(weight), "not_sampled"))
    bands = F.lit(None) if settings.near_duplicates is None else near.band_hashes(
        _text(), settings=settings.near_duplicates)  # fmt: skip
    contents = {name: F.when(F.col("unfit").isNull(), F.col(name)) for name in kinds.COLUMNS}
    return found.withColumns({"bands": bands.cast("array<bigint>"), **contents}).select(*COLUMNS)


def _text() -> Column:
    """The whole text of rows that are fit so far; null for others."""
    return F.when(F.col("unfit").isNull(), kinds.whole_text())


def _contaminated(rules: Rules) -> Column:
    if not rules.evaluation_sets or rules.settings.decontaminate is None:
        return F.lit(None).cast("string")
    return contaminated_by(_text(), sets=rules.evaluation_sets, settings=rules.settings.decontaminate)


def _first(found: DataFrame, reason: Column) -> DataFrame:
    """With `unfit` where it was null and the reason is not."""
    return found.withColumn("unfit", F.coalesce("unfit", reason))
