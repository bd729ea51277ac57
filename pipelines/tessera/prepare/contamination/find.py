"""Documents that share word n-grams with an evaluation set, as a Spark column.

Costs the shingles of a document (see `duplicates.shingles`) and one look into a bitmap for each; only the few that it
lets pass are searched for in the sets. About 30 MB of text a second on one core. The sets' hashes travel to every task,
8 bytes each, and become 16 to 32 bytes of bitmap there.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column
from pyspark.sql import functions as F

from tessera.prepare.duplicates.shingles import Uint64s, shingles

if TYPE_CHECKING:  # they cost a worker's start a second
    from tessera.prepare.contamination.sets import EvaluationSet
    from tessera.prepare.contamination.settings import DecontaminateSettings

BITMAP_SPARSITY = 4
"""Of 2**BITMAP_SPARSITY places in the bitmap, at most one is marked."""


def contaminated_by(text: Column, *, sets: "Sequence[EvaluationSet]", settings: "DecontaminateSettings") -> Column:
    """The name of the first evaluation set that the text shares enough n-grams with, else null; null for null and for
    invalid UTF-8.

    Args:
        sets: of `read_sets` with the same settings.
    """
    names, ngrams = [one.name for one in sets], [one.ngrams for one in sets]
    words, min_ngrams, min_share = settings.ngram_words, settings.min_ngrams, settings.min_share

    def looked_for(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        bitmap = bitmap_of(ngrams)
        for texts in batches:
            array = pa.array(texts, pa.large_binary(), from_pandas=True)
            found, total = count(array, ngrams=ngrams, bitmap=bitmap, words=words)
            enough = (found >= min_ngrams) & (found >= min_share * total)
            yield pd.Series([names[row.argmax()] if row.any() else None for row in enough.T], dtype=object)

    made = F.pandas_udf(looked_for, "string")  # type: ignore[call-overload]
    return cast(Column, made(F.when(F.is_valid_utf8(text), text).cast("binary")))


def count(
    texts: pa.Array, *, ngrams: Sequence[Uint64s], bitmap: npt.NDArray[np.bool_], words: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts the n-grams of each text that are in each set.

    Args:
        ngrams: of each set, sorted.
        bitmap: of the same sets.

    Returns:
        [sets, texts], and [texts]: all n-grams of each text. Each is counted as often as it occurs.
    """
    found = np.zeros((len(ngrams), len(texts)), np.int64)
    total = np.zeros(len(texts), np.int64)
    shift = np.uint64(64 - len(bitmap).bit_length() + 1)
    for part in shingles(texts, words=words, whole_if_short=False):
        total[part.first : part.first + len(part.offsets) - 1] += np.diff(part.offsets)
        passed = np.flatnonzero(bitmap[part.hashes >> shift])
        rows = np.searchsorted(part.offsets, passed, side="right") - 1 + part.first
        for number, members in enumerate(ngrams):
            np.add.at(found[number], rows[_contains(members, part.hashes[passed])], 1)
    return found, total


def bitmap_of(ngrams: Sequence[Uint64s]) -> npt.NDArray[np.bool_]:
    """At the first bits of a hash, whether any set has one that begins like it; the length is a power of two."""
    num_bits = max(sum(map(len, ngrams)), 1).bit_length() + BITMAP_SPARSITY
    bitmap = np.zeros(2**num_bits, bool)
    for some in ngrams:
        bitmap[some >> np.uint64(64 - num_bits)] = True
    return bitmap


def _contains(members: Uint64s, hashes: Uint64s) -> npt.NDArray[np.bool_]:
    """Whether each hash is one of the members, which are sorted."""
    if not len(members):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(members, hashes), len(members) - 1)
    return np.equal(members[places], hashes)
