"""Shares of a document that are within repeated runs of n words (Gopher, Rae et al. 2021, table A1), in numpy.

All documents of a batch are measured at once, and no n-gram is ever made. Two n-grams are equal where their first n - 1
words are and their last one is, so an n-gram is a pair (number of its first n - 1 words, number of its last word), and
the pairs are numbered by a hash table in order of appearance. An n-gram that occurs once in its document is in no
longer one that occurs twice, so it is left out from there on: of ordinary text a few percent are left after three
words, and ten lengths cost little more than two. Exact: no hash of a word stands for the word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tessera.prepare.quality.settings import RepetitionSettings

TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)
SETTINGS = tuple(f"max_top_{n}gram" for n in TOP) + tuple(f"max_duplicate_{n}gram" for n in DUPLICATE)
SLICE_CHARS = 2**21
"""Measured at once: what bounds the memory, about thirty bytes a character."""


# Shapes: D = documents, W = words of all documents, G = n-grams that are looked at.
@dataclass(frozen=True)
class Words:
    """The words of D documents, one document after another."""

    number_W: np.ndarray
    """int64; equal words have equal numbers, from 0."""
    document_W: np.ndarray
    """int64; which document the word is of."""
    chars_W: np.ndarray
    """int64 [W + 1]; characters of all words before this one."""
    end_D: np.ndarray
    """int64; number of the word after the document's last."""

    @property
    def num_chars_D(self) -> np.ndarray:
        """Characters of each document's words."""
        return np.diff(self.chars_W[np.concatenate([[0], self.end_D])])


@dataclass(frozen=True)
class Repeated:
    """The n-grams that occur more than once in their document, in order of appearance."""

    n: int
    start_G: np.ndarray
    """int64; number of the n-gram's first word."""
    number_G: np.ndarray
    """int64; equal n-grams of one document have equal numbers, given in order of first appearance."""


def reasons(texts: Sequence[str], *, settings: RepetitionSettings) -> list[str | None]:
    """`quality:repetition:SETTING` of the first rule that a document breaks, else None; one for each text."""
    limits = {setting: limit for setting in SETTINGS if (limit := getattr(settings, setting)) is not None}
    found = np.full(len(texts), None, dtype=object)
    for first, last in _slices([len(text) for text in texts]):
        measured = shares(texts[first:last])
        for setting, limit in reversed(limits.items()):
            found[first:last][measured[setting.removeprefix("max_")] > limit] = f"quality:repetition:{setting}"
    return list(found)


def shares(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """For `top_2gram` to `top_4gram` and `duplicate_5gram` to `duplicate_10gram`: float64 [D], from 0 to 1.

    The share of the words' characters that is within the document's most frequent n-gram, if that occurs more than
    once (of several the first to occur), or within n-grams that came before. A character is counted once, however many
    of them it is in. Words are what white space parts. A document without words has shares of 0.
    """
    words = _words(texts)
    whole_D = np.maximum(words.num_chars_D, 1)
    found = {}
    for repeated in _repeated(words, longest=DUPLICATE[-1]):
        n = repeated.n
        if n in TOP:
            found[f"top_{n}gram"] = _covered_chars(_top(repeated, words=words), n=n, words=words) / whole_D
        if n in DUPLICATE:
            found[f"duplicate_{n}gram"] = _covered_chars(_came_before(repeated), n=n, words=words) / whole_D
    return found


def _words(texts: Sequence[str]) -> Words:
    split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(texts, pa.large_string())))
    flat = pc.list_flatten(split)
    num_words_D = pc.list_value_length(split).to_numpy(zero_copy_only=False)
    lengths_W = pc.utf8_length(flat).to_numpy(zero_copy_only=False)
    return Words(
        number_W=flat.dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64),
        document_W=np.repeat(np.arange(len(texts)), num_words_D),
        chars_W=np.concatenate([[0], np.cumsum(lengths_W, dtype=np.int64)]),
        end_D=np.cumsum(num_words_D, dtype=np.int64),
    )


def _repeated(words: Words, *, longest: int) -> Iterator[Repeated]:
    """For each n from 1 to `longest`."""
    num_numbers = int(words.number_W.max(initial=0)) + 1
    end_W = words.end_D[words.document_W]
    start_G = np.arange(len(words.number_W))
    number_G = words.document_W  # of no words at all: equal within a document
    for n in range(1, longest + 1):
        inside = start_G + n <= end_W[start_G]
        start_G, number_G = start_G[inside], number_G[inside]
        number_G, _ = pd.factorize(number_G * num_numbers + words.number_W[start_G + n - 1])
        again = np.bincount(number_G)[number_G] > 1
        start_G, number_G = start_G[again], number_G[again]
        yield Repeated(n=n, start_G=start_G, number_G=number_G)


def _came_before(repeated: Repeated) -> np.ndarray:
    """Starts of the n-grams that are equal to an earlier one of their document."""
    seen_G = np.maximum.accumulate(np.concatenate([[-1], repeated.number_G]))[:-1]
    return repeated.start_G[repeated.number_G <= seen_G]


def _top(repeated: Repeated, *, words: Words) -> np.ndarray:
    """Starts of each document's most frequent n-gram; of several the first to occur."""
    numbers, first, counts = np.unique(repeated.number_G, return_index=True, return_counts=True)
    document = words.document_W[repeated.start_G[first]]
    order = np.lexsort((numbers, -counts, document))
    _, best = np.unique(document[order], return_index=True)
    return repeated.start_G[np.isin(repeated.number_G, numbers[order[best]])]


def _covered_chars(start_G: np.ndarray, *, n: int, words: Words) -> np.ndarray:
    """Characters of each document's words that are within the runs of n words that begin here, each counted once.

    Args:
        start_G: ascending.
    """
    from_G = np.maximum(start_G, np.concatenate([[0], start_G[:-1] + n]) if len(start_G) else start_G)
    chars_G = words.chars_W[start_G + n] - words.chars_W[from_G]
    return np.bincount(words.document_W[start_G], weights=chars_G, minlength=len(words.end_D))


def _slices(num_chars: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of documents that have SLICE_CHARS together, or are one."""
    first, total = 0, 0
    for number, chars in enumerate(num_chars):
        if total + chars > SLICE_CHARS and number > first:
            yield first, number
            first, total = number, 0
        total += chars
    if first < len(num_chars):
        yield first, len(num_chars)
