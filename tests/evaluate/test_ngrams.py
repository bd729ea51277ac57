"""Witten-Bell against a reading of the formula in plain Python, and its probabilities summed by brute force."""

from collections import Counter, defaultdict
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.evaluate import ngrams

from .conftest import batch_of

END = 0


class Plain:
    """The formula, with exact fractions and dictionaries."""

    def __init__(self, trigrams, vocab):
        self.vocab = vocab
        self.count = [Counter(t[2 - n :] for t in trigrams) for n in range(3)]
        self.total = [Counter(t[2 - n : 2] for t in trigrams) for n in range(3)]
        self.follow = [defaultdict(set) for _ in range(3)]
        for n, t in product(range(3), trigrams):
            self.follow[n][t[2 - n : 2]].add(t[2])

    def chance(self, gram):
        if not gram:
            return Fraction(1, self.vocab)
        n = len(gram) - 1
        lower = self.chance(gram[1:]) if n else Fraction(1, self.vocab)
        total, follow = self.total[n][gram[:-1]], len(self.follow[n][gram[:-1]])
        return (self.count[n][gram] + follow * lower) / (total + follow) if total else lower


def packed(trigrams, vocab):
    return np.array([(a * vocab + b) * vocab + c for a, b, c in trigrams], dtype=np.uint64)


def by_hand(documents, *, end=END):
    """Trigrams of documents, each after two end tokens; a tuple is a piece without an end."""
    found = []
    for document in documents:
        tokens = [end, end, *document] + ([] if isinstance(document, tuple) else [end])
        found += [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return found


@st.composite
def corpora(draw):
    vocab = draw(st.integers(2, 5))
    tokens = st.integers(0, vocab - 1)
    lines = draw(st.lists(st.lists(tokens, max_size=12), min_size=1, max_size=6))
    return vocab, [t for line in lines for t in by_hand([line])]


@given(corpora(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_equals_the_formula_for_every_trigram_and_sums_to_one(corpus, parts):
    vocab, trigrams = corpus
    everything = list(product(range(vocab), repeat=3))
    models = ngrams.train(np.array_split(packed(trigrams, vocab), parts), vocab_size=vocab)
    found = ngrams.probabilities(models, packed(everything, vocab), vocab_size=vocab)
    plain = Plain(trigrams, vocab)

    for order, name in enumerate(ngrams.ORDERS):
        expected = [float(plain.chance(gram[2 - order :])) for gram in everything]
        assert found[name] == pytest.approx(expected, rel=1e-12)
        assert (found[name] > 0).all()
        assert found[name].reshape(-1, vocab).sum(axis=1) == pytest.approx(np.ones(vocab * vocab), rel=1e-12)


@given(corpora(), corpora())
@settings(max_examples=40, deadline=None)
def test_keeping_only_the_contexts_that_are_scored_changes_nothing(seen, scored):
    vocab = max(seen[0], scored[0])
    keys, wanted = packed(seen[1], vocab), packed(scored[1], vocab)
    contexts = ngrams.contexts_of([wanted[::2], wanted[1::2]], vocab_size=vocab)
    full = ngrams.probabilities(ngrams.train([keys], vocab_size=vocab), wanted, vocab_size=vocab)
    kept = ngrams.probabilities(ngrams.train([keys], vocab_size=vocab, contexts=contexts), wanted, vocab_size=vocab)

    for name in ngrams.ORDERS:
        assert (full[name] == kept[name]).all()


def test_merging_often_counts_the_same(monkeypatch):
    keys = np.random.default_rng(1).integers(0, 7**3, size=500).astype(np.uint64)
    once = ngrams.train([keys], vocab_size=7)
    monkeypatch.setattr(ngrams, "MAX_PENDING", 10)
    often = ngrams.train(np.array_split(keys, 60), vocab_size=7)

    for one, other in zip(once, often, strict=True):
        assert one.counts.sum() == 500
        assert (one.keys == other.keys).all()
        assert (one.counts == other.counts).all()
        assert (one.followers == other.followers).all()


def test_a_piece_starts_from_end_tokens_and_padding_is_left_out():
    rows = [[[3, 4, 5], [6]], [(1, 2, 3, 4, 5, 6, 7, 8)], [[], [9, 9]]]
    keys = ngrams.occurrences(batch_of(rows, seq_len=8, end_id=END), end_id=END, vocab_size=10)

    assert keys.tolist() == packed([t for row in rows for t in by_hand(row)], 10).tolist()


def test_the_largest_vocabulary_still_packs():
    vocab = 2**21
    batch = batch_of([[[vocab - 1, vocab - 2, vocab - 3]]], seq_len=4, end_id=vocab - 1)
    keys = ngrams.occurrences(batch, end_id=vocab - 1, vocab_size=vocab)

    assert [int(key) % vocab for key in keys] == [vocab - 1, vocab - 2, vocab - 3, vocab - 1]
    assert int(keys[2]) == ((vocab - 1) * vocab + vocab - 2) * vocab + vocab - 3
