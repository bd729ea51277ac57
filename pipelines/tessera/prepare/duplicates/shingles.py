"""Texts become hashes of their word n-grams (shingles), a slice of the batch at a time, without a loop over words.

What a word is decides what counts as the same text: case, punctuation, symbols and white space do not. Words are runs
of letters, digits and marks; in scripts that put no spaces between words (kana, CJK ideographs) each character is one.

Bytes of a slice are classed by table, and hashes of words come from one prefix sum over the slice (Rabin and Karp
1987): with h(i) = sum of b[j] * BASE**j over j < i, modulo 2**64, the word [s, e) has (h(e) - h(s)) * BASE**-s, which
does not depend on where it stands. Shingles come from word hashes by the same formula. A final mix makes all 64 bits
good: two texts of different words share a shingle hash with a chance of 2**-64. One core does about 50 MB of text a
second, in some 30 bytes of memory for each byte of a slice; a document larger than a slice is read in several, never
copied whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Uint64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

SLICE_BYTES = 2**18
"""Text that is hashed at a time: the arrays made of it stay in the processor's cache."""
MAX_RANGE = 2 * SLICE_BYTES
"""Letters of a slice in lower case, which may be half as long again."""

BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 2**64)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))

SEPARATOR, WORD, ALONE = 0, 1, 2
BLOCKS = (
    (0x80, 0xBF, SEPARATOR),  # Latin-1 punctuation and symbols
    (0x2000, 0x2BFF, SEPARATOR),  # punctuation, currency, arrows, mathematics, boxes, dingbats
    (0x3000, 0x303F, SEPARATOR),  # CJK punctuation
    (0x3040, 0x9FFF, ALONE),  # kana, CJK ideographs
    (0xF900, 0xFAFF, ALONE),  # CJK compatibility ideographs
    (0xFE00, 0xFE3F, SEPARATOR),  # variation selectors, vertical forms
    (0xFF00, 0xFF3F, SEPARATOR),  # full-width punctuation and digits; the letters are elsewhere in lower case
    (0x1F000, 0x1FFFF, SEPARATOR),  # emoji
    (0x20000, 0x3FFFF, ALONE),  # CJK ideographs, extensions
    (0xE0000, 0xE0FFF, SEPARATOR),  # tags, more variation selectors
)
"""Non-ASCII characters that are no part of a word, or a whole one; all others are parts of words. First and last code
point: whole runs of those that share their first two UTF-8 bytes."""


@dataclass(frozen=True)
class Shingles:
    """Hashes of the shingles of consecutive documents, each as often as it occurs, in the order of the text."""

    first: int
    """Row of the first document in the batch."""
    offsets: Int64s
    """[D + 1]: the hashes of document `first + d` are those from `offsets[d]` up to `offsets[d + 1]`."""
    hashes: Uint64s

    def rows(self) -> Int64s:
        """The row of each hash's document in the batch."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int64), np.diff(self.offsets)) + self.first


def shingles(texts: pa.Array | pa.ChunkedArray, *, words: int, whole_if_short: bool = True) -> Iterator[Shingles]:
    """Hashes of every run of `words` words of each text.

    Args:
        texts: strings of valid UTF-8; a null has no shingles, nor has a text without words.
        words: of a shingle.
        whole_if_short: a text of fewer words has one shingle, all its words; otherwise it has none.

    Yields:
        The documents by rows. One of more than SLICE_BYTES comes in several, each with that document only.

    Raises:
        pa.ArrowInvalid: invalid UTF-8.
    """
    offsets, data = _buffers(texts)
    row = 0
    while row < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[row] + SLICE_BYTES, side="right")) - 1
        if last > row:
            hashes, of_document = _word_hashes(data, offsets=offsets[row : last + 1])
            yield _of_slice(hashes, offsets=of_document, first=row, words=words, whole_if_short=whole_if_short)
        else:
            last = row + 1
            one = data[offsets[row] : offsets[last]]
            yield from _of_long(one, row=row, words=words, whole_if_short=whole_if_short)
        row = last


def mix(hashes: Uint64s) -> Uint64s:
    """Spreads every bit over all 64 (David Stafford's Mix13, as in SplitMix64); one to one. Works in place."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= MIX[0]
    hashes ^= hashes >> np.uint64(27)
    hashes *= MIX[1]
    hashes ^= hashes >> np.uint64(31)
    return hashes


def distinct(hashes: Uint64s) -> Uint64s:
    """The same hashes sorted, each once; of many, in a tenth of the time that `np.unique` takes."""
    found = np.sort(hashes)
    first = np.ones(len(found), bool)
    np.not_equal(found[1:], found[:-1], out=first[1:])
    return found if first.all() else found[first]


def _of_slice(words_of: Uint64s, *, offsets: Int64s, first: int, words: int, whole_if_short: bool) -> Shingles:
    """Shingles of documents from the hashes of their words; `offsets` [D + 1] are the documents' among the words."""
    num_words = np.diff(offsets)
    counts = np.maximum(num_words - (words - 1), np.minimum(num_words, int(whole_if_short)))
    ends = np.concatenate([[0], np.cumsum(counts)])
    begins = np.arange(ends[-1]) + np.repeat(offsets[:-1] - ends[:-1], counts)
    stops = np.minimum(begins + words, np.repeat(offsets[1:], counts))
    return Shingles(first=first, offsets=ends, hashes=_range_hashes(words_of, begins=begins, ends=stops))


def _of_long(data: Bytes, *, row: int, words: int, whole_if_short: bool) -> Iterator[Shingles]:
    """Shingles of one document of any length, a piece of it at a time; the last words of a piece begin the next one."""
    held = np.empty(0, np.uint64)
    any_whole = False
    for piece in _pieces(data):
        found, _ = _word_hashes(piece, offsets=np.array([0, len(piece)]))
        held = np.concatenate([held, found])
        if len(held) >= words:
            any_whole = True
            yield _of_slice(held, offsets=np.array([0, len(held)]), first=row, words=words, whole_if_short=False)
            held = held[len(held) - words + 1 :]
    if not any_whole:
        yield _of_slice(held, offsets=np.array([0, len(held)]), first=row, words=words, whole_if_short=whole_if_short)


def _pieces(data: Bytes) -> Iterator[Bytes]:
    """Cuts of at most SLICE_BYTES after an ASCII separator; where a piece has none, before a character."""
    start = 0
    while len(data) - start > SLICE_BYTES:
        window = data[start : start + SLICE_BYTES]
        separators = np.flatnonzero(_ascii_separators()[window])
        if len(separators):
            start, stop = start + int(separators[-1]) + 1, start
        else:
            characters = np.flatnonzero((data[start + 1 : start + SLICE_BYTES + 1] & 0xC0) != 0x80)
            start, stop = start + int(characters[-1]) + 1, start
        yield data[stop:start]
    yield data[start:]


def _buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[Int64s, Bytes]:
    """Offsets [rows + 1] and bytes of an array of strings, nulls as empty strings."""
    array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    array = array.cast(pa.large_string())
    if array.null_count:
        array = array.fill_null("")
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1] if ends else np.zeros(1, int)
    return offsets, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def _lowered(data: Bytes, *, offsets: Int64s) -> tuple[Int64s, Bytes]:
    """The documents in lower case, as (offsets from 0, bytes); their lengths may differ from before."""
    within, offsets = data[offsets[0] : offsets[-1]], offsets - offsets[0]
    array = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(within))
    if not len(within) or int(within.max()) < 0x80:
        return _buffers(pc.ascii_lower(array))
    return _buffers(pc.utf8_lower(array))


