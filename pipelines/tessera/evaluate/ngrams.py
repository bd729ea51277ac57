"""Token n-gram models with Witten-Bell smoothing: the baseline that learned from the same tokens as the model.

Interpolated Witten-Bell (Bell, Cleary and Witten 1990; Chen and Goodman 1999, section 2.5), from the trigram down to
the uniform distribution: with c the counts and t(h) the number of different tokens seen after h,

    P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h)),    h' = h without its oldest token,    P() = 1 / V

so every token has a probability above 0 and they sum to 1. An n-gram is one uint64 key, most significant token first;
counting is sorting, looking up is binary search. Memory grows with the *different* n-grams, and of orders above one
only those are kept whose context occurs in the text that will be scored: they alone decide its probabilities.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ORDERS = ("unigram", "bigram", "trigram")

Keys = NDArray[np.uint64]
Batch = Mapping[str, NDArray[np.integer]]

MAX_PENDING = 1 << 22
"""Keys of one order that wait unsorted, 32 MB."""


@dataclass(frozen=True)
class Counts:
    """n-grams of one order, each sorted by key."""

    keys: Keys
    """Different n-grams [U]: key = context * V + token."""
    counts: NDArray[np.int64]
    contexts: Keys
    """Different contexts [C]."""
    totals: NDArray[np.int64]
    """c(h), for each context [C]."""
    followers: NDArray[np.int64]
    """t(h), for each context [C]."""


Models = tuple[Counts, Counts, Counts]
"""Unigram, bigram and trigram counts."""


def occurrences(batch: Batch, *, end_id: int, vocab_size: int) -> Keys:
    """The trigram that ends at each token of a batch that is predicted, as keys [n], in stored order.

    A document's piece starts from two end tokens, as the model's does from one. Unigram and bigram are the key modulo
    V and V^2.

    Args:
        batch: `input_ids`, `labels`, `position_ids`, each [B, T], as `shard.read.batches` gives them.
    """
    _check_packable(vocab_size)
    labels, previous = batch["labels"], batch["input_ids"]
    before = np.full_like(previous, end_id)
    before[:, 1:] = np.where(batch["position_ids"][:, 1:] == 0, end_id, previous[:, :-1])
    counted = labels != -100
    size = np.uint64(vocab_size)
    oldest, middle, newest = (array[counted].astype(np.uint64) for array in (before, previous, labels))
    keys: Keys = (oldest * size + middle) * size + newest
    return keys


def contexts_of(keys: Iterable[Keys], *, vocab_size: int) -> dict[int, Keys]:
    """The different contexts of orders 2 and 3 in the text that will be scored, sorted."""
    size = np.uint64(vocab_size)
    found = _Accumulator()
    for part in keys:
        found.add(part // size)
    pairs, _ = found.finish()
    return {2: np.unique(pairs % size), 3: pairs}


def train(keys: Iterable[Keys], *, vocab_size: int, contexts: Mapping[int, Keys] | None = None) -> Models:
    """Counts unigrams, bigrams and trigrams.

    Args:
        keys: trigram occurrences, in any order and any division into parts.
        contexts: sorted contexts by order; n-grams of orders 2 and 3 after any other are not kept. None keeps all.
    """
    _check_packable(vocab_size)
    size = np.uint64(vocab_size)
    tables = [_Accumulator(), _Accumulator(), _Accumulator()]
    for part in keys:
        tables[0].add(part % size)
        tables[1].add(_after(part % (size * size), size=size, contexts=contexts, order=2))
        tables[2].add(_after(part, size=size, contexts=contexts, order=3))
    unigrams, bigrams, trigrams = (_counts(*table.finish(), size=size) for table in tables)
    return unigrams, bigrams, trigrams


def probabilities(models: Models, keys: Keys, *, vocab_size: int) -> dict[str, NDArray[np.float64]]:
    """P(token | context) of each trigram occurrence [n], by the unigram, the bigram and the trigram model."""
    size = np.uint64(vocab_size)
    found = np.full(len(keys), 1.0 / vocab_size)
    result = {}
    for order, (name, model) in enumerate(zip(ORDERS, models, strict=True), start=1):
        grams = keys if order == 3 else keys % (size ** np.uint64(order))
        count = _lookup(model.keys, model.counts, grams)
        total = _lookup(model.contexts, model.totals, grams // size)
        follow = _lookup(model.contexts, model.followers, grams // size)
        seen = total > 0
        smoothed = (count + follow * found) / np.where(seen, total + follow, 1)
        found = np.where(seen, smoothed, found)
        result[name] = found
    return result


class _Accumulator:
    """Keys with counts, merged by sorting whenever enough wait."""

    def __init__(self) -> None:
        self._keys: Keys = np.empty(0, np.uint64)
        self._counts: NDArray[np.int64] = np.empty(0, np.int64)
        self._pending: list[Keys] = []
        self._waiting = 0

    def add(self, keys: Keys) -> None:
        self._pending.append(keys)
        self._waiting += len(keys)
        if self._waiting >= MAX_PENDING:
            self._merge()

    def finish(self) -> tuple[Keys, NDArray[np.int64]]:
        self._merge()
        return self._keys, self._counts

    def _merge(self) -> None:
        new, counts = np.unique(np.concatenate([self._keys[:0], *self._pending]), return_counts=True)
        keys = np.concatenate([self._keys, new])
        order = np.argsort(keys, kind="stable")
        keys, weights = keys[order], np.concatenate([self._counts, counts])[order]
        starts = _group_starts(keys)
        self._keys, self._counts = keys[starts], np.add.reduceat(weights, starts) if len(keys) else weights
        self._pending, self._waiting = [], 0


def _after(grams: Keys, *, size: np.uint64, contexts: Mapping[int, Keys] | None, order: int) -> Keys:
    if contexts is None:
        return grams
    wanted = contexts[order]
    return grams[_lookup(wanted, np.ones(len(wanted), np.int64), grams // size) > 0]


def _counts(keys: Keys, counts: NDArray[np.int64], *, size: np.uint64) -> Counts:
    contexts = keys // size
    starts = _group_starts(contexts)
    totals = np.add.reduceat(counts, starts) if len(keys) else counts
    followers = np.diff(np.append(starts, len(keys)))
    return Counts(keys=keys, counts=counts, contexts=contexts[starts], totals=totals, followers=followers)


def _group_starts(ordered: Keys) -> NDArray[np.intp]:
    """Where a new value begins in a sorted array."""
    return np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _lookup(keys: Keys, values: NDArray[np.int64], wanted: Keys) -> NDArray[np.int64]:
    """The value of each wanted key, 0 where absent; `keys` are sorted and different."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _check_packable(vocab_size: int) -> None:
    assert vocab_size**3 < 2**64, "a trigram must fit into 64 bits"
