"""The tokenizer of a set: the one that it has, a folder that is given, or one trained on a sample of its text."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from tessera.home import Home
from tessera.lineage import TokenizerRef
from tessera.shard import artefact
from tessera.shard.settings import ShardSettings
from tessera.shard.write.totals import Group


def of_set(
    table: DataFrame, *, groups: Sequence[Group], settings: ShardSettings, fingerprint: str, home: Home
) -> TokenizerRef:
    """The tokenizer that the set has; for a new set the folder that the settings name, or a new one."""
    if pinned := artefact.find_pinned(home, settings=settings):
        return pinned.ref
    if settings.tokenizer.path is not None:
        return artefact.copy(home, settings=settings, folder=Path(settings.tokenizer.path))
    train_bytes = sum(group.num_bytes for group in groups if group.split == "train")
    texts = sample_texts(table, train_bytes=train_bytes, sample_bytes=settings.tokenizer.sample_bytes)
    return artefact.train(home, settings=settings, texts=texts, fingerprint=fingerprint)


def sample_texts(table: DataFrame, *, train_bytes: int, sample_bytes: int) -> list[str]:
    """The train documents of smallest content hash, in that order, as many as `sample_bytes` hold; at least one.

    Documents whose hash lies above twice the share wanted are never sorted; only the sample comes to the driver.
    """
    train = table.where(F.col("split") == "train").select("sha256", "doc_id", "num_bytes", _text(table).alias("text"))
    share = 2 * sample_bytes / max(train_bytes, 1)
    if share < 1:
        train = train.where(F.substring("sha256", 1, 16) < f"{int(share * 2**64):016x}")
    by_hash = Window.orderBy("sha256", "doc_id")
    sized = train.withColumn("until", F.sum("num_bytes").over(by_hash.rowsBetween(Window.unboundedPreceding, 0)))
    kept = sized.where((F.col("until") <= sample_bytes) | (F.col("until") == F.col("num_bytes")))
    sample = kept.select("sha256", "doc_id", "text").toArrow()
    order = pc.sort_indices(sample, sort_keys=[("sha256", "ascending"), ("doc_id", "ascending")])
    return list(sample["text"].take(order).to_pylist())


def _text(table: DataFrame) -> Column:
    """All text of a document, whatever its kind."""
    if "messages" not in table.columns:
        return F.col("text")
    said = F.array_join(F.transform("messages", lambda one: one["content"]), "\n")
    return F.coalesce("text", said, F.concat_ws("\n", "prompt", "chosen", "rejected"))