def _word_hashes(data: Bytes, *, offsets: Int64s) -> tuple[Uint64s, Int64s]:
    """Hashes of the words of documents, and the documents' offsets [D + 1] among them."""
    offsets, data = _lowered(data, offsets=offsets)
    begins, ends = _words(data, offsets=offsets)
    return _range_hashes(data, begins=begins, ends=ends), np.searchsorted(begins, offsets)


def _words(data: Bytes, *, offsets: Int64s) -> tuple[Int64s, Int64s]:
    """Where the words of lower-case documents begin and end, in bytes: [words], [words]."""
    padded = np.zeros(len(data) + 2, bool)
    is_word = padded[1:-1]
    np.not_equal(_ascii_classes().take(data), SEPARATOR, out=is_word)
    cuts = offsets[(offsets > 0) & (offsets < len(data))]
    leads = np.flatnonzero(data >= 0xC0)
    if len(leads):
        cuts = np.concatenate([cuts, _class_characters(data, leads=leads, is_word=is_word)])
    begins = is_word & ~padded[:-2]
    ends = is_word & ~padded[2:]
    begins[cuts] = is_word[cuts]
    ends[cuts - 1] = is_word[cuts - 1]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _class_characters(data: Bytes, *, leads: Int64s, is_word: npt.NDArray[np.bool_]) -> Int64s:
    """Marks the non-ASCII characters that separate as no word, in place.

    Args:
        leads: the places of the first bytes of all non-ASCII characters.

    Returns:
        Places where a word ends and another begins, if both sides are parts of words: around characters of class ALONE.
    """
    first = data[leads]
    classes = _classes().take(first.astype(np.int64) << 8 | data[leads + 1])
    lengths = 2 + (first >= 0xE0).astype(np.int64) + (first >= 0xF0)
    separating = classes == SEPARATOR
    for place in range(4):
        here = leads[separating & (lengths > place)]
        is_word[here + place] = False
    alone = classes == ALONE
    cuts = np.concatenate([leads[alone], (leads + lengths)[alone]])
    return cuts[(cuts > 0) & (cuts < len(data))]


def _range_hashes(values: npt.NDArray[np.unsignedinteger], *, begins: Int64s, ends: Int64s) -> Uint64s:
    """Hash of each range of `values`, by its contents alone: see the module's docstring."""
    powers, inverses = _powers()
    sums = np.empty(len(values) + 1, np.uint64)
    sums[0] = 0
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    hashes = sums[ends]
    hashes -= sums[begins]
    hashes *= inverses[begins]
    return mix(hashes)


@lru_cache(maxsize=1)
def _powers() -> tuple[Uint64s, Uint64s]:
    """BASE and its inverse to the power of 0 up to MAX_RANGE, modulo 2**64."""

    def rising(base: int) -> Uint64s:
        factors = np.full(MAX_RANGE + 1, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return rising(BASE), rising(INVERSE)


@lru_cache(maxsize=1)
def _ascii_classes() -> Bytes:
    """Byte -> its class; bytes of non-ASCII characters are WORD, until `_class_characters` looks at them."""
    return np.array([WORD if byte >= 0x80 or chr(byte).isalnum() else SEPARATOR for byte in range(256)], np.uint8)


@lru_cache(maxsize=1)
def _ascii_separators() -> npt.NDArray[np.bool_]:
    return np.equal(_ascii_classes(), SEPARATOR)


@lru_cache(maxsize=1)
def _classes() -> Bytes:
    """First byte * 256 + second byte of a non-ASCII character -> its class."""
    table = np.full(2**16, WORD, np.uint8)
    for low, high, kind in BLOCKS:
        begin, end = (chr(point).encode()[:2] for point in (low, high))
        table[int.from_bytes(begin, "big") : int.from_bytes(end, "big") + 1] = kind
    return table
