"""MinHash signatures and their bands: sets of shingles that are alike agree in most minima, so they share a bucket.

A signature is made by hashing once (Li, Owen and Zhang 2012): the range of hashes is cut into bands * rows bins, and
each bin keeps its smallest hash. A bin that stays empty takes the minimum of another one, the first that is not empty
in a random order that is the bin's own and the same for all documents (optimal densification: Shrivastava 2017). So
each minimum of two sets agrees with probability of their Jaccard similarity s, short documents included, for one hash a
shingle instead of bands * rows.

Documents are candidates when all rows of one band agree, with probability 1 - (1 - s^rows)^bands; 28 bands of 8 rows:

| similarity | 0.2    | 0.3   | 0.4   | 0.5  | 0.6  | 0.7  | 0.75 | 0.8   | 0.85  | 0.9     |
|------------|--------|-------|-------|------|------|------|------|-------|-------|---------|
| candidates | 0.0001 | 0.002 | 0.018 | 0.10 | 0.38 | 0.81 | 0.95 | 0.994 | 0.9998 | 1.0000 |

Costs 4 ns a shingle and 1 to 20 microseconds a document, on top of the shingles; on one core 50 MB of text a second
where documents are long, 50,000 documents a second where they are short. A document of 200 MB takes 25 MB of memory.
numpy only, so that signatures can be made without Spark.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tessera.prepare.duplicates.shingles import BASE, Int64s, Uint64s, mix, shingles

SEED = 20170806
"""Of the orders of densification and of the band hashes: another one makes all stored band hashes useless."""
EMPTY = np.uint64(2**64 - 1)
GROUP = 256
"""Documents whose signatures are made at a time: half a megabyte."""
SPARSE = 3
"""A signature with less than a SPARSE-th of its bins filled is densified from these, others from the empty ones."""

# Shapes: D = documents, K = bins of a signature = bands * rows.


def band_hashes(texts: pa.Array, *, bands: int, rows: int, words: int) -> pa.ListArray:
    """The buckets of each text, by which near-duplicates find each other: see `NearDuplicateSettings`.

    Args:
        texts: strings of valid UTF-8.
        words: of a shingle.

    Returns:
        A list of `bands` int64 for each text, empty for one without words, null for null. A band's number is part of
        its hash: those of different bands do not meet.

    Raises:
        pa.ArrowInvalid: invalid UTF-8.
    """
    found, has_words = [np.empty((0, bands), np.int64)], [np.empty(0, bool)]
    for start in range(0, len(texts), GROUP):
        made = signatures(texts.slice(start, GROUP), size=bands * rows, words=words)
        has_words.append(made[:, 0] != EMPTY)
        found.append(_hash_bands(made, bands=bands, rows=rows))
    kept = np.concatenate(has_words)
    offsets = np.concatenate([[0], np.cumsum(kept * bands)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(np.concatenate(found)[kept].ravel()), mask=texts.is_null()
    )


def signatures(texts: pa.Array, *, size: int, words: int) -> Uint64s:
    """MinHash signatures [D, size] of the texts' sets of shingles; EMPTY throughout for a text without words."""
    bins = np.full((len(texts), size), EMPTY)
    flat = bins.reshape(-1)
    for part in shingles(texts, words=words):
        place = (part.hashes >> np.uint64(32)) * np.uint64(size) >> np.uint64(32)
        np.minimum.at(flat, part.rows() * size + place.astype(np.int64), part.hashes)
    return _densified(bins)


def similarity(one: Uint64s, other: Uint64s) -> float:
    """The estimate of the Jaccard similarity of two sets from their signatures [K]: the share that agrees."""
    return float(np.mean(one == other))


def _densified(bins_DK: Uint64s) -> Uint64s:
    """Fills empty bins, each from the first bin of its own order that is not empty."""
    filled = (bins_DK != EMPTY).sum(axis=1)
    size = bins_DK.shape[1]
    sparse = np.flatnonzero((filled > 0) & (filled * SPARSE < size))
    sparse = sparse[np.argsort(-filled[sparse], kind="stable")]
    others = np.flatnonzero((filled < size) & (filled * SPARSE >= size))
    result = bins_DK.copy()
    if len(sparse):
        result[sparse] = _from_filled(bins_DK[sparse])
    result[others] = _from_empty(bins_DK[others])
    return result


def _from_empty(bins_DK: Uint64s) -> Uint64s:
    """`_densified` for signatures with many bins filled: empty bins try one place of their order after another."""
    orders = _orders(bins_DK.shape[1])
    result = bins_DK.copy()
    document, place = np.nonzero(bins_DK == EMPTY)
    attempt = 0
    while len(place):
        attempt += 1
        value = bins_DK[document, orders[place, attempt]]
        found = value != EMPTY
        result[document[found], place[found]] = value[found]
        document, place = document[~found], place[~found]
    return result


def _from_filled(bins_DK: Uint64s) -> Uint64s:
    """`_densified` for signatures with few bins filled: each bin takes the one that comes first in its order.

    Args:
        bins_DK: the fullest signatures first; none is empty.
    """
    size = bins_DK.shape[1]
    document, place = np.nonzero(bins_DK != EMPTY)
    offsets = np.searchsorted(document, np.arange(len(bins_DK) + 1))
    filled = np.diff(offsets)
    best = _ranks(size)[place[offsets[:-1]]]
    for number in range(1, int(filled[0])):
        having = np.count_nonzero(filled > number)
        np.minimum(best[:having], _ranks(size)[place[offsets[:having] + number]], out=best[:having])
    return np.take_along_axis(bins_DK, _orders(size)[np.arange(size), best], axis=1)


def _hash_bands(signatures_DK: Uint64s, *, bands: int, rows: int) -> Int64s:
    """[D, bands]: the rows of each band as one hash, multilinear with random odd factors, then mixed."""
    terms = signatures_DK * (_random(bands * rows, purpose=1) | np.uint64(1))
    return mix(terms.reshape(-1, bands, rows).sum(axis=2, dtype=np.uint64)).view(np.int64)


@lru_cache(maxsize=4)
def _orders(size: int) -> npt.NDArray[np.int64]:
    """[K, K]: for each bin the bins in the order in which it takes from them, itself first."""
    keys = _random(size * size, purpose=2).reshape(size, size).copy()
    np.fill_diagonal(keys, 0)
    return np.argsort(keys, axis=1, kind="stable")


@lru_cache(maxsize=4)
def _ranks(size: int) -> npt.NDArray[np.unsignedinteger]:
    """[K, K]: at [b, j] the place of bin b in the order of bin j."""
    return np.ascontiguousarray(np.argsort(_orders(size), axis=1).T.astype(np.min_scalar_type(size - 1)))


@lru_cache(maxsize=8)
def _random(count: int, *, purpose: int) -> Uint64s:
    """The same numbers in every version of numpy, whose own generators may change: SplitMix64."""
    state = np.uint64(SEED + (purpose << 32)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(BASE)
    return mix(state)
